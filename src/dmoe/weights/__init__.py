"""Weights on the disk: tensors in files, and the model of a run."""
