"""Tests that need a CUDA device; run by `make test-gpu`."""

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda")
