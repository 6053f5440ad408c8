"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Before anything imports triton: where there is no device its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.several_labels import several, several_in_graph  # noqa: F401
from tests.small_runs import small_data  # noqa: F401

# How long an example takes says nothing of what is right, and a busy machine is no fault.
settings.register_profile(
    "dmoe", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("dmoe")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real click logs, which are not redistributed."""
    folder = Path(os.environ.get("DMOE_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    if not (folder / "criteo" / "train.txt.gz").is_file():
        pytest.skip(f"real click logs are not in {folder}; set DMOE_DATA to a folder that holds them")
    return folder
