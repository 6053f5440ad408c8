"""Every engine gives the same bytes: vocabularies, shards, rejects and schema."""

import os
import shutil
import sys
from datetime import datetime, timedelta
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from dmoe.cli.main import main
from dmoe.config.data import DataConfig
from dmoe.errors import ConfigError, DataError, MissingExtraError
from dmoe.prepare.engines import frames_engines
from dmoe.prepare.prepare import prepare
from dmoe.prepare.update import update
from dmoe.sources import lines
from tests.prepare.logs import COLUMNS, config, random_rows, write_csv
from tests.prepare.test_prepare import data_files
from tests.prepare.test_restart import Stop

NO_JAVA = shutil.which("java") is None and "JAVA_HOME" not in os.environ
NO_SPARK = find_spec("pyspark") is None
spark = pytest.param(
    "spark",
    marks=[
        pytest.mark.skipif(NO_JAVA, reason="Spark needs Java, which is not here"),
        pytest.mark.skipif(NO_SPARK, reason="pyspark is not installed"),
        # pyspark looks for pandas and numpy features that pandas 3 has dropped; none of them is used here.
        pytest.mark.filterwarnings("ignore:.*pandas.*:FutureWarning"),
        # Sockets to the Java process are closed by its end.
        pytest.mark.filterwarnings("ignore::ResourceWarning"),
        pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    ],
)


def awkward_rows(count: int, seed: int) -> list[list[str]]:
    """Rows whose texts sort otherwise by characters, UTF-16 or locale than by UTF-8 bytes."""
    texts = ["a", "A", "Z", "ä", "z", "\uffee", "😀", "aa", "a ", " a", "a\u0301", "ß", "10", "9", "Ａ"]
    draw = np.random.default_rng(seed)
    rows = random_rows(count, seed)
    for row in rows:
        row[COLUMNS.index("site")] = texts[draw.integers(len(texts))]
    return rows


@pytest.mark.parametrize("engine", ["polars", spark])
def test_engines_give_the_same_bytes(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (4000,))
    plan = config(split={"kind": "time", "column": "raw", "train": 0.8, "valid": 0.1, "test": 0.1})
    rows = awkward_rows(600, 5)
    for index, row in enumerate(rows):
        row[COLUMNS.index("raw")] = str(index % 7)
    first, second = write_csv(tmp_path / "a.csv", rows[:400]), write_csv(tmp_path / "b.csv", rows[400:])
    prepare(plan, [str(first)], tmp_path / "duckdb", shard_rows=100)
    prepare(plan, [str(first)], tmp_path / "other", shard_rows=100, engine=engine, threads=2)
    assert data_files(tmp_path / "other") == data_files(tmp_path / "duckdb")
    update(tmp_path / "duckdb", [str(second)], shard_rows=100)
    update(tmp_path / "other", [str(second)], shard_rows=100, engine=engine, threads=2)
    assert data_files(tmp_path / "other") == data_files(tmp_path / "duckdb")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv", "duckdb", "other"]


def mixed_forms(folder: Path, rows: int) -> list[str]:
    """The same columns as a text file, and as two Parquet files of other types."""
    draw = np.random.default_rng(7)
    ids, flags, cents = draw.integers(-20, 20, rows), draw.integers(0, 2, rows), draw.integers(0, 900, rows)
    whens = [datetime(2026, 1, 5) + timedelta(hours=int(one)) for one in draw.integers(0, 60, rows)]
    tags = [[str(one) for one in draw.integers(0, 9, count)] for count in draw.integers(0, 4, rows)]
    clicks = pa.array(draw.integers(0, 2, rows))
    columns = {
        "text": {
            "id": [f"{one}.0" if one % 2 else str(one) for one in ids],
            "flag": [("False", "TRUE")[one] for one in flags],
            "cost": [f"{one / 100:.2f}" for one in cents],
            "when": [one.isoformat() for one in whens],
            "tags": ["|".join(one) for one in tags],
        },
        "numbers": {
            "id": pa.array(ids.astype(float)),
            "flag": pa.array(flags.astype(np.int8)),
            "cost": pa.array([Decimal(int(one)) / 100 for one in cents], pa.decimal128(12, 4)),
            "when": pa.array(whens, pa.timestamp("ns")),
            "tags": pa.array([[int(one) for one in row] for row in tags], pa.large_list(pa.int16())),
        },
        "others": {
            "id": pa.array([str(one) for one in ids]).dictionary_encode(),
            "flag": pa.array(flags == 1),
            "cost": pa.array(cents / 100),
            "when": pa.array(whens, pa.timestamp("s")),
            "tags": pa.array(tags, pa.list_(pa.string())),
        },
    }
    third = rows // 3
    tables = {name: pa.table({"y": clicks, **of}) for name, of in columns.items()}
    csv.write_csv(tables["text"].slice(0, third), folder / "a.csv")
    pq.write_table(tables["numbers"].slice(third, third), folder / "b.parquet", row_group_size=40)
    pq.write_table(tables["others"].slice(2 * third), folder / "c.parquet")
    csv.write_csv(tables["text"], folder / "whole.csv")
    return [str(folder / name) for name in ("a.csv", "b.parquet", "c.parquet")]


