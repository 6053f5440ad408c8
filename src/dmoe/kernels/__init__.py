"""Compiled loops over rows, shared by tables, experts and optimisers: numba on the CPU, Triton on GPUs."""
