"""Lines of delimited text as columns of text, and the lines that are not rows.

A line is a row if it is UTF-8 without NUL bytes and stray carriage returns, its quotes stand as RFC 4180 has
them (a quoted value begins and ends at a delimiter, inner quotes are doubled; no line break inside), and it
has the declared number of columns. Empty lines are no rows and are counted apart.

N rows of a chunk.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from dmoe.data.config import DELIMITERS
from dmoe.data.lines import BYTE_ORDER_MARK, LineChunk
from dmoe.data.rejects import (
    CARRIAGE_RETURN,
    NOT_UTF8,
    NUL_BYTE,
    STRAY_QUOTE,
    WRONG_COLUMNS,
    Reject,
    shorten,
)
from dmoe.errors import DmoeError


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of one text file in order, its delimiter and quote, and the columns that are wanted."""

    names: tuple[str, ...]
    delimiter: str
    quote: str | None
    wanted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RawRows:
    """N rows as columns by name; `lines_N` counts from 1. Rejected and blank lines of the chunk aside."""

    file: str
    lines_N: npt.NDArray[np.int64]
    columns: Mapping[str, Any]
    rejects: list[Reject] = field(default_factory=list)
    blank_lines: int = 0


def parse_lines(chunk: LineChunk, layout: Layout, file: str) -> RawRows:
    """The rows of a chunk of lines. `file` names it in rejects."""
    data = chunk.data
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
        if data.endswith(b"\r"):  # the last line of the file
            data = data[:-1] + b"\n"
    starts, ends = _line_bounds(data)
    faults = _byte_faults(data, starts, ends, layout)
    kept = ends > starts
    blank = int(len(kept) - kept.sum())
    lines = np.flatnonzero(kept)
    if faults:
        kept[list(faults)] = False
        lines = np.flatnonzero(kept)
        data = b"\n".join(data[starts[line] : ends[line]] for line in lines)
        starts, ends = _line_bounds(data)
    else:
        starts, ends = starts[kept], ends[kept]
    table, wrong = _read_columns(data, layout)
    rejects = [Reject(file, chunk.first_line + line, None, reason, text) for line, (reason, text) in faults.items()]
    for row, found in wrong.items():
        reason = f"{WRONG_COLUMNS}: {found}, not {len(layout.names)}"
        text = shorten(data[starts[row] : ends[row]])
        rejects.append(Reject(file, chunk.first_line + int(lines[row]), None, reason, text))
    lines = np.delete(lines, list(wrong)) if wrong else lines
    if table.num_rows != len(lines):
        raise DmoeError(f"{file}: line {chunk.first_line} on: {len(lines)} lines became {table.num_rows} rows")
    # One block was read, so there is one chunk, or none; combine_chunks would copy it.
    columns = {name: _only_chunk(table.column(name)) for name in layout.wanted}
    rejects.sort(key=lambda reject: reject.line)
    return RawRows(file, lines + chunk.first_line, columns, rejects, blank)


def _only_chunk(column: Any) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def split_line(line: str, delimiter: str, quote: str | None) -> list[str] | None:
    """The values of one line, or None if its quotes are stray."""
    if quote is None:
        return line.split(delimiter)
    data = line.encode("utf-8", "surrogatepass")
    if not _row_pattern(delimiter, quote).fullmatch(data):
        return None
    values, position = [], 0
    while position <= len(data):
        found = _value_pattern(delimiter, quote).match(data, position)
        assert found is not None  # an empty value matches too
        value = found[0].decode("utf-8", "surrogatepass")
        values.append(value[1:-1].replace(quote * 2, quote) if value.startswith(quote) else value)
        position = found.end() + len(delimiter)
    return values


def guess_delimiter(line: str, quote: str | None, fits: "Mapping[str, bool] | None" = None) -> str:
    """The delimiter that makes most columns of a line; one that `fits` the expected columns goes first."""

    def score(delimiter: str) -> tuple[bool, int]:
        values = split_line(line, delimiter, quote) or []
        return bool(fits and fits.get(delimiter)), len(values)

    return max(DELIMITERS, key=score)


def _line_bounds(data: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each line starts, and where it ends before its line feed."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    if data and not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    return starts, ends


def _byte_faults(
    data: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], layout: Layout
) -> dict[int, tuple[str, str]]:
    """Line index -> reason and text, for lines whose bytes are wrong whatever their columns."""
    faults: dict[int, tuple[str, str]] = {}
    buffer = np.frombuffer(data, np.uint8)

    def lines_where(mask: npt.NDArray[np.bool_]) -> Sequence[int]:
        found: list[int] = np.unique(np.searchsorted(ends, np.flatnonzero(mask))).tolist()
        return found

    def blame(line: int, reason: str) -> None:
        faults.setdefault(line, (reason, shorten(data[starts[line] : ends[line]])))

    if not data.isascii() and not is_utf8(data):
        for line in lines_where(buffer >= 0x80):
            if not is_utf8(data[starts[line] : ends[line]]):
                blame(line, NOT_UTF8)
    for byte, reason in ((0, NUL_BYTE), (ord("\r"), CARRIAGE_RETURN)):
        if byte in data:
            for line in lines_where(buffer == byte):
                blame(line, reason)
    if layout.quote and layout.quote.encode() in data:
        pattern = _row_pattern(layout.delimiter, layout.quote)
        for line in lines_where(buffer == ord(layout.quote)):
            if not pattern.fullmatch(data, starts[line], ends[line]):
                blame(line, STRAY_QUOTE)
    return faults


def is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@cache
def _value_pattern(delimiter: str, quote: str) -> re.Pattern[bytes]:
    q, d = re.escape(quote), re.escape(delimiter)
    return re.compile(f"(?:{q}(?:[^{q}]|{q}{q})*+{q}|[^{q}{d}]*+)".encode(), re.DOTALL)


@cache
def _row_pattern(delimiter: str, quote: str) -> re.Pattern[bytes]:
    value, d = _value_pattern(delimiter, quote).pattern.decode(), re.escape(delimiter)
    return re.compile(f"{value}(?:{d}{value})*+".encode(), re.DOTALL)


def _read_columns(data: bytes, layout: Layout) -> tuple[pa.Table, dict[int, int]]:
    """The wanted columns as text, and the rows with a wrong number of columns: row -> its number."""
    wrong: dict[int, int] = {}
    if not data.strip(b"\n"):
        return pa.table({name: pa.array([], pa.string()) for name in layout.wanted}), wrong

    def skip(row: Any) -> Literal["skip"]:
        wrong[row.number - 1] = row.actual_columns
        return "skip"

    # Columns go by number here: the reader would take repeated or empty names amiss.
    numbers = [str(index) for index in range(len(layout.names))]
    wanted = [str(layout.names.index(name)) for name in layout.wanted]
    if data.startswith(BYTE_ORDER_MARK):
        # The reader takes one off the start of what it is given, which need not be the start of a file.
        data = BYTE_ORDER_MARK + data
    table = pyarrow.csv.read_csv(
        io.BytesIO(data),
        # One block on this thread: rows are then numbered, and chunks are what runs in parallel.
        read_options=pyarrow.csv.ReadOptions(column_names=numbers, block_size=len(data) + 1, use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=layout.delimiter,
            quote_char=layout.quote or False,
            double_quote=True,
            escape_char=False,
            newlines_in_values=False,
            ignore_empty_lines=True,
            invalid_row_handler=skip,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()),
            include_columns=wanted,
            strings_can_be_null=False,
            check_utf8=False,
        ),
    )
    return table.rename_columns(list(layout.wanted)), wrong
