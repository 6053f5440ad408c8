"""Small runs over every kind of field, and their exports."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmoe.config.data import DataConfig
from dmoe.config.run import load_config
from dmoe.export.write import export
from dmoe.prepare.prepare import prepare
from dmoe.training.loop import train
from dmoe.weights.run import Run
from tests.prepare.logs import COLUMNS, config, random_rows, write_csv

SMALL = [
    "model.embedding_dim=4",
    "model.experts=[{kind: cin, units: [6]}, {kind: crossnet, layers: 2}]",
    "model.expert_units=16",
    "model.gate.units=8",
    "model.tower_units=[16]",
    "training.batch_size=64",
    "training.epochs=4",
    "optimiser.lr=0.03",
]

# What is made of a number or text on the way: several fields of columns that others read too.
MADE = {
    "categorical": {"hashed": {"column": "user", "hash_buckets": 4, "missing_values": ["NA", "2"]}},
    "numeric": {
        "age_step": {"column": "age", "transform": "log-bucket", "steps": 2, "missing_values": ["0"]},
        "age_digit": {"column": "age", "transform": "digit", "radix": 10, "place": 0},
        "price_part": {"column": "price", "transform": "quantile", "buckets": 5, "missing_as": "oov"},
        "hits_again": {"column": "hits", "transform": "bucket"},
    },
    "multi_valued": {
        "words": {"column": "site", "separator": " ", "max_length": 3, "pooling": "attention"},
        "sites": {"column": "site", "separator": "|", "max_length": 2, "shares": "site", "pooling": "target"},
    },
}


def pretrained(folder: Path) -> dict[str, object]:
    """A field whose vectors are given."""
    draw = np.random.default_rng(0)
    table = pa.table({"key": ["u1", "r7", "r9"], "vector": draw.normal(size=(3, 5)).tolist()})
    pq.write_table(table, folder / "vectors.parquet")
    return {"profile": {"column": "user", "file": str(folder / "vectors.parquet")}}


def every_kind(**changes: object) -> DataConfig:
    fields = config().model_dump(exclude_unset=True)["fields"]
    fields["categorical"]["user"]["embedding_dim"] = 3
    for kind, made in MADE.items():
        fields[kind] = fields.get(kind, {}) | made
    return config(**{"fields": fields, **changes})


def trained(folder: Path, *overrides: str, **data: object) -> Run:
    """log.csv, data and run below `folder`; the log has every kind of field, and clicks that depend on them."""
    rows = random_rows(900, 5)
    for row in rows:
        site, age = row[COLUMNS.index("site")], row[COLUMNS.index("age")]
        row[COLUMNS.index("y")] = str(int((site in "ab日本") ^ (age > "5")))
    log = write_csv(folder / "log.csv", rows)
    if "fields" not in data:
        data["fields"] = every_kind().model_dump(exclude_unset=True)["fields"] | {"pretrained": pretrained(folder)}
    prepare(config(**data), [str(log)], folder / "data")
    return train(load_config(None, [*SMALL, *overrides]), folder / "data", folder / "run")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def log(run: Run) -> Path:
    return run.path.parent / "log.csv"


@pytest.fixture(scope="session")
def in_graph(run: Run) -> Path:
    """A model folder whose vocabularies are all in the graph."""
    export(run, run.path.parent / "model")
    return run.path.parent / "model"


@pytest.fixture(scope="session")
def looked_up(run: Run) -> Path:
    """A model folder whose text fields are all looked up outside the graph."""
    export(run, run.path.parent / "looked-up", max_graph_tokens=0)
    return run.path.parent / "looked-up"
