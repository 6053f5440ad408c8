"""A trained run as a model folder that scores raw rows without this library's training code."""
