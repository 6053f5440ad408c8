"""The run folder, written and read without torch."""
