"""What the command lines of the benchmarks have in common."""

import argparse
from pathlib import Path

DEFAULT_ENVIRONMENTS = Path("~/.cache/dmoe-benchmarks")


def positive(text: str) -> int:
    """An argparse type: a whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
