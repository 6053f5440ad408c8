"""Tests that need a CUDA device; run by `make test-gpu`."""

from pathlib import Path

import pytest
import torch

# Tests of these also run, as far as they can, without one.
ANYWHERE = ("test_benchmarks.py", "test_runs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if Path(__file__).parent in item.path.parents and item.path.name not in ANYWHERE:
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda")
