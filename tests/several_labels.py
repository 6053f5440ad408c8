"""A run of several labels in domains, and its export; untrained, but with probabilities that are far apart."""

from pathlib import Path

import pytest
import torch
import yaml

from dmoe.config.data import DataConfig
from dmoe.config.run import load_config
from dmoe.export.write import export
from dmoe.nn.build import build_model
from dmoe.prepare.prepare import prepare
from dmoe.schema import Schema
from dmoe.synthetic.generate import generate
from dmoe.weights.run import Run

# Three labels, of which one is given another and one is not always known, in domains of which rare ones are one.
SEVERAL = [
    "model.embedding_dim=4",
    "model.heads=task-and-domain",
    "model.experts=[{kind: cin, units: [6]}, {kind: crossnet, layers: 2}]",
    "model.expert_units=16",
    "model.gate.units=8",
    "model.tower_units=[16]",
    "model.linear=true",
]


def untrained(folder: Path, *overrides: str, labels: int = 3, domain: object = None, preset: str | None = None) -> Run:
    """log.csv, data and run below `folder`: weights as they are drawn, but probabilities that are far apart, and a map
    and a linear part of its own for each label."""
    files, _ = generate(folder / "log.csv", rows=3000, preset="tasks", seed=2)
    values = yaml.safe_load(files.config.read_text())
    values["labels"] = dict(list(values["labels"].items())[:labels])
    values |= {"domain": domain} if domain is not None else {}
    prepare(DataConfig.model_validate(values), [str(files.log)], folder / "data")
    schema = Schema.read(folder / "data")
    config = load_config(preset, [*(SEVERAL if preset is None else []), *overrides])
    made = Run.create(folder / "run", config, schema, folder / "data")
    model = build_model(made.config.model, schema, seed=3)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for head in model.heads():
            head.output.weight.mul_(4)
        for number in range(len(schema.tasks)):
            model.calibration_of(number).set(-0.5 * number, 1.2 + 0.3 * number)
            linear = model.linear_of(number)
            if linear is not None:
                linear.set(
                    torch.randn(linear.weights_V.shape, generator=draw),
                    0.1 * number,
                    [[0.0]] * len(schema.numeric),
                    [[0.5]] * len(schema.numeric),
                    [0.3] * len(schema.numeric),
                    share=0.2 + 0.2 * number,
                )
    made.save_weights(model.state_dict())
    return made


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return untrained(tmp_path_factory.mktemp("several"), domain={"column": "slot", "min_count": 335})


@pytest.fixture(scope="session")
def several_in_graph(several: Run) -> Path:
    export(several, several.path.parent / "model")
    return several.path.parent / "model"
