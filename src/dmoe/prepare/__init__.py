"""Raw log to data set: split, count, encode, restart, update."""
