"""A model folder behind HTTP: Open Inference Protocol, Arrow, metrics, a page. Imports no torch."""
