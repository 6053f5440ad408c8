"""The one text of a value, whatever carries it, and columns of values."""
