"""Our experts against the layers of public libraries, weight for weight.

Each library runs in an environment of its own, which the benchmarks share and which is made on first use.
FuxiCTR is the benchmark lineage that the paper follows.
"""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.arguments import DEFAULT_ENVIRONMENTS
from benchmarks.environments import python_of
from torch import nn

from dmoe.nn.experts import CIN, FFM, FM, AutoInt, CrossNet, CrossNetMix, CrossNetV1, FmFM, FwFM
from dmoe.nn.experts.bilinear import WeightedPairs
from dmoe.nn.experts.fibinet import BilinearPairs, SENet

FIELDS, DIM, DEPTH, UNITS = 7, 4, 3, [6, 4, 9]
# Beside each layer's own weights.
BILINEAR = ("field-interaction", "field-each", "field-all")


def ours() -> dict[str, nn.Module]:
    """Our layers by the names that the peers' scripts use."""
    layers: dict[str, nn.Module] = {
        "crossnet": CrossNet(FIELDS, DIM, layers=DEPTH),
        "crossnet-v1": CrossNetV1(FIELDS, DIM, layers=DEPTH),
        "crossnet-mix": CrossNetMix(FIELDS, DIM, layers=DEPTH, low_rank=5, experts=3),
        "cin": CIN(FIELDS, DIM, units=UNITS),
        "cin.split": CIN(FIELDS, DIM, units=UNITS, activation="relu", split_half=True),
        "fm.pairs": FM(FIELDS, DIM, output="pairs"),
        "fm.bi-interaction": FM(FIELDS, DIM),
        "fm.scalar": FM(FIELDS, DIM, output="scalar"),
        "fwfm": FwFM(FIELDS, DIM),
        "fmfm": FmFM(FIELDS, DIM),
        "ffm": FFM(FIELDS, DIM * (FIELDS - 1)),
        "senet": SENet(FIELDS, 3),
        "autoint": AutoInt(FIELDS, DIM, layers=1, units=DIM, heads=2),
        "autoint.scaled": AutoInt(FIELDS, DIM, layers=1, units=DIM, heads=2, scale=True),
        "opnn.matrix": WeightedPairs(FIELDS, DIM, "matrix"),
        "opnn.vector": WeightedPairs(FIELDS, DIM, "vector"),
        "opnn.number": WeightedPairs(FIELDS, DIM, "number"),
        **{f"bilinear.{kind}": BilinearPairs(FIELDS, DIM, kind) for kind in BILINEAR},
    }
    return {name: layer.double() for name, layer in layers.items()}


def arrays_of(layers: dict[str, nn.Module]) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        "embeddings": torch.randn(11, FIELDS, DIM, dtype=torch.float64).numpy(),
        "ffm.embeddings": torch.randn(11, FIELDS, DIM * (FIELDS - 1), dtype=torch.float64).numpy(),
        "depth": DEPTH,
        "units": UNITS,
    }
    for name, layer in layers.items():
        for key, parameter in layer.named_parameters():
            nn.init.normal_(parameter, std=0.5)
            # The scripts know a bilinear layer by its kind alone.
            arrays[name if name.startswith("bilinear") else f"{name}.{key}"] = parameter.detach().numpy()
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize(("peer", "compared"), [("fuxictr", 13), ("deepctr", 13), ("rechub", 2)])
def test_same_weights_give_what_the_peer_gives(peer: str, compared: int, tmp_path: Path) -> None:
    layers = ours()
    arrays = arrays_of(layers)
    np.savez(tmp_path / "inputs.npz", **arrays)
    python = python_of(peer, DEFAULT_ENVIRONMENTS.expanduser())
    script = Path(__file__).with_name(f"{peer}_layers.py")
    command = [str(python), str(script), str(tmp_path / "inputs.npz"), str(tmp_path / "outputs.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    answers = np.load(tmp_path / "outputs.npz")
    names = {key.removesuffix(".float64") for key in answers if key.endswith(".float64")}
    assert len(names) == compared
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        for name in sorted(names):
            array = arrays.get(f"{name}.embeddings", arrays["embeddings"])
            embeddings = torch.tensor(array, dtype=dtype, requires_grad=True)
            output = layers[name].to(dtype)(embeddings).flatten(1)
            output.square().sum().backward()
            assert embeddings.grad is not None
            key = f"{name}.{str(dtype).removeprefix('torch.')}"
            for found, expected in (
                (output.detach().numpy(), answers[key]),
                (embeddings.grad.numpy(), answers[f"{key}.gradient"]),
            ):
                assert found.shape == expected.shape, key
                np.testing.assert_allclose(
                    found, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=key
                )
