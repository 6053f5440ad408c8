"""Real rows of the Criteo log on one process and on three."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dmoe.prepare.prepare import prepare
from dmoe.prepare.recipes import read_recipe
from tests.distributed.ranks import ended, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("criteo")
    prepare(read_recipe("criteo_numeric"), [str(real_data / "criteo" / "train.txt.gz")], found / "data")
    return found


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-6), ("float32", 1e-3)])
def test_the_test_auc_is_that_of_one_process(folder: Path, dtype: str, bound: float) -> None:
    """In float32 the bound is the noise of seeds: their standard deviation on this sample is about so much."""
    for ranks in (1, 3):
        command = ["-m", "tests.distributed.criteo", dtype, str(folder / "data"), str(folder / f"{dtype}-{ranks}")]
        assert [code for code, _, _ in ended(start(command, ranks), 600)] == [0] * ranks
    one, three = (
        json.loads((folder / f"{dtype}-{ranks}" / "metrics.json").read_text())["test"]["auc"] for ranks in (1, 3)
    )
    assert one > 0.65
    assert three == pytest.approx(one, abs=bound)
    if dtype == "float64":
        first, second = (load_file(folder / f"{dtype}-{ranks}" / "model.safetensors") for ranks in (1, 3))
        assert max(float((first[name] - second[name]).abs().max()) for name in first if first[name].numel()) < 1e-9
