"""Lines of delimited text as columns of text, and the lines that are not rows.

A line (or several, where values hold line breaks) is a row if it is UTF-8 without NUL bytes and stray carriage
returns, its quotes stand as `quoting` has them, it has the declared number of columns, and is not the header again.
Empty lines are no rows and are counted apart.

N rows of a chunk.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from dmoe.errors import DmoeError
from dmoe.sources.lines import BYTE_ORDER_MARK, LineChunk
from dmoe.sources.quoting import Quoting
from dmoe.sources.rejects import (
    CARRIAGE_RETURN,
    LEFT_OPEN,
    NEVER_CLOSED,
    NOT_UTF8,
    NUL_BYTE,
    REPEATED_HEADER,
    STRAY_QUOTE,
    WRONG_COLUMNS,
    Reject,
    shorten,
)
from dmoe.values.canonical import Carriers
from dmoe.values.coded_columns import carriers_of


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of one text file in order, how its values stand apart, the columns that are wanted, and the bytes of
    its header, which are no row where they come again."""

    names: tuple[str, ...]
    quoting: Quoting
    wanted: tuple[str, ...]
    header: bytes | None = None


@dataclass(frozen=True, slots=True)
class RawRows:
    """N rows as columns by name; `lines_N` counts from 1. Rejected and blank lines of the chunk aside.

    `carriers`: of columns of text that was made of values of other types, what these were.
    """

    file: str
    lines_N: npt.NDArray[np.int64]
    columns: Mapping[str, Any]
    rejects: list[Reject] = field(default_factory=list)
    blank_lines: int = 0
    carriers: Mapping[str, Carriers] = field(default_factory=dict)

    def carriers_of(self, name: str) -> Carriers:
        """What types, beside text, the values of a column came in."""
        return self.carriers.get(name) or carriers_of(self.columns[name].type)


def parse_lines(chunk: LineChunk, layout: Layout, file: str) -> RawRows:
    """The rows of a chunk of lines. `file` names it in rejects."""
    data, inside = _with_line_feeds(chunk)
    starts, ends, numbers = _line_bounds(data, inside)
    faults = _byte_faults(data, starts, ends, layout)
    kept = ends > starts
    blank = int(len(kept) - kept.sum())
    escaped = layout.quoting.escape and b"\\" in data
    rejects = [
        Reject(file, chunk.first_line + int(numbers[record]), None, reason, text)
        for record, (reason, text) in faults.items()
    ]
    kept[list(faults)] = False
    starts, ends, lines = starts[kept], ends[kept], numbers[kept]
    if faults or escaped:
        rows = [data[start:end] for start, end in zip(starts, ends, strict=True)]
        rows = [layout.quoting.plain(row) for row in rows] if escaped else rows
        data = b"\n".join(rows)
        ends = np.cumsum(np.array([len(row) + 1 for row in rows], dtype=np.int64)) - 1
        starts = ends - np.array([len(row) for row in rows], dtype=np.int64)
    table, wrong = _read_columns(data, layout, bool(inside))
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


def _with_line_feeds(chunk: LineChunk) -> tuple[bytes, tuple[int, ...]]:
    """The lines without the carriage returns at their ends, and where the line feeds inside values are then."""
    data, inside = chunk.data, chunk.inside
    if b"\r" not in data:
        return data, inside
    if not inside:
        data = data.replace(b"\r\n", b"\n")
    else:
        buffer = np.frombuffer(data, np.uint8)
        goes = np.zeros(len(data), dtype=bool)
        goes[:-1] = (buffer[:-1] == ord("\r")) & (buffer[1:] == ord("\n"))
        goes[np.array(inside) - 1] = False  # values keep theirs
        inside = tuple((np.array(inside) - np.cumsum(goes)[list(inside)]).tolist())
        data = buffer[~goes].tobytes()
    if data.endswith(b"\r"):  # the last line of the file
        data = data[:-1] + b"\n"
    return data, inside


def _line_bounds(
    data: bytes, inside: tuple[int, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each record starts, where it ends before its line feed, and the number of its first line from 0."""
    feeds = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    ends = np.setdiff1d(feeds, inside, assume_unique=True) if inside else feeds
    if data and not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    return starts, ends, np.searchsorted(feeds, starts) if inside else np.arange(len(starts))


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
    quoting = layout.quoting
    if b"\0" in data:
        for line in lines_where(buffer == 0):
            blame(line, NUL_BYTE)
    if b"\r" in data:
        for line in lines_where(buffer == ord("\r")):
            if not (quoting.line_breaks and quoting.is_row(data, starts[line], ends[line])):
                blame(line, CARRIAGE_RETURN)
    if layout.header is not None and layout.header in data:
        for found in re.finditer(rb"(?m)^(?:\xef\xbb\xbf)?" + re.escape(layout.header) + rb"$", data):
            line = int(np.searchsorted(starts, found.start()))
            if line < len(starts) and starts[line] == found.start() and ends[line] == found.end():
                blame(line, REPEATED_HEADER)
    if quoting.quote and quoting.quote.encode() in data:
        for line in lines_where(buffer == ord(quoting.quote)):
            if not quoting.is_row(data, starts[line], ends[line]):
                is_open = quoting.is_open(data, starts[line], ends[line])
                blame(line, (NEVER_CLOSED if quoting.line_breaks else LEFT_OPEN) if is_open else STRAY_QUOTE)
    return faults


def is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _read_columns(data: bytes, layout: Layout, line_breaks: bool) -> tuple[pa.Table, dict[int, int]]:
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
            delimiter=layout.quoting.delimiter,
            quote_char=layout.quoting.quote or False,
            double_quote=True,
            escape_char=False,
            newlines_in_values=line_breaks,
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
