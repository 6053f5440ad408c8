"""How quotes hold values together: what a row of delimited text is, and which lines go on in the next.

A quoted value begins and ends at a delimiter, and inner quotes are doubled (RFC 4180); with `escape` a backslash in
it takes a quote or backslash that follows as it is. With `line_breaks` it may hold line breaks.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from dmoe.config.raw_format import DELIMITERS

# A stray quote must not swallow the rest of a file: a record has at most so many lines and bytes.
RECORD_LINES = 1000
RECORD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Quoting:
    """`quote` is None where quotes mean nothing."""

    delimiter: str
    quote: str | None
    escape: bool = False
    line_breaks: bool = False

    def is_row(self, data: bytes, start: int, end: int) -> bool:
        """Whether the quotes in these bytes stand as they must."""
        return _pattern("row", self).fullmatch(data, start, end) is not None

    def is_open(self, data: bytes, start: int, end: int) -> bool:
        """Whether these bytes end inside a quoted value."""
        return _pattern("open", self).fullmatch(data, start, end) is not None

    def plain(self, row: bytes) -> bytes:
        """A row with doubled quotes in the place of escaped ones."""
        assert self.quote is not None
        quote = self.quote.encode()
        if b"\\" not in row or quote not in row:
            return row
        return self.delimiter.encode().join(
            _ESCAPED.sub(lambda found: quote * 2 if found[1] == quote else found[1 if found[1] == b"\\" else 0], value)
            if value.startswith(quote)
            else value
            for value in self._raw_values(row)
        )

    def values(self, row: bytes) -> list[bytes] | None:
        """The values of a row, or None if its quotes are stray."""
        if self.quote is None:
            return row.split(self.delimiter.encode())
        if not self.is_row(row, 0, len(row)):
            return None
        quote = self.quote.encode()
        row = self.plain(row) if self.escape else row
        return [
            value[1:-1].replace(quote * 2, quote) if value.startswith(quote) else value
            for value in Quoting(self.delimiter, self.quote)._raw_values(row)
        ]

    def _raw_values(self, row: bytes) -> list[bytes]:
        pattern, values, position = _pattern("value", self), [], 0
        while position <= len(row):
            found = pattern.match(row, position)
            assert found is not None  # an empty value matches too
            values.append(found[0])
            position = found.end() + len(self.delimiter)
        return values


_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


@cache
def _pattern(kind: str, quoting: Quoting, columns: int | None = None) -> re.Pattern[bytes]:
    assert quoting.quote is not None
    q, d = re.escape(quoting.quote), re.escape(quoting.delimiter)
    inner = rf"[^{q}\\]*+(?:(?:{q}{q}|\\.)[^{q}\\]*+)*+" if quoting.escape else rf"[^{q}]*+(?:{q}{q}[^{q}]*+)*+"
    ends = r"\r\n" if quoting.line_breaks else ""
    value = rf"(?:{q}{inner}{q}|[^{q}{d}{ends}]*+)"
    text = {
        "value": value,
        "row": f"{value}(?:{d}{value})*+",
        "open": rf"(?:{value}{d})*+{q}{inner}\\?",
        "record": f"{value}(?:{d}{value}){{{(columns or 1) - 1}}}+",
    }[kind]
    return re.compile(text.encode(), re.DOTALL)


def split_line(line: str, delimiter: str, quote: str | None, *, escape: bool = False) -> list[str] | None:
    """The values of one line, or None if its quotes are stray."""
    values = Quoting(delimiter, quote, escape).values(line.encode("utf-8", "surrogatepass"))
    return None if values is None else [value.decode("utf-8", "surrogatepass") for value in values]


IS_JSON = (
    "is JSON; dmoe reads CSV, TSV and Parquet, into which it can be turned: python -c "
    "\"import duckdb; duckdb.sql(\\\"COPY (FROM read_json('IN.jsonl')) TO 'OUT.parquet'\\\")\""
)


def looks_like_json(line: str) -> bool:
    """Whether the first line of a file begins an object of JSON, or a list of them."""
    return re.match(r"\s*(\[\s*$|(\[\s*)?\{\s*(\"|\}|$))", line) is not None


def guess_delimiter(line: str, quote: str | None, fits: "Mapping[str, bool] | None" = None) -> str:
    """The delimiter that makes most columns of a line; one that `fits` the expected columns goes first."""

    def score(delimiter: str) -> tuple[bool, int]:
        values = split_line(line, delimiter, quote) or []
        return bool(fits and fits.get(delimiter)), len(values)

    return max(DELIMITERS, key=score)


@dataclass(frozen=True, slots=True)
class Records:
    """Joins the lines of quoted values: of files whose rows have so many `columns`.

    A line that ends inside a quoted value goes on where the lines after it close the quotes and give a row of exactly
    `columns` values, within `RECORD_LINES` lines and `RECORD_BYTES` bytes. Otherwise its quote is stray: that line
    alone is at fault, and the next is read as if it were not there. So the records do not depend on the chunks.
    """

    quoting: Quoting
    columns: int

    def joined(self, data: bytes, last: bool) -> tuple[tuple[int, ...], int]:
        """Where the line feeds inside values are, and where the records of which all is known end."""
        buffer = np.frombuffer(data, np.uint8)
        feeds = np.flatnonzero(buffer == ord("\n"))
        inside: list[int] = []
        done = 0
        for line in self._suspects(data, feeds):
            start = int(feeds[line - 1]) + 1 if line else 0
            if start < done:
                continue
            end = int(feeds[line]) if line < len(feeds) else len(data)
            if not self.quoting.is_open(data, start, end):
                continue
            most = int(feeds[line + RECORD_LINES - 1]) if line + RECORD_LINES <= len(feeds) else len(data)
            stop = min(most, start + RECORD_BYTES)
            found = _pattern("record", self.quoting, self.columns).match(data, start, stop)
            if found is not None and _ends_line(data, found.end(), last):
                done = found.end()
                inside += feeds[line : np.searchsorted(feeds, done)].tolist()
            elif stop == len(data) and not last:
                return tuple(inside), start  # what comes may close it
        return tuple(inside), len(data) if last else data.rfind(b"\n") + 1

    def _suspects(self, data: bytes, feeds: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> list[int]:
        """The lines that may end inside a value: with an odd number of quotes, or where some may be escaped."""
        assert self.quoting.quote is not None
        buffer = np.frombuffer(data, np.uint8)
        counts = np.bincount(np.searchsorted(feeds, np.flatnonzero(buffer == ord(self.quoting.quote))))
        suspect = counts % 2 == 1
        if self.quoting.escape and b"\\" in data:
            escaped = np.searchsorted(feeds, np.flatnonzero(buffer == ord("\\")))
            escaped = escaped[escaped < len(counts)]
            suspect[escaped] |= counts[escaped] > 0
        lines: list[int] = np.flatnonzero(suspect).tolist()
        return lines


def _ends_line(data: bytes, position: int, last: bool) -> bool:
    rest = data[position : position + 2]
    return rest.startswith(b"\n") or rest == b"\r\n" or (last and rest in (b"", b"\r"))
