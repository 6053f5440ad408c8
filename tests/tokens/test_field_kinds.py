"""Fields made of numbers and texts by every transform, against rules written again the slow way."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.config.data import DataConfig
from dmoe.errors import ConfigError
from dmoe.prepare.prepare import prepare
from dmoe.schema import Schema
from dmoe.tokens.encoder import RawEncoder
from dmoe.tokens.quantiles import bucket_of, quantile_edges
from dmoe.validation import validate
from tests.prepare import reference
from tests.prepare.logs import read_split


def config(**fields: Any) -> DataConfig:
    split = {"train": 0.5, "valid": 0.25, "test": 0.25}
    return validate(DataConfig, {"label": "y", "split": split, "fields": fields}, "data.yaml")


def write_column(path: Path, values: list[str]) -> Path:
    path.write_text("".join(["y,n\n", *(f"{index % 2},{value}\n" for index, value in enumerate(values))]))
    return path


def encoded(folder: Path, field: str) -> list[Any]:
    return [value for split in ("train", "valid", "test") for value in read_split(folder, split)[field].to_pylist()]


NUMBERS = [str(number) for number in (0, 1, 2, 3, 7, 20, 100, -1, -5, 1e6, 2.5, "")] * 8


def log_bucket(x: float) -> str:
    size = next(k for k in range(10**6) if math.exp((k + 1) / 4) > 1 + abs(x))
    return str(math.copysign(1, x) * size).removesuffix(".0").replace("-0", "0")


def binary_digit(x: float) -> str:
    text = bin(abs(int(x)))[2:].zfill(8)[::-1][2]
    return f"-{text}" if x < 0 and text != "0" else text


@pytest.mark.parametrize(
    ("options", "token"),
    [
        ({"transform": "log-bucket", "steps": 4}, log_bucket),
        ({"transform": "digit", "radix": 2, "place": 2}, binary_digit),
        ({"transform": "digit"}, lambda x: str(int(math.fmod(int(x), 10)))),
    ],
)
def test_tokens_made_of_numbers(tmp_path: Path, options: dict[str, Any], token: Callable[[float], str]) -> None:
    log = write_column(tmp_path / "log.csv", NUMBERS)
    prepare(config(numeric={"n": options}), [str(log)], tmp_path / "data")
    tokens = [token(float(text)) if text else None for text in NUMBERS]
    ids = reference.vocabulary(tokens[: len(tokens) // 2], 1)
    assert len(ids) > 2
    assert encoded(tmp_path / "data", "n") == [reference.encode(one, ids) for one in tokens]
    (batch,) = RawEncoder(tmp_path / "data").encode_files([log], batch_size=1000)
    assert batch.ids_BC[:, 0].tolist() == encoded(tmp_path / "data", "n")


def test_quantile_buckets_are_those_of_numpy_and_of_new_rows(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    numbers = np.round(draw.lognormal(size=400), 3)
    values = [str(number) for number in numbers]
    values[3] = values[333] = ""
    log = write_column(tmp_path / "log.csv", values)
    prepare(config(numeric={"n": {"transform": "quantile", "buckets": 7}}), [str(log)], tmp_path / "data")
    train = np.delete(numbers[:200], 3)
    edges = np.quantile(train, np.arange(1, 7) / 7, method="inverted_cdf")
    (field,) = Schema.read(tmp_path / "data").categorical
    assert field.edges == tuple(edges)
    tokens = [str(sum(number > edges)) if text else None for number, text in zip(numbers, values, strict=True)]
    ids = reference.vocabulary(tokens[:200], 1)
    assert len(ids) == 7
    assert encoded(tmp_path / "data", "n") == [reference.encode(one, ids) for one in tokens]
    encoder = RawEncoder(tmp_path / "data")
    (batch,) = encoder.encode_files([log], batch_size=1000)
    assert batch.ids_BC[:, 0].tolist() == encoded(tmp_path / "data", "n")
    table = pandas.DataFrame({"n": [1e30, -1e30, math.nan]})
    assert encoder.encode_table(table).ids_BC[:, 0].tolist() == [ids["6"], ids["0"], 0]


@settings(max_examples=200)
@given(
    blocks=st.lists(
        st.lists(st.floats(allow_infinity=False, width=64) | st.sampled_from([0.0, -0.0, 1.0]), max_size=20), max_size=6
    ),
    buckets=st.integers(2, 12),
)
def test_quantiles_of_any_numbers_are_exact(blocks: list[list[float]], buckets: int) -> None:
    edges = quantile_edges(lambda: [np.array(block, dtype=np.float64) for block in blocks], buckets)
    values = sorted(x for block in blocks for x in block if not math.isnan(x))
    want = []
    for step in range(1, buckets) if values else ():
        least = next(x for x in values if sum(y <= x for y in values) * buckets >= step * len(values))
        want += [] if want and want[-1] == least else [least]
    assert list(edges) == want
    numbers = np.array([*values, math.nan])
    assert bucket_of(numbers, edges).tolist() == [*(sum(edge < x for edge in want) for x in values), -1]


def test_one_column_may_be_value_and_bucket(tmp_path: Path) -> None:
    log = write_column(tmp_path / "log.csv", NUMBERS)
    fields = {"n": {"transform": "log"}, "fine": {"column": "n", "transform": "log-bucket", "steps": 4}}
    both = config(numeric=fields, categorical={"text": {"column": "n"}})
    prepare(both, [str(log)], tmp_path / "data")
    prepare(config(numeric={"n": fields["fine"] | {"column": "n"}}), [str(log)], tmp_path / "alone")
    assert encoded(tmp_path / "data", "fine") == encoded(tmp_path / "alone", "n")
    assert len(set(encoded(tmp_path / "data", "text"))) == len(set(NUMBERS))
    logged = [math.copysign(math.log1p(abs(float(text))), float(text)) if text else 0.0 for text in NUMBERS]
    np.testing.assert_allclose(encoded(tmp_path / "data", "n"), logged, rtol=1e-6)
    (batch,) = RawEncoder(tmp_path / "data").encode_files([log], batch_size=1000)
    assert batch.ids_BC[:, 0].tolist() == encoded(tmp_path / "data", "fine")


def test_a_hashed_field_has_tokens_for_unseen_values(tmp_path: Path) -> None:
    values = [f"v{index}" for index in range(400)]
    log = write_column(tmp_path / "log.csv", values)
    prepare(config(categorical={"n": {"hash_buckets": 5}}), [str(log)], tmp_path / "data")

    def bucket(text: str) -> str:
        return str(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % 5)

    ids = reference.vocabulary([bucket(text) for text in values[:200]], 1)
    assert len(ids) == 5
    assert encoded(tmp_path / "data", "n") == [ids[bucket(text)] for text in values]
    new = RawEncoder(tmp_path / "data").encode_table(pandas.DataFrame({"n": ["never seen", ""]}))
    assert new.ids_BC[:, 0].tolist() == [ids[bucket("never seen")], 0]


def test_max_tokens_keeps_the_most_frequent(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    values = [f"v{min(int(draw.zipf(1.5)), 50)}" for _ in range(600)]
    log = write_column(tmp_path / "log.csv", values)
    prepare(config(categorical={"n": {"max_tokens": 4, "min_count": 2}}), [str(log)], tmp_path / "data")
    counts = Counter(values[:300])
    kept = sorted(counts, key=lambda value: (-counts[value], value))[:4]
    ids = {value: rank + 2 for rank, value in enumerate(kept)}
    assert encoded(tmp_path / "data", "n") == [ids.get(value, 1) for value in values]
    assert Schema.read(tmp_path / "data").vocabulary_sizes == [6]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"numeric": {"n": {"transform": "log-bucket", "buckets": 3}}}, "'buckets' goes with 'transform: quantile'"),
        ({"numeric": {"n": {"transform": "bucket", "steps": 3}}}, "'steps' goes with 'transform: log-bucket' only"),
        ({"numeric": {"n": {"radix": 3}}}, "'radix' goes with 'transform: digit' only"),
        ({"numeric": {"n": {"transform": "quantile", "buckets": 1}}}, "fields.numeric.n.buckets"),
        ({"categorical": {"n": {"hash_buckets": 0}}}, "fields.categorical.n.hash_buckets"),
        ({"categorical": {"n": {"column": "y"}}}, "'y' is the label and cannot be a field too"),
    ],
)
def test_options_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**fields)


def test_a_column_is_said_once() -> None:
    values = {
        "label": "y",
        "fields": {"categorical": {"h": {"column": "t"}}},
        "derive": {"h": {"column": "t", "take": "hour", "format": "iso"}},
    }
    with pytest.raises(ConfigError, match="'fields' and 'derive' both say the column of 'h'"):
        validate(DataConfig, values, "data.yaml")
