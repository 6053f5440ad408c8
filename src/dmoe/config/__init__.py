"""What run.yaml and data.yaml may say: names and types only. Imports no torch."""
