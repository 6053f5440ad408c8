"""A small encoded data set, written without `dmoe prepare`, whose click depends on its fields."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dmoe.config.run import RunConfig, load_config
from dmoe.schema import CategoricalField, Domain, NumericField, Schema, Task, vocabulary_path

SIZES = {"site": 12, "device": 7, "hour": 5}
SMALL = [
    "model.embedding_dim=4",
    "model.experts=[{kind: cin, units: [6]}, {kind: crossnet, layers: 2}]",
    "model.expert_units=16",
    "model.gate.units=8",
    "model.tower_units=[16]",
    "training.batch_size=64",
    "training.epochs=3",
    "training.seed=7",
    "optimiser.lr=0.01",
    "optimiser.embedding_l2=1e-6",
    "decorrelation=[{alpha: 2.0}]",
]


def small_config(*overrides: str) -> RunConfig:
    return load_config(None, [*SMALL, *overrides])


def write_data(folder: Path, rows: dict[str, int], *, label=None, seed: int = 0) -> Path:
    """A data set folder of given split sizes; `label` overrides the drawn clicks."""
    generator = np.random.default_rng(seed)
    schema = Schema(
        label="click",
        fields=(
            *(CategoricalField(name=name, vocabulary_size=size) for name, size in SIZES.items()),
            NumericField(name="price"),
        ),
    )
    folder.mkdir(parents=True)
    schema.write(folder)
    (folder / "vocabulary").mkdir()
    for name, size in SIZES.items():
        tokens = pa.table(
            {
                "value": [f"{name}{index}" for index in range(size - 2)],
                "count": pa.array(range(size - 2, 0, -1), pa.int64()),
                "id": pa.array(range(2, size), pa.int32()),
            }
        )
        parquet.write_table(tokens, vocabulary_path(folder, name))
    effect = {name: generator.normal(size=size) for name, size in SIZES.items()}
    for split, count in rows.items():
        ids = {name: generator.integers(0, size, count).astype(np.int32) for name, size in SIZES.items()}
        price = generator.normal(size=count).astype(np.float32)
        logit = (
            effect["site"][ids["site"]] * effect["device"][ids["device"]] + effect["hour"][ids["hour"]] + 0.5 * price
        )
        click = (generator.random(count) < 1 / (1 + np.exp(-logit))).astype(np.uint8)
        if label is not None:
            click[:] = label
        (folder / split).mkdir()
        parquet.write_table(pa.table({**ids, "price": price, "click": click}), folder / split / "part-00000.parquet")
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "set", {"train": 1000, "valid": 300, "test": 300})


def with_tasks(data: Path, folder: Path, *, domain: bool = False, weight: bool = False) -> Path:
    """The rows of `data` with two more labels, `buy` given `click` and `like` unknown in a fifth of them; with `domain`
    the device is one, two of its values with heads of their own."""
    shutil.copytree(data, folder, ignore=shutil.ignore_patterns("baselines"))
    generator = np.random.default_rng(1)
    schema = Schema.read(data)
    numbers = [2, 2, 0, 1] + [2] * (SIZES["device"] - 4)
    schema.model_copy(
        update={
            "labels": (Task(name="click"), Task(name="buy", given="click"), Task(name="like")),
            "domain": Domain(field="device", names=("device0", "device1", "other"), of_id=tuple(numbers))
            if domain
            else None,
            "weight": "w" if weight else None,
        }
    ).write(folder)
    for path in sorted(folder.glob("*/part-*.parquet")):
        table = parquet.read_table(path)
        site, hour = (table[name].to_numpy() for name in ("site", "hour"))
        rows = table.num_rows
        buys = generator.random(rows) < 0.2 + 0.6 * (site % 2)
        likes = generator.random(rows) < 0.1 + 0.3 * (hour % 3 == 0)
        without = table["click"].to_numpy() == 0
        table = table.append_column("buy", pa.array(buys.astype(np.uint8), mask=without))
        table = table.append_column("like", pa.array(likes.astype(np.uint8), mask=generator.random(rows) < 0.2))
        if weight:
            table = table.append_column("w", pa.array(generator.integers(1, 4, rows).astype(np.float32)))
        parquet.write_table(table, path)
    return folder
