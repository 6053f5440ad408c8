"""Generated logs whose click probabilities are known."""
