"""One training on several processes: who they are, which rows of a table each holds, and how rows travel."""
