"""Our experts against the layers of FuxiCTR, the benchmark lineage that the paper follows, weight for weight."""

import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmoe.nn.experts import CIN, FM, CrossNet, Expert
from tests.nn.experts.naive import randomise

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("fuxictr_layers.py")
FIELDS, DIM, LAYERS, UNITS = 7, 4, 3, [6, 5, 9]


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def peer_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of a throw-away environment that holds FuxiCTR and our version of torch."""
    folder = tmp_path_factory.mktemp("fuxictr")
    venv.create(folder / "environment", with_pip=True)
    python = folder / "environment" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    constraints = folder / "constraints.txt"
    own = ROOT / "constraints.txt"
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    # FuxiCTR 2.3.10 fails with polars 2; torch is pinned to the one under test.
    lines = [line for line in lines if not line.startswith(("polars", "torch=="))]
    lines += ["polars<2", f"torch=={torch.__version__.partition('+')[0]}"]
    constraints.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run(python, "-m", "pip", "install", "-q", "--no-cache-dir", "-c", constraints, "fuxictr==2.3.10", "torch")
    yield python
    shutil.rmtree(folder)  # a gigabyte, which pytest would keep for three runs


@pytest.mark.slow
def test_same_weights_give_what_fuxictr_gives(peer_python: Path, tmp_path: Path) -> None:
    experts: dict[str, Expert] = {
        "crossnet": CrossNet(FIELDS, DIM, layers=LAYERS),
        "cin": CIN(FIELDS, DIM, units=UNITS),
        "fm.pairs": FM(FIELDS, DIM, output="pairs"),
        "fm.bi-interaction": FM(FIELDS, DIM),
        "fm.scalar": FM(FIELDS, DIM, output="scalar"),
    }
    arrays: dict[str, Any] = {
        "embeddings": torch.randn(11, FIELDS, DIM, dtype=torch.float64).numpy(),
        "crossnet.layers": LAYERS,
        "cin.units": UNITS,
    }
    for name in ("crossnet", "cin"):
        randomise(experts[name].double())
        for key, value in experts[name].state_dict().items():
            arrays[f"{name}.{key.removeprefix('layers.')}"] = value.numpy()
    np.savez(tmp_path / "inputs.npz", **arrays)
    run(peer_python, SCRIPT, tmp_path / "inputs.npz", tmp_path / "outputs.npz")

    answers = np.load(tmp_path / "outputs.npz")
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for name, expert in experts.items():
            embeddings = torch.tensor(arrays["embeddings"], dtype=dtype, requires_grad=True)
            output = expert.to(dtype)(embeddings)
            output.square().sum().backward()
            assert embeddings.grad is not None
            key = f"{name}.{str(dtype).removeprefix('torch.')}"
            for ours, theirs in (
                (output.detach().numpy(), answers[key]),
                (embeddings.grad.numpy(), answers[f"{key}.gradient"]),
            ):
                assert ours.shape == theirs.shape, key
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max(), err_msg=key)
