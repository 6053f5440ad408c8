"""Line breaks and escapes in quoted values, against Python's csv module; stray quotes swallow nothing."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.config.data import DataConfig
from dmoe.errors import ConfigError
from dmoe.prepare.prepare import prepare
from dmoe.sources import lines, quoting
from dmoe.sources.pieces import LogFile
from dmoe.validation import validate
from tests.prepare.test_prepare import data_files
from tests.prepare.test_restart import Stop


def plan(**form: Any) -> DataConfig:
    values = {"label": "y", "split": {"kind": "stratified"}, "fields": {"categorical": ["v", "w"]}, "format": form}
    return validate(DataConfig, values, "data.yaml")


def read(path: Path, config: DataConfig) -> tuple[list[tuple[int, str, str, str]], list[tuple[int, str]]]:
    """Rows with the number of their first line, and rejects."""
    rows: list[tuple[int, str, str, str]] = []
    rejects: list[tuple[int, str]] = []
    for piece in LogFile(path, config).pieces():
        raw = piece.read()
        columns = [raw.columns[name].to_pylist() for name in ("y", "v", "w")]
        rows += zip(raw.lines_N.tolist(), *columns, strict=True)
        rejects += [(one.line, one.reason) for one in raw.rejects]
    return rows, rejects


VALUES = st.text(st.sampled_from('ab\n\r",\\ é'), max_size=5)


@settings(max_examples=250)
@given(
    values=st.lists(st.tuples(st.sampled_from("01"), VALUES, VALUES), min_size=1, max_size=12),
    end=st.sampled_from(["\n", "\r\n"]),
    escape=st.booleans(),
    chunk=st.integers(1, 60),
)
def test_what_python_writes_is_read_back_whatever_the_chunks(
    values: list[tuple[str, str, str]], end: str, escape: bool, chunk: int, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (chunk,))
    text, starts = io.StringIO(newline=""), []
    text.write("y,v,w" + end)
    for row in values:
        starts.append(text.getvalue().count("\n") + 1)
        if escape:
            quoted = [value.replace("\\", "\\\\").replace('"', '\\"') for value in row]
            text.write(",".join(f'"{value}"' for value in quoted) + end)
        else:
            # Python leaves a carriage return unquoted where lines end in line feeds.
            style = csv.QUOTE_ALL if "\r" in "".join(row) else csv.QUOTE_MINIMAL
            csv.writer(text, quoting=style, lineterminator=end).writerow(row)
    log = tmp_path / "log.csv"
    log.write_bytes(text.getvalue().encode())
    config = plan(line_breaks=True, escape="backslash" if escape else None, delimiter=",")
    assert read(log, config) == ([(line, *row) for line, row in zip(starts, values, strict=True)], [])


PIECES = st.sampled_from(
    ["1,a,b\n", '0,"a\nb",c\n', "1,", '"', "\n", "\r\n", "a,b\n", '0,"x ""y""\r\n",z\n', "\\", "0,a,"]
)


@settings(max_examples=250)
@given(pieces=st.lists(PIECES, max_size=25), chunk=st.integers(1, 40), escape=st.booleans())
def test_records_do_not_depend_on_the_chunks_and_every_line_is_accounted_for(
    pieces: list[str], chunk: int, escape: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    log = tmp_path / "log.csv"
    log.write_bytes(("y,v,w\n" + "".join(pieces)).encode())
    config = plan(line_breaks=True, escape="backslash" if escape else None, delimiter=",")
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (1 << 20,))
    whole = read(log, config)
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (chunk,))
    assert read(log, config) == whole
    text = log.read_bytes().removesuffix(b"\n").split(b"\n")
    within = {line + k for line, *values in whole[0] for k in range(1, "".join(values).count("\n") + 1)}
    blank = {number for number, line in enumerate(text, 1) if not line.strip(b"\r") or line == b""}
    told = {line for line, *_ in whole[0]} | {line for line, _ in whole[1]} | within | blank
    assert told >= set(range(2, len(text) + 1))


def test_a_stray_quote_costs_its_own_line_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (7000,))
    rows = [f"{i % 2},v{i % 3},w{i}" for i in range(5000)]
    rows[9] = '1,"tv,w9'
    rows[100], rows[110] = '1,v,"open', '0,"quoted",w'
    rows[4000] = '1,v,"never closed'
    log = tmp_path / "log.csv"
    log.write_text("y,v,w\n" + "\n".join(rows) + "\n")
    found, rejects = read(log, plan(line_breaks=True))
    assert rejects == [(line, "quote that no line after it closes") for line in (11, 102, 4002)]
    assert len(found) == 4997
    # A value that would close, but too far away.
    monkeypatch.setattr(quoting, "RECORD_LINES", 50)
    rows[4000], rows[4100] = '1,v,"open', 'closed"'
    log.write_text("y,v,w\n" + "\n".join(rows) + "\n")
    assert read(log, plan(line_breaks=True))[1][2:] == [(4002, rejects[0][1]), (4102, "stray quote")]


def test_without_the_keys_the_messages_name_them(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("y,v,w\n" + '1,"two\nlines",b\n0,"TV 55\\" wide",b\n1,a,b\n')
    assert read(log, plan())[1] == [
        (2, "quote left open at the end of the line"),
        (3, "stray quote"),
        (4, "stray quote"),
    ]
    with pytest.raises(Exception, match=r"set format\.line_breaks: true\n.*set format\.escape: backslash"):
        prepare(plan(), [str(log)], tmp_path / "data", max_rejects=2)
    rows, rejects = read(log, plan(line_breaks=True, escape="backslash"))
    assert rows == [(2, "1", "two\nlines", "b"), (4, "0", 'TV 55" wide', "b"), (5, "1", "a", "b")]
    assert rejects == []
    with pytest.raises(ConfigError, match="'escape' and 'line_breaks' are about quoted values, but 'quote' is null"):
        plan(quote=None, line_breaks=True)


def test_a_header_that_comes_again_is_no_row(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    part = "y,v,w\n" + "".join(f"{i % 2},v,w\n" for i in range(30))
    log.write_bytes(part.encode() + b"\xef\xbb\xbf" + part.encode() + part.replace("\n", "\r\n").encode())
    rows, rejects = read(log, plan())
    assert len(rows) == 90
    assert rejects == [(32, "repeats the header"), (63, "repeats the header")]


def test_work_on_values_with_line_breaks_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (3000,))
    log = tmp_path / "log.csv"
    log.write_text("y,v,w\n" + "".join(f'{i % 2},"a\n{i % 7}\n",w\n' for i in range(1500)))
    config = plan(line_breaks=True)
    want = prepare(config, [str(log)], tmp_path / "want", threads=1)
    assert want["rows"] == {"read": 1500, "encoded": 1500, "rejected": 0}
    for at in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            prepare(config, [str(log)], tmp_path / "data", progress=Stop(at), threads=2)
    prepare(config, [str(log)], tmp_path / "data", threads=2)
    assert data_files(tmp_path / "data") == data_files(tmp_path / "want")
