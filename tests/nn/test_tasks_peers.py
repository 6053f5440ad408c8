"""Models of several tasks against torch-rechub's, weight for weight, batch normalisation as the identity."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.arguments import DEFAULT_ENVIRONMENTS
from benchmarks.environments import InstallationError, python_of

from dmoe import DMoE
from dmoe.config.run import load_config
from dmoe.nn.build import build_model
from dmoe.schema import CategoricalField, Schema, Task

SIZES, DIM, EXPERT, TOWER = [5, 4, 6], 3, [7, 4], [5]
PLE = "model.experts=[{kind: dnn, hidden_units: [7], count: 2}, {kind: dnn, hidden_units: [7], per: task, count: 2}]"
LEVEL = "{experts: [{kind: mlp, hidden_units: [7], count: 2}, {kind: mlp, hidden_units: [7], per: task, count: 2}]}"
# The overrides of a preset, and what the peer is told.
CASES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    f"ple {levels}": (
        "ple",
        [PLE, f"model.levels=[{', '.join([LEVEL] * (levels - 1))}]"],
        {"model": "ple", "levels": levels, "owned": 2, "shared": 2},
    )
    for levels in (1, 2, 3)
} | {
    "mmoe": ("mmoe", ["model.experts=[{kind: dnn, hidden_units: [7], count: 3}]"], {"model": "mmoe", "shared": 3}),
    "shared-bottom": ("shared-bottom", ["model.experts=[{kind: dnn, hidden_units: [7]}]"], {"model": "shared-bottom"}),
    "esmm": ("esmm", ["model.experts=[{kind: dnn, hidden_units: [7], per: task}]"], {"model": "esmm"}),
}


def made(preset: str, overrides: list[str]) -> DMoE:
    sizes = [f"model.embedding_dim={DIM}", f"model.expert_units={EXPERT[-1]}", f"model.tower_units={TOWER}"]
    config = load_config(preset, [*overrides, *sizes])
    schema = Schema(
        label="click",
        fields=tuple(CategoricalField(name=f"f{n}", vocabulary_size=size) for n, size in enumerate(SIZES)),
        labels=(Task(name="click"), Task(name="buy", given="click")),
    )
    model = build_model(config.model, schema, seed=0).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)
    return model


@pytest.mark.slow
def test_same_weights_give_what_torch_rechub_gives(tmp_path: Path) -> None:
    try:
        python = python_of("rechub", DEFAULT_ENVIRONMENTS.expanduser())
    except InstallationError as error:
        pytest.skip(f"torch-rechub is not there to be compared with: {error}")
    torch.manual_seed(1)
    models = {case: made(preset, overrides) for case, (preset, overrides, _) in CASES.items()}
    ids = torch.stack([torch.randint(0, size, (12,)) for size in SIZES], 1)
    wanted = np.random.default_rng(0).normal(size=(3, 12))
    arrays = {"ids": ids.numpy(), "wanted": wanted}
    for case, model in models.items():
        arrays |= {f"{case}/{name}": value.detach().numpy() for name, value in model.named_parameters()}
    np.savez(tmp_path / "inputs.npz", **arrays)
    told = {"sizes": SIZES, "dim": DIM, "expert": EXPERT, "tower": TOWER, "tasks": 2}
    (tmp_path / "settings.json").write_text(json.dumps({case: {**told, **said} for case, (*_, said) in CASES.items()}))
    script = Path(__file__).with_name("rechub_models.py")
    files = [str(tmp_path / name) for name in ("inputs.npz", "settings.json", "outputs.npz")]
    done = subprocess.run([str(python), str(script), *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    answers = np.load(tmp_path / "outputs.npz")
    for case, model in models.items():
        found = [torch.sigmoid(task.logit) for task in model(ids).tasks]
        if case == "esmm":  # cvr, ctr, both
            found = [found[1], found[0], found[0] * found[1]]
        sum((one * torch.from_numpy(want)).sum() for one, want in zip(found, wanted, strict=False)).backward()
        probabilities = torch.stack(found, 1).detach().numpy()
        np.testing.assert_allclose(probabilities, answers[case], rtol=0, atol=1e-12, err_msg=case)
        gradient = model.embedding.banks[0].tables.weight.grad.numpy()
        np.testing.assert_allclose(gradient, answers[f"{case}/gradient"], rtol=0, atol=1e-12, err_msg=case)
