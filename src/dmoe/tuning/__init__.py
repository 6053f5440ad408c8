"""Search for the configuration that is best on the validation split."""
