"""Every engine gives the same bytes: vocabularies, shards, rejects and schema."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmoe.cli.main import main
from dmoe.data import engine_frames, lines
from dmoe.data.config import DataConfig
from dmoe.data.prepare import prepare
from dmoe.data.update import update
from dmoe.errors import ConfigError, DataError, MissingExtraError

from .logs import COLUMNS, config, random_rows, write_csv
from .test_prepare import data_files

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
    monkeypatch.setattr(engine_frames.shutil, "which", lambda _: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    log = write_csv(tmp_path / "log.csv", random_rows(50, 3))
    with pytest.raises(MissingExtraError, match="needs Java 17 or newer"):
        prepare(config(), [str(log)], tmp_path / "data", engine="spark")
    with pytest.raises(ConfigError, match="--spark-master goes with --engine spark only"):
        prepare(config(), [str(log)], tmp_path / "data", spark_master="local[1]")
