"""Several processes train what one does: each case of `cases`, in one group of processes for all of them."""

import json
from pathlib import Path

import pytest

from tests.distributed.cases import CASES
from tests.distributed.ranks import ended, start

# What is worked out in float32 whatever the dtype of the model, and what is stored in 16 bits.
BOUNDS = {"importance": 1e-4, "switch": 1e-4, "half": 1e-6, "losses": 1e-9, "batch norm": 1e-9}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    for code, _, errors in ended(start(["-m", "tests.distributed.cases", str(folder)], 4), 300):
        assert code == 0, errors[-2000:]
    found: dict[str, dict[str, float]] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, case in CASES.items() for size in case.sizes])
def test_weights_are_those_of_one_process(results: dict[str, dict[str, float]], name: str, size: int) -> None:
    found = results[f"{name}, {size}"]
    assert found["apart"] < BOUNDS.get(name, 1e-10), found["where"]
    assert found["moved"] > 0.1  # training did something


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, case in CASES.items() for size in case.sizes])
def test_replicas_are_equal_to_the_bit(results: dict[str, dict[str, float]], name: str, size: int) -> None:
    assert results[f"{name}, {size}"]["replicas"]
