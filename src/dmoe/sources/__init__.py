"""Raw logs as they lie on the disk: files, folders and tables as columns of raw values."""
