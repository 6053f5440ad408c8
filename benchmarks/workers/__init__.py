"""One program for each contestant, run by `benchmarks.worker` in that contestant's own environment."""
