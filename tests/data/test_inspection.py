"""`dmoe inspect`: columns are what they are, and the suggested data.yaml prepares the log as it is."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dmoe.cli.main import main
from dmoe.data.config import read_data_config
from dmoe.data.inspection import inspect_log
from dmoe.data.prepare import prepare
from dmoe.data.update import update
from dmoe.errors import DataError
from dmoe.schema import Schema

from .logs import config, random_rows, write_csv

KINDS = {
    "id": "row id",
    "site": "categorical",
    "telling": "categorical",
    "hits": "numeric",
    "price": "numeric",
    "code": "categorical",
    "same": "constant",
    "when": "time",
}


def columns(rows: int, when: str = "iso") -> dict[str, list[str]]:
    """A log with a column of every kind; `telling` says most about the label."""
    draw = np.random.default_rng(0)
    click = draw.integers(2, size=rows)
    hours = np.sort(draw.integers(72, size=rows))
    stamps = [np.datetime64("2014-10-21T00") + np.timedelta64(int(hour), "h") for hour in hours]
    written = {
        "iso": [str(stamp).replace("T", " ") + ":00:00" for stamp in stamps],
        "unix": [str(stamp.astype("datetime64[s]").astype(int)) for stamp in stamps],
        "yymmddhh": [str(stamp)[2:].replace("-", "").replace("T", "") for stamp in stamps],
    }[when]
    return {
        "id": [str(10**9 * 7 + index) for index in range(rows)],
        "click": [str(one) for one in click],
        "site": [f"s{one}" for one in draw.integers(40, size=rows)],
        "telling": ["ab"[one] if draw.random() < 0.8 else "c" for one in click],
        "hits": ["NA" if draw.random() < 0.1 else str(int(one)) for one in draw.exponential(20, size=rows)],
        "price": [f"{one:.2f}" for one in draw.lognormal(size=rows)],
        "code": [str(375 + int(one)) for one in draw.integers(60, size=rows)],
        "same": ["x"] * rows,
        "when": written,
    }


def write(path: Path, table: dict[str, list[str]], *, header: bool = True, delimiter: str = ",") -> Path:
    lines = [delimiter.join(row) for row in zip(*table.values(), strict=True)]
    text = "\n".join([*([delimiter.join(table)] if header else []), *lines]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("when", ["iso", "unix", "yymmddhh"])
@pytest.mark.parametrize("form", ["csv", "tsv.gz", "parquet", "bare"])
def test_the_suggestion_works_as_it_is(
    tmp_path: Path, when: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = columns(3000, when)
    if form == "parquet":
        log = tmp_path / "log.parquet"
        pq.write_table(pa.table(table), log)
    elif form == "bare":
        log = write(tmp_path / "log.txt", table, header=False, delimiter="|")
    else:
        log = write(tmp_path / f"log.{form}", table, delimiter="\t" if form == "tsv.gz" else ",")
    with pytest.raises(SystemExit) as done:
        main(["inspect", str(log)])
    assert not done.value.code
    captured = capsys.readouterr()
    assert "3,000 rows, 0 not readable" in captured.err
    (tmp_path / "data.yaml").write_text(captured.out)
    found = inspect_log([str(log)], label=None, max_rows=10**6)
    named = dict(zip(table, [f"c{index}" for index in range(9)] if form == "bare" else table, strict=True))
    assert found.label == named["click"]
    assert {one.name: one.kind for one in found.columns} == {named[name]: kind for name, kind in KINDS.items()}
    facts = {one.name: one for one in found.columns}
    assert facts[named["hits"]].missing == pytest.approx(table["hits"].count("NA") / 3000)
    assert facts[named["site"]].distinct == 40
    assert max(found.columns, key=lambda one: one.information).name == named["telling"]
    assert facts[named["when"]].format == when
    assert [start for start, _, _ in found.rates] == ["2014-10-21", "2014-10-22", "2014-10-23"]
    assert sum(rows for _, rows, _ in found.rates) == 3000
    summary = prepare(read_data_config(tmp_path / "data.yaml"), [str(log)], tmp_path / "data", max_rejects=0)
    assert summary["rows"]["encoded"] == 3000
    fields = {field.name for field in Schema.read(tmp_path / "data").fields}
    taken = {named[name] for name, kind in KINDS.items() if kind in ("categorical", "numeric")}
    assert fields == taken | {"hour", "weekday", "weekend"}


def test_a_label_may_be_named_and_the_first_rows_be_enough(tmp_path: Path) -> None:
    table = columns(2000)
    table["other"] = [str(1 - int(one)) for one in table["click"]]
    log = write(tmp_path / "log.csv", table)
    found = inspect_log([str(log)], label="other", max_rows=500)
    assert (found.rows, found.whole, found.label) == (500, False, "other")
    assert found.rate == table["other"][:500].count("1") / 500
    assert max(found.columns, key=lambda one: one.information).name == "click"


def test_rows_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", columns(300))
    log.write_text(log.read_text() + "short\n" + log.read_text().splitlines()[1].replace(",0,", ",7,", 1) + "\n")
    found = inspect_log([str(log)], label="click", max_rows=1000)
    assert found.rows + found.rejected == 302
    assert found.rejected >= 1


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("a,b\nx,y\n", None, r"log\.csv: no column holds 0 and 1 only; name the label by --label"),
        ("a,b\n0,y\n1,z\n", "c", r"no column 'c' to be the label; it has a, b"),
        ("a,b\n0,y\n1,z\n", "b", r"label 'b' holds neither 0 nor 1"),
        ("a\n0\n1\n", None, r"log\.csv:1: one column only"),
        ("a,b\n0,y\n1,y\n", None, "no column can be a field"),
        ("a,b\n", None, "holds a header but no rows"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(tmp_path: Path, text: str, label: str | None, message: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        inspect_log([str(tmp_path / "log.csv")], label=label, max_rows=100)


@pytest.mark.parametrize("file", ["avazu/train.csv.gz", "criteo/train.txt.gz"])
def test_real_logs(real_data: Path, tmp_path: Path, file: str) -> None:
    found = inspect_log([str(real_data / file)], label=None, max_rows=20_000)
    (tmp_path / "data.yaml").write_text(found.yaml())
    numeric = sum(one.kind == "numeric" for one in found.columns)
    # Of Criteo's 13 counts one has so few values that it is taken for a category.
    assert numeric == (0 if file.startswith("avazu") else 12)
    plan = read_data_config(tmp_path / "data.yaml")
    summary = prepare(plan, [str(real_data / file)], tmp_path / "data", max_rejects=0)
    assert summary["rows"]["rejected"] == 0


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words] + ["--json"])
    assert not done.value.code
    return json.loads(capsys.readouterr().out)


def test_a_data_set_shows_groups_fields_and_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(config(), [str(write_csv(tmp_path / "a.csv", random_rows(200, 1)))], tmp_path / "data")
    update(tmp_path / "data", [str(write_csv(tmp_path / "b.csv", random_rows(100, 2)))])
    found = run_json(capsys, "inspect", tmp_path / "data")
    names = ["train", "train, update 1", "valid", "valid, update 1", "test", "test, update 1"]
    assert [(group["name"], group["rows"]) for group in found["groups"]] == list(
        zip(names, [120, 60, 40, 20, 40, 20], strict=True)
    )
    assert {field["name"] for field in found["fields"]} == {
        field.name for field in Schema.read(tmp_path / "data").fields
    }
    assert yaml.safe_load(found["data_yaml"])["label"] == "y"
    (tmp_path / "again.yaml").write_text(found["data_yaml"])
    assert read_data_config(tmp_path / "again.yaml") == config()
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "data")])
    captured = capsys.readouterr()
    assert yaml.safe_load(captured.out) == yaml.safe_load(found["data_yaml"])
    assert "test, update 1: 20 rows" in captured.err
    with pytest.raises(SystemExit) as done:
        main(["inspect", str(tmp_path / "data"), "--label", "y"])
    assert done.value.code == 2
