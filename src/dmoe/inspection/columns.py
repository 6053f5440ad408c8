"""The first rows of a log, column by column, as codes into distinct texts.

N rows, V distinct texts of a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.config.data import DataConfig
from dmoe.errors import DataError
from dmoe.inspection.information import Integers
from dmoe.sources.pieces import LogFile
from dmoe.values.coded_columns import MISSING, Codes, Column, as_text, codes_of, pc

# Between the values of a list column: no text holds the unit separator.
JOINT = "\x1f"
# A value takes four bytes here: wide logs are read as far as this many go.
MOST_VALUES = 200_000_000
_LEAST_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class TextColumn:
    """`texts[codes_N]`, and -1 where there is none; the empty text is none. `listed`: a column of lists, its values
    joined by `JOINT`; `boolean`: a typed column of true and false."""

    name: str
    codes_N: Codes
    texts: Column
    listed: bool = False
    boolean: bool = False

    @property
    def counts_V(self) -> Integers:
        return np.bincount(self.codes_N[self.codes_N >= 0], minlength=len(self.texts))

    def kept(self, keep_N: npt.NDArray[np.bool_]) -> "TextColumn":
        """Some of the rows, and the texts that they have."""
        return replace(self, codes_N=self.codes_N[keep_N]).compact()

    def compact(self) -> "TextColumn":
        """Without texts of no row, and without the empty one."""
        used = (self.counts_V > 0) & pc.not_equal(self.texts, "").to_numpy(zero_copy_only=False)
        if used.all():
            return self
        recode = np.append(np.where(used, np.cumsum(used) - 1, MISSING), MISSING).astype(np.int32)
        return replace(self, codes_N=recode[self.codes_N], texts=self.texts.filter(pa.array(used)))


@dataclass(frozen=True, slots=True)
class LogRows:
    """`left_out`: columns that can be no field, and why. `whole`: whether these are all rows."""

    columns: dict[str, TextColumn]
    left_out: dict[str, str]
    rows: int
    rejected: int
    whole: bool


def read_rows(paths: Sequence[Path], reading: DataConfig, names: Sequence[str], max_rows: int) -> LogRows:
    """The first rows of these files, at most `max_rows`, and fewer of very wide ones.

    Raises: DataError if there is none.
    """
    max_rows = min(max_rows, max(_LEAST_ROWS, MOST_VALUES // len(names)))
    held: dict[str, list[Column]] = {name: [] for name in names}
    left_out: dict[str, str] = {}
    types: dict[str, pa.DataType] = {}
    rows, rejected, cut = 0, 0, False
    pieces = chain.from_iterable(LogFile(path, reading, scoring=True, labels=True).pieces() for path in paths)
    for piece in pieces:
        raw = piece.read()
        taken = min(len(raw.lines_N), max_rows - rows)
        cut = taken < len(raw.lines_N)
        for name, column in raw.columns.items():
            if name in left_out:
                continue
            types.setdefault(name, column.type)
            try:
                held[name].append(_texts(column.slice(0, taken), name).dictionary_encode())
            except (DataError, pa.ArrowException):
                parts = "; give its parts columns of their own" if pa.types.is_struct(column.type) else ""
                left_out[name] = f"{_short(column.type)} values cannot be a field{parts}"
        rows += taken
        rejected += len(raw.rejects)
        if rows == max_rows:
            break
    if not rows:
        raise DataError(f"{paths[0]}: holds no row that can be read")
    columns = {name: _joined(name, held.pop(name), types[name]) for name in names if name not in left_out}
    return LogRows(columns, left_out, rows, rejected, not cut and next(pieces, None) is None)


def _short(kind: pa.DataType) -> str:
    return str(kind) if len(str(kind)) <= 40 else f"{str(kind)[:39]}…"


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _texts(column: Column, name: str) -> Column:
    kind = column.type
    if pa.types.is_duration(kind):
        raise DataError(f"column '{name}' holds {kind} values, which cannot be read as text")
    if not _is_list(kind):
        return as_text(column, name).cast(pa.large_string())
    values = as_text(pc.list_flatten(column), name)
    parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    offsets: Column = pa.array(np.searchsorted(parents, np.arange(len(column) + 1)).astype(np.int32))
    lists: Column = pa.ListArray.from_arrays(offsets, pc.fill_null(values, ""))
    return pc.binary_join(lists, JOINT).cast(pa.large_string())


def _joined(name: str, pieces: list[Column], kind: pa.DataType) -> TextColumn:
    unified: Column = pa.chunked_array(pieces).unify_dictionaries()
    codes = np.concatenate([codes_of(chunk) for chunk in unified.chunks])
    texts = unified.chunk(0).dictionary
    return TextColumn(name, codes, texts, _is_list(kind), pa.types.is_boolean(kind)).compact()
