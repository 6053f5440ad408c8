"""Rows that cannot be encoded: where, why, and how many are too many."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TEXT_LIMIT = 200

NOT_UTF8 = "not UTF-8"
NUL_BYTE = "NUL byte"
CARRIAGE_RETURN = "carriage return inside a line"
STRAY_QUOTE = "stray quote"
LEFT_OPEN = "quote left open at the end of the line"
NEVER_CLOSED = "quote that no line after it closes"
REPEATED_HEADER = "repeats the header"
WRONG_COLUMNS = "wrong number of columns"
BAD_LABEL = "label is not 0 or 1"
NO_LABEL = "label is missing"
NO_CLASS = "label is neither positive nor negative"
NONE_KNOWN = "no label is known"
CONTRADICTION = "label is 1 where the one it is given is 0"
NO_WEIGHT = "weight is missing or NaN"
NEGATIVE_WEIGHT = "weight is below 0"
NOT_A_NUMBER = "not a number"
OUT_OF_RANGE = "number out of range"
NOT_A_TIME = "not a time of the declared format"
NO_TIME = "time of the split is missing"

REASONS = (
    NOT_UTF8, NUL_BYTE, CARRIAGE_RETURN, STRAY_QUOTE, LEFT_OPEN, NEVER_CLOSED, REPEATED_HEADER, WRONG_COLUMNS,
    BAD_LABEL, NO_LABEL, NO_CLASS, NONE_KNOWN, CONTRADICTION, NO_WEIGHT, NEGATIVE_WEIGHT,
    NOT_A_NUMBER, OUT_OF_RANGE, NOT_A_TIME, NO_TIME,
)  # fmt: skip

# What the user may do about the rows of a reason.
HINTS = {
    WRONG_COLUMNS: "Is format.delimiter (or format.columns) right for this file?",
    LEFT_OPEN: "If quoted values hold line breaks, set format.line_breaks: true",
    STRAY_QUOTE: 'If \\" stands for a quote, set format.escape: backslash; if quotes mean nothing, format.quote: null',
}

_TEXT: pa.DataType = pa.string()
_COLUMNS = pa.schema({"file": _TEXT, "line": pa.int64(), "column": _TEXT, "reason": _TEXT, "text": _TEXT})


@dataclass(frozen=True, slots=True)
class Reject:
    """One row that was not encoded. `line` counts from 1 (for Parquet: the row). `column` is None when the
    whole line is at fault. `text` is the value or line, cut to `TEXT_LIMIT` characters."""

    file: str
    line: int
    column: str | None
    reason: str
    text: str

    def __str__(self) -> str:
        column = f" column '{self.column}':" if self.column is not None else ""
        return f"{self.file}:{self.line}:{column} {self.reason}: {self.text!r}"


def kind_of(reason: str) -> str:
    """A reason without its figures."""
    return reason.partition(":")[0]


def shorten(text: str | bytes) -> str:
    """A value as it is shown in a reject; bytes that are not UTF-8 appear as escapes."""
    if isinstance(text, bytes):
        text = text[: 4 * TEXT_LIMIT].decode("utf-8", errors="backslashreplace")
    text = text.replace("\0", "\\x00")
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"


@dataclass
class RejectLog:
    """Rejects in input order."""

    rejects: list[Reject] = field(default_factory=list)

    def describe(self, count: int = 3) -> str:
        """The first rejects, one a line, and a hint if they look like a wrong delimiter."""
        lines = [f"  {reject}" for reject in self.rejects[:count]]
        reasons = dict.fromkeys(kind_of(reject.reason) for reject in self.rejects[:count])
        lines += [f"  {HINTS[reason]}" for reason in reasons if reason in HINTS]
        return "\n".join(lines)

    def by_reason(self) -> dict[str, int]:
        return dict(sorted(Counter(reject.reason for reject in self.rejects).items()))

    def write(self, path: Path) -> None:
        """rejects.parquet: file, line, column, reason, text."""
        columns = [[getattr(reject, name) for reject in self.rejects] for name in _COLUMNS.names]
        table = pa.table([pa.array(c, t) for c, t in zip(columns, _COLUMNS.types, strict=True)], schema=_COLUMNS)
        pq.write_table(table, path)
