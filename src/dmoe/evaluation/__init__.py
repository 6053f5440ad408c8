"""What is measured of a model on held-out rows, alone and beside another."""
