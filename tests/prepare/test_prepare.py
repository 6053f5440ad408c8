"""`prepare` and `RawEncoder` against the slow reference, and what must not change a result."""

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.config.data import DataConfig
from dmoe.prepare.prepare import prepare
from dmoe.schema import Schema, vocabulary_path
from dmoe.sources import lines
from tests.prepare import reference
from tests.prepare.logs import COLUMNS, SPLITS, config, random_rows, read_split, write_csv


def expected(rows: list[list[str]], sizes: Sequence[int]) -> tuple[dict[str, dict[str, int]], dict[str, list[Any]]]:
    """Vocabularies, and the columns of all rows, by loops."""
    missing = ("", "?")

    def token(row: list[str], field: str) -> str | None:
        cell = row[COLUMNS.index("time" if field == "weekday" else field)]
        if cell in missing:
            return None
        if field == "weekday":
            day = np.datetime64(f"20{cell[:2]}-{cell[2:4]}-{cell[4:6]}")
            return str((int(day.astype(int)) + 4) % 7)  # 1970-01-01 was a Thursday
        if field == "hits":
            x = float(cell)
            cell = str(math.floor(math.log(x) ** 2)) if x > 2 else str(int(x))
            return None if cell == "0" else cell
        return None if field == "user" and cell == "NA" else cell

    train = rows[: sizes[0]]
    vocabularies: dict[str, dict[str, int]] = {}
    columns: dict[str, list[Any]] = {}
    for field in ("hits", "site", "user", "weekday"):
        ids = reference.vocabulary([token(row, field) for row in train], 1 if field == "user" else 2)
        vocabularies[field] = ids
        columns[field] = [reference.encode(token(row, field), ids) for row in rows]
        if field == "hits":
            columns[field] = [max(one, 1) for one in columns[field]]
    for field in ("price", "age", "raw"):
        cells = [row[COLUMNS.index(field)] for row in rows]
        numbers = [None if cell in missing else reference.number(cell) for cell in cells]
        if field == "price":
            numbers = [None if x is None else math.copysign(math.log1p(abs(x)), x) for x in numbers]
        mean, scale = 0.0, 1.0
        if field != "raw":
            mean, scale = reference.mean_and_deviation([x for x in numbers[: sizes[0]] if x is not None])
        columns[field] = [0.0 if x is None else (x - mean) / scale for x in numbers]
    return vocabularies, columns


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_ids_numbers_and_splits_are_those_of_the_slow_pipeline(tmp_path: Path, seed: int, end: str) -> None:
    rows = random_rows(120, seed)
    log = write_csv(tmp_path / "log.csv", rows, end=end)
    summary = prepare(config(), [str(log)], tmp_path / "data", shard_rows=17)
    vocabularies, columns = expected(rows, (72, 24, 24))
    for field, ids in vocabularies.items():
        table = pq.read_table(vocabulary_path(tmp_path / "data", field))
        assert dict(zip(table["value"].to_pylist(), table["id"].to_pylist(), strict=True)) == ids
        assert table["id"].to_pylist() == list(range(2, len(ids) + 2))
        counts: list[Any] = table["count"].to_pylist()
        assert counts == sorted(counts, reverse=True)
    start = 0
    for split, size in zip(SPLITS, (72, 24, 24), strict=True):
        table = read_split(tmp_path / "data", split)
        assert table.num_rows == size == summary["splits"][split]["rows"]
        assert table.column_names == ["price", "age", "raw", "hits", "site", "user", "weekday", "y"]
        for field in columns:
            want = columns[field][start : start + size]
            if field in vocabularies:
                assert table.schema.field(field).type == pa.int32()
                assert table[field].to_pylist() == want, field
            else:
                assert table.schema.field(field).type == pa.float32()
                np.testing.assert_allclose(table[field].to_numpy(), want, rtol=1e-6, atol=1e-7)
        assert table["y"].to_pylist() == [int(row[1]) for row in rows[start : start + size]]
        start += size
    schema = Schema.read(tmp_path / "data")
    assert [field.name for field in schema.fields] == list(config().fields.numeric) + list(config().fields.categorical)
    assert DataConfig.model_validate(schema.source) == config()


