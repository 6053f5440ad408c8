"""Harmed files: every row is read or rejected with its line, the counts add up, and errors are ours."""

import gzip
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.config.data import DataConfig
from dmoe.errors import UserError
from dmoe.prepare.prepare import prepare
from dmoe.prepare.recipes import read_recipe
from dmoe.sources.pieces import LogFile
from dmoe.sources.rejects import BAD_LABEL, NO_LABEL, NOT_A_NUMBER, NOT_A_TIME, OUT_OF_RANGE
from dmoe.tokens.fields import convert
from tests.prepare import reference
from tests.prepare.logs import COLUMNS, config, random_rows, write_csv

Harm = Callable[[bytes, random.Random], bytes]


def _splice(data: bytes, draw: random.Random, piece: bytes, cut: int = 0) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + piece + data[at + cut :]


# What goes wrong in logs, each at a random place.
HARMS: dict[str, Harm] = {
    "stray quote": lambda data, draw: _splice(data, draw, b'"'),
    "quoted value": lambda data, draw: _splice(data, draw, b',"a ""b"", c",'),
    "NUL byte": lambda data, draw: _splice(data, draw, b"\0" * draw.randrange(1, 4)),
    "carriage return": lambda data, draw: _splice(data, draw, b"\r"),
    "CRLF": lambda data, _: data.replace(b"\n", b"\r\n"),
    "some CRLF": lambda data, draw: _splice(data, draw, b"\r\n"),
    "byte order mark": lambda data, _: b"\xef\xbb\xbf" + data,
    "byte order mark inside": lambda data, draw: _splice(data, draw, b"\xef\xbb\xbf"),
    "Latin-1": lambda data, draw: _splice(data, draw, "naïve".encode("latin-1")),
    "UTF-16 piece": lambda data, draw: _splice(data, draw, "ab".encode("utf-16-le")),
    "broken UTF-8": lambda data, draw: _splice(data, draw, b"\xe2\x82"),
    "missing columns": lambda data, draw: _splice(data, draw, b"\n", cut=draw.randrange(1, 40)),
    "more columns": lambda data, draw: _splice(data, draw, b"," * draw.randrange(1, 4)),
    "tabs": lambda data, draw: _splice(data, draw, b"\t"),
    "blank lines": lambda data, draw: _splice(data, draw, b"\n" * draw.randrange(1, 5)),
    "huge value": lambda data, draw: _splice(data, draw, b"x" * draw.randrange(1, 300_000)),
    "no last line feed": lambda data, _: data.rstrip(b"\n"),
    "cut short": lambda data, draw: data[: draw.randrange(len(data))],
    "random bytes": lambda data, draw: _splice(data, draw, draw.randbytes(draw.randrange(1, 20))),
    "a line twice": lambda data, draw: _splice(data, draw, data[: data.find(b"\n") + 1]),
    "a byte changed": lambda data, draw: _splice(data, draw, draw.randbytes(1), cut=1),
}


@dataclass
class Read:
    """What reading gave: line and label of each row, line and reason of each reject, blank lines."""

    rows: list[tuple[int, int]]
    rejects: list[tuple[int, str]]
    blank_lines: int


def read(path: Path, plan: DataConfig) -> Read:
    found = Read([], [], 0)
    for piece in LogFile(path, plan).pieces():
        rows = convert(piece.read(), plan)
        assert rows.labels is not None
        found.rows += zip(rows.lines_N.tolist(), rows.labels.labels_NT[:, 0].tolist(), strict=True)
        found.rejects += [(reject.line, reject.reason) for reject in rows.rejects]
        found.blank_lines += rows.blank_lines
        assert all(len(column.codes_N) == len(rows) for column in rows.categorical.values())
        assert all(len(numbers) == len(rows) for numbers in rows.numeric.values())
    return found


def outcome(path: Path, plan: DataConfig) -> Read | str:
    """What reading gave, or the message of the error."""
    try:
        return read(path, plan)
    except UserError as error:
        return str(error)