MIXED = DataConfig.model_validate(
    {
        "label": "y",
        "split": {"kind": "ordered", "train": 0.8, "valid": 0.1, "test": 0.1},
        "fields": {
            "categorical": ["id", "flag", "cost", "when"],
            "numeric": {"price": {"column": "cost", "transform": "quantile", "buckets": 4}},
            "multi_valued": {"tags": {"max_length": 3}},
        },
    }
)


@pytest.mark.parametrize("engine", ["polars", spark])
def test_engines_agree_on_mixed_forms_also_when_interrupted(tmp_path: Path, engine: str) -> None:
    files = mixed_forms(tmp_path, 300)
    prepare(MIXED, [str(tmp_path / "whole.csv")], tmp_path / "text", shard_rows=50, threads=1)
    counting = Stop(-1)
    prepare(MIXED, files, tmp_path / "duckdb", shard_rows=50, threads=1, progress=counting)
    want = data_files(tmp_path / "duckdb")
    # The forms differ, what is found in them does not: the ids, numbers and tokens are those of the text alone.
    text = data_files(tmp_path / "text")
    assert {name: text[name] for name in text if name != "schema.json"} == {
        name: want[name] for name in want if name != "schema.json"
    }
    # Stopped twice, by one engine after the other, and ended by either.
    for at in (2, counting.seen // 2, counting.seen - 2):
        for first, then in ((engine, "duckdb"), ("duckdb", engine)):
            with pytest.raises(KeyboardInterrupt):
                prepare(MIXED, files, tmp_path / "data", shard_rows=50, threads=2, engine=first, progress=Stop(at))
            prepare(MIXED, files, tmp_path / "data", shard_rows=50, threads=2, engine=then)
            assert data_files(tmp_path / "data") == want, (first, at)
            shutil.rmtree(tmp_path / "data")


@pytest.mark.parametrize("engine", ["polars", spark])
def test_errors_of_the_data_are_those_of_the_default_engine(tmp_path: Path, engine: str) -> None:
    pq.write_table(pa.table({"y": [0, 1] * 9, "site": [[1]] * 18}), tmp_path / "log.parquet")
    plan = DataConfig.model_validate({"label": "y", "fields": {"categorical": ["site"]}})
    for name in ("duckdb", engine):
        with pytest.raises(DataError, match=r"column 'site' holds list<.*> values, which have no certain text"):
            prepare(plan, [str(tmp_path / "log.parquet")], tmp_path / "data", engine=name, threads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_an_absent_engine_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    log = write_csv(tmp_path / "log.csv", random_rows(50, 3))
    (tmp_path / "data.yaml").write_text("label: y\nfields: {categorical: [site]}\n")
    words = ["prepare", "--config", str(tmp_path / "data.yaml"), "-i", str(log), "-o", str(tmp_path / "data")]
    with pytest.raises(SystemExit) as done:
        main([*words, "--engine", "polars"])
    assert done.value.code == 2
    assert "--engine polars needs polars: pip install 'dmoe[polars]'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.yaml", "log.csv"]


@pytest.mark.skipif(NO_SPARK, reason="pyspark is not installed")
def test_absent_java_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_engines.shutil, "which", lambda _: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    log = write_csv(tmp_path / "log.csv", random_rows(50, 3))
    with pytest.raises(MissingExtraError, match="needs Java 17 or newer"):
        prepare(config(), [str(log)], tmp_path / "data", engine="spark")
    with pytest.raises(ConfigError, match="--spark-master goes with --engine spark only"):
        prepare(config(), [str(log)], tmp_path / "data", spark_master="local[1]")