@settings(max_examples=25)
@given(
    values=st.lists(
        st.text(st.characters(exclude_characters='\r\n\0,"', codec="utf-8"), min_size=1, max_size=3),
        min_size=4,
        max_size=30,
    ),
    min_count=st.integers(1, 3),
)
def test_vocabulary_of_any_text(values: list[str], min_count: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    log = folder / "log.csv"
    log.write_bytes("".join(["y,v\n", *(f"{index % 2},{value}\n" for index, value in enumerate(values))]).encode())
    only = DataConfig.model_validate(
        {
            "label": "y",
            "split": {"train": 1, "valid": 0, "test": 0},
            "fields": {"categorical": ["v"], "min_count": min_count},
        }
    )
    prepare(only, [str(log)], folder / "data")
    ids = reference.vocabulary(values, min_count)
    assert read_split(folder / "data", "train")["v"].to_pylist() == [ids.get(value, 1) for value in values]
    assert not (folder / "data" / "valid").exists()


def data_files(folder: Path) -> dict[str, bytes]:
    names = sorted(
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != "summary.json"
    )
    return {str(name): (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("kind", ["random", "stratified", "ordered"])
def test_threads_and_chunks_change_no_byte(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_csv(tmp_path / "log.csv", random_rows(3000, 7))
    plan = config(split={"kind": kind})
    for threads in (1, 2, 3):
        prepare(plan, [str(log)], tmp_path / f"threads-{threads}", threads=threads)
    assert (
        data_files(tmp_path / "threads-1") == data_files(tmp_path / "threads-2") == data_files(tmp_path / "threads-3")
    )
    # Small chunks and shards: equal rows. (Sums of floats may round otherwise, so the scale is compared apart.)
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (5000,))
    prepare(plan, [str(log)], tmp_path / "small", shard_rows=333)
    for split in SPLITS:
        want, got = read_split(tmp_path / "threads-1", split), read_split(tmp_path / "small", split)
        for name in want.column_names:
            if name in ("price", "age"):
                np.testing.assert_allclose(got[name].to_numpy(), want[name].to_numpy(), rtol=1e-6, atol=1e-7)
            else:
                assert got[name].to_pylist() == want[name].to_pylist()
    assert [pq.read_metadata(p).num_rows for p in sorted((tmp_path / "small" / "train").iterdir())][:2] == [333, 333]


def test_gzip_several_files_globs_and_byte_order_mark_give_the_same_data(tmp_path: Path) -> None:
    rows = random_rows(90, 3)
    whole = write_csv(tmp_path / "whole.csv", rows)
    prepare(config(), [str(whole)], tmp_path / "one")
    first = write_csv(tmp_path / "part-0.csv", rows[:40])
    first.write_bytes(b"\xef\xbb\xbf" + first.read_bytes())
    second = write_csv(tmp_path / "plain.csv", rows[40:])
    (tmp_path / "part-1.csv").write_bytes(gzip.compress(second.read_bytes()))
    summary = prepare(config(), [str(tmp_path / "part-*.csv")], tmp_path / "two")
    assert [file["encoded"] for file in summary["files"]] == [40, 50]
    for split in SPLITS:
        want, got = read_split(tmp_path / "one", split), read_split(tmp_path / "two", split)
        for name in set(want.column_names) - {"price", "age"}:
            assert got[name].to_pylist() == want[name].to_pylist()


def test_parquet_and_tsv_inputs_equal_csv(tmp_path: Path) -> None:
    rows = random_rows(60, 5)
    plan = config(split={"kind": "random", "seed": 2})
    prepare(plan, [str(write_csv(tmp_path / "log.csv", rows))], tmp_path / "csv")
    (tmp_path / "log.tsv").write_text("".join("\t".join(row) + "\n" for row in [COLUMNS, *rows]))
    prepare(plan, [str(tmp_path / "log.tsv")], tmp_path / "tsv")
    typed: dict[str, Any] = {name: [row[index] for row in rows] for index, name in enumerate(COLUMNS)}
    typed["y"] = [int(value) for value in typed["y"]]
    typed["time"] = [int(value) for value in typed["time"]]
    typed["hits"] = [None if value == "" else float(value) for value in typed["hits"]]
    typed["age"] = [None if value == "?" else int(value) for value in typed["age"]]
    pq.write_table(pa.table(typed), tmp_path / "log.parquet", row_group_size=7)
    prepare(plan, [str(tmp_path / "log.parquet")], tmp_path / "parquet")
    for split in SPLITS:
        want = read_split(tmp_path / "csv", split)
        assert read_split(tmp_path / "tsv", split).equals(want)
        assert read_split(tmp_path / "parquet", split).equals(want)


@pytest.mark.parametrize("form", ["number", "unix"])
def test_time_split_orders_by_value_then_row_and_keeps_file_order(tmp_path: Path, form: str) -> None:
    rows = random_rows(100, 11)
    for index, row in enumerate(rows):
        row[COLUMNS.index("raw")] = str([9, 10, 5, 100, 9][index % 5])
        row[1] = str(index // 5 % 2)
    log = write_csv(tmp_path / "log.csv", rows)
    prepare(config(split={"kind": "time", "column": "raw", "format": form}), [str(log)], tmp_path / "data")
    order = sorted(range(100), key=lambda row: (float(rows[row][COLUMNS.index("raw")]), row))
    for split, members in zip(SPLITS, (order[:80], order[80:90], order[90:]), strict=True):
        got = read_split(tmp_path / "data", split)["raw"].to_pylist()
        assert got == [float(rows[row][COLUMNS.index("raw")]) for row in sorted(members)]


def test_given_splits_take_one_input_each(tmp_path: Path) -> None:
    rows = random_rows(60, 13)
    for name, part in zip(SPLITS, (rows[:30], rows[30:45], rows[45:]), strict=True):
        write_csv(tmp_path / f"{name}.csv", part)
    inputs = [f"{name}={tmp_path / name}.csv" for name in ("test", "train", "valid")]
    prepare(config(split={"kind": "given"}), inputs, tmp_path / "data")
    _, columns = expected(rows, (30, 15, 15))
    assert [read_split(tmp_path / "data", name)["site"].to_pylist() for name in SPLITS] == [
        columns["site"][:30],
        columns["site"][30:45],
        columns["site"][45:],
    ]
    summary = json.loads((tmp_path / "data" / "summary.json").read_text())
    assert summary["splits"]["train"]["rows"] == 30


def test_summary_counts_missing_and_unseen_values(tmp_path: Path) -> None:
    rows = random_rows(120, 0)
    summary = prepare(config(), [str(write_csv(tmp_path / "log.csv", rows))], tmp_path / "data")
    vocabularies, columns = expected(rows, (72, 24, 24))
    site = summary["fields"]["site"]
    assert site["distinct_in_train"] == len({row[2] for row in rows[:72]} - {"", "?"})
    assert site["vocabulary_size"] == len(vocabularies["site"]) + 2
    for split, part in zip(SPLITS, (slice(72), slice(72, 96), slice(96, 120)), strict=True):
        ids = columns["site"][part]
        assert site["missing"][split] == ids.count(0) / len(ids)
        assert site["unseen"][split] == ids.count(1) / (len(ids) - ids.count(0))
        empty = [row[COLUMNS.index("raw")] == "" for row in rows[part]]
        assert summary["fields"]["raw"]["missing"][split] == sum(empty) / len(empty)
        # Missing is counted as such where it shares the id of unseen values.
        nothing = [row[COLUMNS.index("hits")] in ("", "0") for row in rows[part]]
        assert summary["fields"]["hits"]["missing"][split] == sum(nothing) / len(nothing)


cells = st.tuples(
    st.sampled_from(["0", "1", "1.0", "", "2", "no"]),
    st.sampled_from(["a", "b", "", '"x,y"', 'c"']),
    st.sampled_from(["1", "", "-2.5", "1e39", "x", " 7 ", "nan", "+3", "1,2"]),
)


@settings(max_examples=60)
@given(lines=st.lists(cells, max_size=25))
def test_bad_rows_go_and_the_others_stay(
    lines: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bad")
    log = folder / "log.csv"
    # One good row of each class at either end, so that there is always something to keep.
    text = [("0", "a", "5"), ("1", "b", "6"), *lines, ("0", "b", "8"), ("1", "a", "9")]
    data = "".join(",".join(line) + "\n" for line in [("y", "v", "n"), *text]).encode()
    log.write_bytes(data)
    plan = DataConfig.model_validate(
        {
            "label": "y",
            "split": {"train": 1, "valid": 0, "test": 0},
            "fields": {"categorical": ["v"], "numeric": ["n"]},
        }
    )
    summary = prepare(plan, [str(log)], folder / "data", max_rejects=1000)
    parsed, rejected, _ = reference.parse_file(data, 3, ",", '"', header=True)
    good = []
    for line, (y, v, n) in parsed:
        if reference.number(y) not in (0.0, 1.0):
            rejected.append((line, "label is not 0 or 1" if y.strip() else "label is missing"))
        elif n and reference.number(n) is None:
            rejected.append((line, "number out of range" if n == "1e39" else "not a number"))
        else:
            good.append((int(float(y)), v or None, reference.number(n) if n else 0.0))
    ids = reference.vocabulary([v for _, v, _ in good], 1)
    got = read_split(folder / "data", "train").to_pylist()
    assert [(row["y"], row["v"], row["n"]) for row in got] == [(y, reference.encode(v, ids), n) for y, v, n in good]
    rejects = pq.read_table(folder / "data" / "rejects.parquet").to_pylist()
    assert [(row["line"], row["reason"]) for row in rejects] == sorted(rejected)
    assert summary["rows"] == {"read": len(text), "encoded": len(good), "rejected": len(rejected)}
