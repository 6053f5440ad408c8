"""`dmoe inspect`: columns are what they are, and the suggested data.yaml prepares the log as it is."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dmoe.cli.main import main
from dmoe.config.data import read_data_config
from dmoe.errors import DataError
from dmoe.inspection import inspect_log
from dmoe.inspection.times import looks_like_times, parts_of, read_times
from dmoe.prepare.prepare import prepare
from dmoe.prepare.update import update
from dmoe.schema import Schema
from tests.prepare.logs import config, random_rows, write_csv

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
    # Three days: they are too few for weekdays.
    assert fields == taken | {"hour"}


def test_the_id_of_a_session_is_no_field(tmp_path: Path) -> None:
    """It comes in two rows that follow each other and never again; the ids of users who come back stay."""
    table = columns(3000)
    table["session"] = [f"s{10**6 + 7919 * (index // 2)}" for index in range(3000)]
    table["number"] = [str(10**6 + 7919 * (index // 2 * 17 % 1500)) for index in range(3000)]
    draw = np.random.default_rng(2)
    table["user"] = [f"u{one}" for one in draw.integers(3000, size=3000)]
    found = inspect_log([str(write(tmp_path / "log.csv", table))], label="click", max_rows=10**6)
    kinds = {one.name: one.kind for one in found.columns}
    assert [kinds[name] for name in ("session", "number", "user")] == ["row id", "row id", "categorical"]
    assert "session: 100% of later rows have a value that no earlier row has" in found.yaml()
    assert not {"session", "number"} & {one.field for one in found.warnings}


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
        ("a,b\n0,y\n1,z\n", "b", r"label 'b' holds 'y', 'z', not 0 and 1; say which are a click by --positive VALUE"),
        ("a\n0\n1\n", None, r"log\.csv:1: one column only"),
        ("a,b\n0,y\n1,y\n", None, "no column can be a field"),
        ("a,b\n", None, "holds no row"),
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
    # Of Criteo's 13 counts one or two have so few values that they tell more as categories.
    assert numeric in ((0,) if file.startswith("avazu") else (11, 12))
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


def log_of(tmp_path: Path, rows: int, seed: int = 0, **made: Callable[[np.random.Generator, int], Any]) -> Path:
    """A CSV log; each column is made of a generator and 40 hidden kinds of rows, whose click rates differ widely."""
    draw = np.random.default_rng(seed)
    kinds = draw.integers(40, size=rows)
    rates = np.random.default_rng(99).beta(0.6, 1.4, size=40)
    table = {"click": (draw.random(rows) < rates[kinds]).astype(int).astype(str).tolist()}
    table |= {name: [str(one) for one in (make(draw, kind) for kind in kinds.tolist())] for name, make in made.items()}
    path = tmp_path / "log.csv"
    path.write_text("\n".join(csv_line(row) for row in [list(table), *zip(*table.values(), strict=True)]) + "\n")
    return path


def csv_line(row: Sequence[str]) -> str:
    return ",".join(f'"{one}"' if "," in one else one for one in row)


def test_what_a_reading_would_lose_stays_a_category(tmp_path: Path) -> None:
    log = log_of(
        tmp_path,
        6000,
        seconds_like=lambda _, kind: 1_500_000_000 + 7919 * kind,
        hours_like=lambda _, kind: f"20141021{kind % 24:02}" if kind < 24 else f"20141022{kind % 24:02}",
        floated=lambda _, kind: f"{100 + kind}.0",
        version=lambda _, kind: f"{1 + kind // 10}.{kind % 10}",
        country=lambda _, kind: "NA" if kind < 4 else f"C{kind}",
        price=lambda draw, _: "NA" if draw.random() < 0.05 else f"{draw.lognormal():.3f}",
        amount=lambda draw, _: "null" if draw.random() < 0.05 else f"{draw.lognormal():.3f}",
        python=lambda draw, _: [str(one) for one in draw.integers(9, size=draw.integers(4)).tolist()],
        json=lambda draw, _: json.dumps(draw.integers(9, size=draw.integers(4)).tolist()),
        numpy=lambda draw, _: draw.integers(9, size=draw.integers(4)),
        braces=lambda draw, _: "{" + ";".join(map(str, draw.integers(9, size=draw.integers(4)))) + "}",
        clock=lambda draw, _: f"{draw.integers(24):02}:{draw.integers(60):02}:{draw.integers(60):02}",
        day=lambda draw, _: f"201201{draw.integers(1, 23):02}",
    )
    found = inspect_log([str(log)], label=None, max_rows=10**6)
    kinds = {one.name: one.kind for one in found.columns}
    assert {name for name, kind in kinds.items() if kind == "numeric"} == {"price", "amount"}
    assert {name for name, kind in kinds.items() if kind == "time"} == {"hours_like", "day"}
    # The word for a missing price is a country: it is missing in the price alone.
    assert "missing_values" not in found.config["fields"]["numeric"]["amount"]
    assert found.config["fields"]["numeric"]["price"]["missing_values"] == ["NA"]
    assert found.config["format"]["missing"] == ["", "null"]
    # Days have no hour.
    taken = {(one["column"], one["take"], one["format"]) for one in found.config["derive"].values()}
    assert {one for one in taken if one[0] == "day"} == {("day", take, "%Y%m%d") for take in ("weekday", "weekend")}
    assert ("hours_like", "hour", "%Y%m%d%H") in taken
    text = found.yaml()
    assert yaml.safe_load(text) == found.config
    for line in (
        "- country  # 'NA' is a value",
        "- seconds_like  # may be times (unix)",
        "- python  # holds lists",
        "- numpy  # holds lists",
        # Nearly every row has one of its own.
        "#   clock: may be clock times; 'clock' has",
        "# 'NA' is missing here only: another column may have it as a value",
    ):
        assert line in text, text


@pytest.mark.parametrize("joint", ["|", ",", ", ", ";", " ", ":", "^"])
def test_lists_are_taken_apart_where_that_tells_more(tmp_path: Path, joint: str) -> None:
    def tags(draw: np.random.Generator, kind: int) -> str:
        others = [f"t{one}" for one in draw.integers(20, size=draw.integers(3))]
        return joint.join(draw.permutation([f"k{kind}", *others]).tolist())

    log = log_of(tmp_path, 5000, tags=tags, city=lambda _, kind: f"New{joint}York{kind % 3}{joint}{'x' * kind}")
    found = inspect_log([str(log)], label=None, max_rows=10**6)
    assert {one.name: (one.kind, one.format) for one in found.columns if one.name == "tags"} == {
        "tags": ("multi-valued", joint)
    }
    assert next(one for one in found.columns if one.name == "city").kind == "categorical"


def test_times_of_changing_zones_are_split_by_moment(tmp_path: Path) -> None:
    start = np.datetime64("2026-10-24T20:00:00")
    lines = ["click,site,zoned,plain"]
    draw = np.random.default_rng(0)
    for index in range(4000):
        moment = start + np.timedelta64(20 * index, "s")
        shift = (0, 5, -8)[index % 3]
        zone = f"{'-' if shift < 0 else '+'}{abs(shift):02}:00"
        lines.append(f"{draw.integers(2)},s{draw.integers(5)},{moment + np.timedelta64(shift, 'h')}{zone},x")
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    found = inspect_log([str(tmp_path / "log.csv")], label=None, max_rows=10**6)
    assert found.config["split"] == {"kind": "time", "column": "zoned", "format": "iso"}
    # In whatever order the rows stand.
    shuffled = [lines[0], *draw.permutation(lines[1:]).tolist()]
    (tmp_path / "log.csv").write_text("\n".join(shuffled) + "\n")
    assert inspect_log([str(tmp_path / "log.csv")], label=None, max_rows=10**6).config["split"] == found.config["split"]


def test_columns_of_other_types_are_left_out_by_name(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = 600
    sites = pa.array([f"s{one}" for one in draw.integers(5, size=rows)])
    table = pa.table(
        {
            "id": pa.array([bytes([index % 256]) * 16 for index in range(rows)], pa.binary(16)),
            "click": pa.array(draw.integers(2, size=rows).astype(bool)),
            "site": sites,
            "site_code": sites.dictionary_encode(),
            "box": pa.array([{"a": 1}] * rows),
            "pairs": pa.array([[("a", 1)]] * rows, pa.map_(pa.string(), pa.int32())),
            "bytes": pa.array([b"\xff\xfe"] * rows),
            "took": pa.array(draw.integers(9, size=rows), pa.duration("s")),
            "nested": pa.array([[["a"], ["b"]]] * rows),
            "none": pa.nulls(rows),
            "tags": pa.array([[f"t|{one}"] * (one % 3) for one in draw.integers(9, size=rows)]),
            "constant_or_none": pa.array(["x" if one else None for one in draw.integers(2, size=rows)]),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    found = inspect_log([str(tmp_path / "log.parquet")], label=None, max_rows=10**6)
    assert found.label == "click"
    kinds = {one.name: one.kind for one in found.columns}
    assert {name for name, kind in kinds.items() if kind == "left out"} == {
        "id", "box", "pairs", "bytes", "took", "nested"
    }  # fmt: skip
    assert (kinds["none"], kinds["tags"], kinds["constant_or_none"]) == ("constant", "multi-valued", "categorical")
    assert "#   box: struct<a: int64> values cannot be a field" in found.yaml()
    (tmp_path / "data.yaml").write_text(found.yaml())
    summary = prepare(read_data_config(tmp_path / "data.yaml"), [str(tmp_path / "log.parquet")], tmp_path / "data")
    assert summary["rows"]["encoded"] == rows
    tags = pq.read_table(tmp_path / "data" / "vocabulary" / "tags.parquet")["value"].to_pylist()
    assert set(tags) <= {f"t|{one}" for one in range(9)}


@pytest.mark.parametrize("rows", [1, 2, 5, 30])
def test_very_small_logs(tmp_path: Path, rows: int) -> None:
    (tmp_path / "log.csv").write_text("click,a\n" + "".join(f"{row % 2},v{row % 3}\n" for row in range(rows)))
    if rows == 1:
        with pytest.raises(DataError, match="holds 0 and 1 only"):
            inspect_log([str(tmp_path / "log.csv")], label=None, max_rows=100)
        with pytest.raises(DataError, match="no column can be a field"):
            inspect_log([str(tmp_path / "log.csv")], label="click", max_rows=100)
        return
    found = inspect_log([str(tmp_path / "log.csv")], label=None, max_rows=100)
    assert found.config["fields"]["categorical"] == ["a"]
    assert found.config["split"] == {"kind": "stratified"}


def test_a_wide_log_is_read_as_far_as_memory_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    names = [f"x{index}" for index in range(300)]
    lines = [",".join(["click", *names])]
    lines += [",".join(map(str, [row[0] % 2, *row])) for row in draw.integers(9, size=(800, 300)).tolist()]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("dmoe.inspection.columns.MOST_VALUES", 150_000)
    monkeypatch.setattr("dmoe.inspection.columns._LEAST_ROWS", 100)
    found = inspect_log([str(tmp_path / "log.csv")], label=None, max_rows=10**6)
    assert (found.rows, found.whole, len(found.columns)) == (150_000 // 301, False, 300)


def test_least_counts_and_splits_are_measured(tmp_path: Path) -> None:
    steady = inspect_log([str(log_of(tmp_path, 6000, site=lambda _, kind: f"s{kind}"))], label=None, max_rows=10**6)
    assert steady.config["fields"]["min_count"] == 1
    log = log_of(tmp_path, 6000, site=lambda _, kind: f"s{kind}", user=lambda draw, _: f"u{draw.zipf(1.3) % 10**6}")
    fresh = inspect_log([str(log)], label=None, max_rows=10**6)
    assert fresh.config["fields"]["min_count"] > 1
    assert "# later rows without a token of 'user', the worst:" in fresh.yaml()
    user = next(one for one in fresh.columns if one.name == "user")
    users = [line.split(",")[2] for line in log.read_text().splitlines()[1:]]
    known = Counter(users[:4200])
    for least, share in user.unseen.items():
        assert share == pytest.approx(sum(known[one] < least for one in users[4200:]) / 1800)


@pytest.mark.parametrize(
    "form",
    [
        *("%d.%m.%Y %H:%M", "%Y/%m/%d %H:%M:%S", "%m/%d/%Y %I:%M %p", "%d/%b/%Y:%H:%M:%S %z", "%b %d, %Y"),
        *("%Y%m%d%H%M%S", "%d.%m.%y", "%a %b %d %Y %H:%M:%S"),
    ],
)
def test_times_of_a_pattern_are_found_and_read_back(form: str) -> None:
    """The pattern found gives the moments that were written, to what the pattern holds."""
    days = [datetime(2024, 1, 1, 5, 7, 9, tzinfo=UTC) + timedelta(hours=31 * step) for step in range(200)]
    texts = [day.strftime(form) for day in days]
    found = read_times(texts)
    assert found is not None
    assert found.format == form
    want = [datetime.strptime(text, form).replace(tzinfo=UTC).timestamp() for text in texts]
    assert found.moments_V.tolist() == want
    assert ("hour" in parts_of(form)) == ("%H" in form or "%I" in form)


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ("{0.year}-{0.month}-{0.day}", "%Y-%m-%d"),
        ("{0:%Y-%m-%d} {0.hour}:{0:%M:%S}", "%Y-%m-%d %H:%M:%S"),
        ("{0:%Y-%m-%d}T{0.hour}:{0:%M:%S}", "%Y-%m-%dT%H:%M:%S"),
        ("{0.day}.{0.month}.{0.year} {0.hour}:{0:%M}", "%d.%m.%Y %H:%M"),
    ],
)
def test_times_without_leading_zeros_are_found(written: str, form: str) -> None:
    days = [datetime(2024, 1, 1, 5, 7, 9) + timedelta(hours=31 * step) for step in range(200)]
    found = read_times([written.format(day) for day in days])
    assert found is not None
    assert found.format == form
    assert found.weekdays_V.tolist() == [day.isoweekday() % 7 for day in days]
    assert found.hours_V.tolist() == [day.hour if "%H" in form else 0 for day in days]


def test_dates_that_two_patterns_read_are_not_guessed() -> None:
    texts = [f"{one:02}/{other:02}/2024" for one in range(1, 13) for other in range(1, 13)]
    assert read_times(texts) is None
    assert "%d/%m/%Y and %m/%d/%Y both read them all" in str(looks_like_times(texts))
    assert read_times([*texts, "13/01/2024"]).format == "%d/%m/%Y"  # type: ignore[union-attr]
    for words in (["C12", "C13 x"], ["1.2.3", "1.10.3"], ["555-12-1234"], ["2024", "2023"], ["12/13/14/15"]):
        assert read_times(words) is None, words


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"a\nb"', {"line_breaks": True}),
        ('"say \\"x\\", y"', {"escape": "backslash"}),
        ('"say \\"x\\",\n y"', {"escape": "backslash", "line_breaks": True}),
        ('5" disk', {"quote": None}),
        ('"say ""x"", y"', {}),
    ],
)
def test_what_quotes_need_is_suggested(tmp_path: Path, value: str, said: dict[str, Any]) -> None:
    """And prepares the log without a reject, which the plain format does not."""
    draw = np.random.default_rng(1)
    lines = [f"{draw.integers(2)},s{draw.integers(5)},{value if draw.random() < 0.3 else 'plain'}" for _ in range(3000)]
    (tmp_path / "log.csv").write_text("\n".join(["click,site,title", *lines]) + "\n")
    found = inspect_log([str(tmp_path / "log.csv")], label=None, max_rows=10**6)
    keys = ("line_breaks", "escape", "quote")
    assert {key: found.config["format"][key] for key in keys if key in found.config["format"]} == said
    assert (found.rows, found.rejected) == (3000, 0)
    (tmp_path / "data.yaml").write_text(found.yaml())
    summary = prepare(read_data_config(tmp_path / "data.yaml"), [str(tmp_path / "log.csv")], tmp_path / "data")
    assert summary["rows"]["rejected"] == 0


def two_label_log(folder: Path, rows: int = 4000) -> Path:
    """A sale needs a click but for five rows; `fresh` tells the sale, and nobody the click."""
    draw = np.random.default_rng(3)
    site = draw.integers(5, size=rows)
    click = draw.random(rows) < 0.2 + 0.1 * site
    sale = click & (draw.random(rows) < 0.4)
    mistaken = np.flatnonzero(~click)[:5]
    sale[mistaken] = True
    table = {
        "click": click.astype(int).astype(str).tolist(),
        "site": [f"s{one}" for one in site],
        "receipt": [f"r{one:d}" for one in sale],
        "sale": [str(int(one)) if index % 10 else "" for index, one in enumerate(sale)],
        "share": (draw.random(rows) < 0.5).astype(int).astype(str).tolist(),
    }
    lines = [",".join(row) for row in [list(table), *zip(*table.values(), strict=True)]]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return folder / "log.csv"


def test_several_labels_of_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = two_label_log(tmp_path)
    found = inspect_log([str(log)], max_rows=10**6)
    assert found.config["labels"] == {"click": "click", "sale": "sale", "share": "share"}
    rows = [line.split(",") for line in log.read_text().splitlines()[1:]]
    both = sum(row[0] == "1" and row[3] == "1" for row in rows)
    ones = sum(row[3] == "1" for row in rows)
    assert [one["known"] for one in found.labels] == [4000, 3600, 4000]
    pair = next(one for one in found.pairs if (one.given, one.label) == ("sale", "click"))
    assert (pair.rows, pair.both) == (ones, both)
    other = next(one for one in found.pairs if (one.given, one.label) == ("click", "sale"))
    assert other.rows == sum(row[0] == "1" and row[3] != "" for row in rows)
    assert other.both == both
    assert f"sale: sale  # click is 1 in {both / ones:.2%} of its {ones:,} rows of 1; where it follows" in found.yaml()
    assert [one.text[:29] for one in found.warnings if one.field == "receipt"] == ["label 'sale': 'receipt' is th"]
    chosen = run_json(capsys, "inspect", log, "--label", "sale", "--label", "click")
    assert list(yaml.safe_load(chosen["data_yaml"])["labels"]) == ["sale", "click"]
    assert "- share  # may be a label; what is known only after" in chosen["data_yaml"]
    assert chosen["pairs"][0] == {"given": "sale", "label": "click", "rows": ones, "both": both, "share": both / ones}
    with pytest.raises(SystemExit) as done:
        main(["inspect", str(log), "--label", "click", "--label", "sold"])
    assert done.value.code == 2
    assert "no column 'sold' to be the label" in capsys.readouterr().err


def test_several_labels_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = two_label_log(tmp_path)
    labels = {"click": "click", "sale": {"column": "sale", "given": "click"}}
    plan = {"labels": labels, "fields": {"categorical": ["site", "receipt"]}, "split": {"kind": "random"}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    summary = prepare(read_data_config(tmp_path / "data.yaml"), [str(log)], tmp_path / "data")
    assert sum(one["contradictions"] for one in summary["labels"]["sale"]["splits"].values()) == 5
    warned = [one["text"][:29] for one in summary["warnings"] if one["field"] == "receipt"]
    assert warned == ["label 'sale': 'receipt' is th"]
    found = run_json(capsys, "inspect", tmp_path / "data")
    train = found["groups"][0]
    counts = summary["labels"]["sale"]["splits"]["train"]
    assert (train["labels"]["sale"]["known"], train["labels"]["sale"]["positives"]) == (
        counts["known"],
        counts["positives"],
    )
    assert sum(known for known, _ in train["labels"]["sale"]["blocks"]) == counts["known"]
    shares = {(one["given"], one["label"]): one["share"] for one in found["pairs"]}
    assert shares["sale", "click"] == 1
    assert shares["click", "sale"] == pytest.approx(0.4, abs=0.05)
    bits = {field["name"]: field["information_by_label"] for field in found["fields"]}
    assert bits["receipt"]["sale"] > 0.9
    assert bits["receipt"]["click"] < bits["receipt"]["sale"]
    assert yaml.safe_load(found["data_yaml"])["labels"] == labels | {"sale": {"column": "sale", "given": "click"}}
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "data")])
    told = capsys.readouterr().err
    assert re.search(r"bits of +bits of\n.* click +sale", told)
    assert f"train: {train['rows']:,} rows, sale known in {counts['known']:,}, rate 0." in told
    with pytest.raises(SystemExit):
        main(["drift", str(tmp_path / "data"), "-o", str(tmp_path / "drift.html"), "--json"])
    drift = json.loads(capsys.readouterr().out)
    assert drift["groups"][0]["label_rates"]["sale"] == pytest.approx(0.4, abs=0.1)
    page = (tmp_path / "drift.html").read_text()
    assert "Rate of sale" in page
    assert "sale: known" in page


@pytest.mark.parametrize("name", ["cate_id", "id_shop", "itemId", "shopID", "region.code", "user id", "cms_segid"])
def test_small_numbers_of_a_column_named_like_an_id_are_categories(name: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    counted = draw.zipf(1.6, size=3000) % 90
    table = {"click": draw.integers(2, size=3000), name: counted, "paid": counted, "visits": counted}
    log = tmp_path / "log.parquet"
    pq.write_table(pa.table(table), log)
    found = {one.name: one.kind for one in inspect_log([str(log)], max_rows=10**6).columns}
    assert found == {name: "categorical", "paid": "numeric", "visits": "numeric"}
