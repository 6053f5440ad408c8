"""The data configuration inside schema.json makes the fields and labels that stand beside it, or is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmoe.config.data import DataConfig
from dmoe.config.stored import stored_config
from dmoe.errors import DataError
from dmoe.prepare.prepare import prepare
from dmoe.schema import Schema
from dmoe.tokens.unseen import merging_fields, source_columns

CONFIG = {
    "label": "click",
    "split": {"kind": "ordered", "train": 0.5, "valid": 0.25, "test": 0.25},
    "fields": {
        "categorical": {"site": {}, "hashed": {"column": "site", "hash_buckets": 4}},
        "numeric": {
            "price": {"transform": "log"},
            "cut": {"column": "price", "transform": "quantile", "buckets": 3},
            "whole": {"column": "price", "transform": "bucket"},
        },
        "multi_valued": {"words": {"max_length": 3}, "seen": {"column": "site", "shares": "site", "max_length": 2}},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("stored")
    rows = range(40)
    table = {
        "click": [row % 2 for row in rows],
        "site": [f"s{row % 5}" for row in rows],
        "price": [row / 2 for row in rows],
        "words": ["a|b" if row % 3 else "c" for row in rows],
    }
    pq.write_table(pa.table(table), made / "log.parquet")
    prepare(DataConfig.model_validate(CONFIG), [str(made / "log.parquet")], made / "data")
    return made / "data"


def test_what_prepare_writes_fits(folder: Path) -> None:
    schema = Schema.read(folder)
    config = stored_config(schema, folder)
    assert config.fields.names() == [field.name for field in schema.fields]
    assert source_columns(schema)["cut"] == "price"
    assert merging_fields(schema) == set()


def without(kind: str, name: str) -> Callable[[dict[str, Any]], None]:
    return lambda source: source["fields"][kind].pop(name)


def other(kind: str, name: str, **options: Any) -> Callable[[dict[str, Any]], None]:
    return lambda source: source["fields"][kind].update({name: options})


def moved(source: dict[str, Any]) -> None:
    source["fields"]["categorical"]["price"] = {}
    del source["fields"]["numeric"]["price"]


def labelled(source: dict[str, Any]) -> None:
    source["labels"] = {"click": {"column": "click"}, "sale": {"column": "sold"}}
    source["label"] = None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("numeric", "price"), "source makes other fields than fields says, as 'price'"),
        (without("multi_valued", "words"), "source makes other fields than fields says, as 'words'"),
        (other("categorical", "more"), "source makes other fields than fields says, as 'more'"),
        (other("numeric", "price", transform="bucket"), "source makes another field of 'price' than fields says"),
        (other("numeric", "price"), "source makes another field of 'price' than fields says"),
        (other("numeric", "cut", column="price"), "source makes another field of 'cut' than fields says"),
        (other("numeric", "cut", column="price", transform="bucket"), "source makes another field of 'cut'"),
        (other("numeric", "whole", column="price", transform="quantile"), "source makes another field of 'whole'"),
        (other("multi_valued", "words", max_length=4), "source makes another field of 'words' than fields says"),
        (other("multi_valued", "seen", column="site", max_length=2), "source makes another field of 'seen'"),
        (moved, "source makes other fields than fields says"),
        (labelled, "source makes other labels than labels says, as 'sale'"),
        (lambda source: source.update(fields={}), "source"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_does_not_fit_is_named(folder: Path, change: Callable[[dict[str, Any]], None], said: str) -> None:
    values = json.loads((folder / "schema.json").read_text())
    change(values["source"])
    schema = Schema.model_validate(values)
    with pytest.raises(DataError, match=said) as refused:
        stored_config(schema, folder)
    assert str(folder / "schema.json") in str(refused.value)
    for ask in (source_columns, merging_fields):
        with pytest.raises(DataError, match=said):
            ask(schema)