def check_counts(data: bytes, plan: DataConfig, found: Read) -> None:
    """Each line after the header comes up once, as row, reject or blank."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    blank = [number for number, line in enumerate(lines, start=1) if not line.removesuffix(b"\r")]
    used = [number for number in range(1, len(lines) + 1) if number not in set(blank)]
    header = used[0] if plan.format.header else 0
    assert sorted([line for line, _ in found.rows] + [line for line, _ in found.rejects]) == [
        line for line in used if line > header
    ]
    assert found.blank_lines == sum(line > header for line in blank)


VALUE_FAULTS = {BAD_LABEL, NO_LABEL, NOT_A_NUMBER, NOT_A_TIME, OUT_OF_RANGE}


def of_a_value(reason: str) -> bool:
    return reason.partition(":")[0] in VALUE_FAULTS


def check_against_reference(data: bytes, plan: DataConfig, columns: int, delimiter: str, found: Read) -> None:
    """Lines that are no rows have the slow parser's reasons; of its rows only values are at fault."""
    rows, rejects, blank = reference.parse_file(data, columns, delimiter, plan.format.quote, plan.format.header)
    faults = [reject for reject in found.rejects if of_a_value(reject[1])]
    assert sorted(reject for reject in found.rejects if not of_a_value(reject[1])) == sorted(rejects)
    bad = {line for line, _ in faults}
    assert [line for line, _ in found.rows] == [line for line, _ in rows if line not in bad]
    assert bad <= {line for line, _ in rows}
    assert found.blank_lines == blank


def harmed(data: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randrange(1, 4)):
        data = HARMS[draw.choice(list(HARMS))](data, draw)
    return data


def base_log(seed: int) -> tuple[bytes, bytes]:
    """Header and rows."""
    rows = random_rows(20, seed)
    return (",".join(COLUMNS) + "\n").encode(), "".join(",".join(row) + "\n" for row in rows).encode()


def with_lists(plan: DataConfig) -> DataConfig:
    """The same with columns read as lists too."""
    values = plan.model_dump(exclude_unset=True)
    values["fields"]["multi_valued"] = {
        "words": {"column": "site", "separator": " ", "max_length": 3},
        "sites": {"column": "site", "separator": ",", "shares": "site", "keep": "last"},
    }
    return DataConfig.model_validate(values)


def try_one(path: Path, seed: int) -> None:
    draw = random.Random(seed)
    header, rows = base_log(seed % 7)
    if draw.random() < 0.6:
        data, exact = header + harmed(rows, draw), True
    else:
        data, exact = harmed(header + rows, draw), False
    zipped = draw.random() < 0.3
    path.write_bytes(gzip.compress(data, 1) if zipped else data)
    plan = with_lists(config(format={"missing": ["", "?"], "delimiter": ","}))
    found = outcome(path, plan)
    if isinstance(found, str):
        assert str(path) in found
        assert not exact  # a whole header leaves nothing to fail on
        return
    check_counts(data, plan, found)
    if exact:
        check_against_reference(data, plan, len(COLUMNS), ",", found)


def test_three_hundred_harmed_files(tmp_path: Path) -> None:
    for seed in range(300):
        try_one(tmp_path / "log.csv", seed)


@pytest.mark.slow
def test_three_thousand_harmed_files(tmp_path: Path) -> None:
    for seed in range(300, 3300):
        try_one(tmp_path / "log.csv", seed)


