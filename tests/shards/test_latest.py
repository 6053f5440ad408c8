"""The latest rows of a data set against preparing a log that begins there."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from pyarrow import parquet

from dmoe.cli.main import main
from dmoe.errors import ConfigError
from dmoe.schema import Schema
from dmoe.shards.latest import write_latest
from dmoe.shards.reader import read_once
from dmoe.training.log_facts import measure_log

TRAIN, REST = 600, 100


def _log(path: Path) -> None:
    random = np.random.default_rng(5)
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["click", "user", "tags", "price"])
        for row in range(TRAIN + 2 * REST):
            # Users come and go; some rows have none.
            user = "" if random.random() < 0.05 else f"u{row // 40 + random.geometric(0.3)}"
            tags = "|".join(f"t{random.geometric(0.2)}" for _ in range(random.integers(0, 4)))
            lines.writerow([int(random.random() < 0.4), user, tags, round(random.normal(), 3)])


def _prepare(folder: Path, log: Path, shares: tuple[float, float, float]) -> Path:
    config = {
        "label": "click",
        "split": {"kind": "ordered", **dict(zip(("train", "valid", "test"), shares, strict=True))},
        "fields": {
            "min_count": 2,
            "categorical": ["user"],
            "multi_valued": {"tags": {"separator": "|", "max_length": 3, "min_count": 3}},
            "numeric": ["price"],
        },
    }
    folder.mkdir()
    (folder / "data.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "--config", str(folder / "data.yaml"), "-i", str(log), "-o", str(folder / "set")])
    assert ended.value.code == 0
    return folder / "set"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data set of a whole log, and that of its end, which begins in the middle of train."""
    folder = tmp_path_factory.mktemp("logs")
    _log(folder / "log.csv")
    lines = (folder / "log.csv").read_text().splitlines(keepends=True)
    (folder / "end.csv").write_text("".join([lines[0], *lines[1 + TRAIN - 200 :]]))
    whole = _prepare(folder / "whole", folder / "log.csv", (0.75, 0.125, 0.125))
    return whole, _prepare(folder / "end", folder / "end.csv", (0.5, 0.25, 0.25))


def test_the_part_is_what_preparing_it_alone_gives(logs: tuple[Path, Path], tmp_path: Path) -> None:
    whole, prepared = logs
    write_latest(whole, 200, tmp_path / "part")
    ours, theirs = Schema.read(tmp_path / "part"), Schema.read(prepared)
    assert ours.fields == theirs.fields
    assert ours.vocabulary_sizes != Schema.read(whole).vocabulary_sizes
    assert ours.coverage == theirs.coverage
    for split in ("train", "valid", "test"):
        first, second = (parquet.read_table(folder / split).to_pylist() for folder in (tmp_path / "part", prepared))
        assert first == second
        assert len(first) == (200 if split == "train" else 100)
    for field in ("user", "tags"):
        name = f"vocabulary/{field}.parquet"
        assert parquet.read_table(tmp_path / "part" / name).equals(parquet.read_table(prepared / name))
    facts, known = measure_log(tmp_path / "part", ours), measure_log(prepared, theirs)
    assert (facts.rows, facts.labelled, facts.unseen) == (known.rows, known.labelled, known.unseen)


def test_all_rows_are_the_log_itself_and_parts_are_nested(logs: tuple[Path, Path], tmp_path: Path) -> None:
    whole, _ = logs
    for rows in (TRAIN, 80):
        write_latest(whole, rows, tmp_path / str(rows))
    for split in ("train", "test"):
        assert parquet.read_table(tmp_path / str(TRAIN) / split).equals(parquet.read_table(whole / split))
    write_latest(tmp_path / str(TRAIN), 200, tmp_path / "first")
    write_latest(tmp_path / "first", 80, tmp_path / "second")
    for split in ("train", "valid", "test"):
        first, second = (parquet.read_table(tmp_path / name / split) for name in ("80", "second"))
        assert first.equals(second)
    assert read_once(tmp_path / "80", "train", batch_size=8).num_rows == 80


@pytest.mark.parametrize("rows", [0, TRAIN + 1])
def test_rows_that_are_not_there_are_refused(logs: tuple[Path, Path], tmp_path: Path, rows: int) -> None:
    with pytest.raises(ConfigError, match=f"train split holds 600 rows, so its latest {rows} cannot be taken"):
        write_latest(logs[0], rows, tmp_path / "part")
    assert not list(tmp_path.iterdir())
