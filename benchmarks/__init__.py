"""Speed and memory of dmoe against its peers and the hardware: `python -m benchmarks --help`."""