@settings(max_examples=300)
@given(
    rows=st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.text(alphabet='",\r\n\0 01ax\t', max_size=30).map(str.encode),
            st.sampled_from([b"1,a,5", b'0,"b ""c""",', b"1,\xff,1", b"0,a,1e400"]),
        ),
        max_size=12,
    )
)
def test_any_bytes(rows: list[bytes], tmp_path: Path) -> None:
    data = b"y,v,n\n" + b"\n".join(rows)
    log = tmp_path / "any.csv"
    log.write_bytes(data)
    plan = DataConfig.model_validate(
        {"label": "y", "fields": {"categorical": ["v"], "numeric": ["n"]}, "format": {"delimiter": ","}}
    )
    found = outcome(log, plan)
    if isinstance(found, str):  # so many NUL bytes are wide characters
        assert re.search(r"any\.csv: is UTF-(16|32) without a byte order mark", found)
        assert 0 in data
        return
    check_counts(data, plan, found)
    check_against_reference(data, plan, 3, ",", found)


@pytest.mark.parametrize("name", ["truncated", "flipped"])
def test_harmed_gzip_files_are_named(tmp_path: Path, name: str) -> None:
    log, draw = tmp_path / "log.csv.gz", random.Random(0)
    header, rows = base_log(1)
    whole = gzip.compress(header + rows * 50)
    for _ in range(60):
        at = draw.randrange(3, len(whole) - 1)
        flipped = whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
        log.write_bytes(whole[:at] if name == "truncated" else flipped)
        found = outcome(log, config(format={"missing": ["", "?"]}))
        if isinstance(found, str):
            assert "log.csv.gz" in found
        else:
            # Bits of gzip's own header, as its time, say nothing about the data.
            assert name == "flipped"
            assert at < 10
            assert len(found.rows) + len(found.rejects) == 1000


def harmed_real_file(folder: Path, real: Path, recipe: str, seed: int) -> tuple[Path, bytes]:
    draw = random.Random(seed)
    with gzip.open(real, "rb") as stream:
        lines = [stream.readline() for _ in range(400)]
    first = lines[:1] if read_recipe(recipe).format.header else []
    start = draw.randrange(1, 300)
    data = b"".join(first) + harmed(b"".join(lines[start : start + 60]), draw)
    log = folder / "real.csv"
    log.write_bytes(data)
    return log, data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "file"), [("avazu_x4", "avazu/train.csv.gz"), ("criteo_numeric", "criteo/train.txt.gz")]
)
def test_harmed_real_files(real_data: Path, tmp_path: Path, recipe: str, file: str) -> None:
    plan = read_recipe(recipe)
    columns = 24 if recipe == "avazu_x4" else 40
    for seed in range(500):
        log, data = harmed_real_file(tmp_path, real_data / file, recipe, seed)
        found = read(log, plan)
        check_counts(data, plan, found)
        check_against_reference(data, plan, columns, plan.format.delimiter, found)


@pytest.mark.slow
def test_harmed_files_prepared_to_the_end(tmp_path: Path) -> None:
    plan = with_lists(config(split={"kind": "stratified"}, format={"missing": ["", "?"], "delimiter": ","}))
    header, rows = base_log(1)
    prepare(plan, [str(write_csv(tmp_path / "log.csv", random_rows(99, 0)))], tmp_path / "data")
    prepared = 0
    for seed in range(150):
        draw = random.Random(seed)
        data = header + harmed(rows * 5, draw)
        log = tmp_path / "log.csv"
        log.write_bytes(data)
        found = outcome(log, plan)
        if isinstance(found, str) or len({label for _, label in found.rows}) < 2 or len(found.rows) < 40:
            continue  # too little is left for splits of both classes
        prepared += 1
        summary: dict[str, Any] = prepare(plan, [str(log)], tmp_path / "data", force=True, max_rejects=1000)
        assert summary["rows"] == {
            "read": len(found.rows) + len(found.rejects),
            "encoded": len(found.rows),
            "rejected": len(found.rejects),
        }
        rejects = pq.read_table(tmp_path / "data" / "rejects.parquet").to_pylist()
        assert [(row["line"], row["reason"]) for row in rejects] == found.rejects
        shards = sorted((tmp_path / "data").glob("*/part-*.parquet"))
        assert sum(pq.read_metadata(shard).num_rows for shard in shards) == len(found.rows)
    assert prepared > 100
