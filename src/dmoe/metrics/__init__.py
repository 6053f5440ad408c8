"""How good predictions are, from labels and scores alone. Imports no torch."""
