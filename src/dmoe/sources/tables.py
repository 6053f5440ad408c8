"""What a caller may pass as raw rows: a table, or paths.

Tables become pyarrow column by column, only those that are wanted, so that what nobody reads never matters.
"""

import json
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import narwhals as nw
import numpy as np
import pyarrow as pa

from dmoe.errors import DataError
from dmoe.values.coded_columns import as_text, carriers_of, pc

_CARRIERS = b"dmoe.carriers"
_TEXT: pa.DataType = pa.string()
_TYPED: tuple[tuple[type, pa.DataType], ...] = ((str, _TEXT), (bool, pa.bool_()), (float, pa.float64()))


class NoTableError(DataError):
    """What was passed is no pandas, polars or pyarrow table."""


def as_paths(rows: Any) -> list[Path] | None:
    """One path or several as a list; None for anything else."""
    if isinstance(rows, str | Path):
        rows = [rows]
    if isinstance(rows, Sequence) and rows and all(isinstance(one, str | Path) for one in rows):
        return [Path(one) for one in rows]
    return None


def column_names(table: Any) -> list[str]:
    """The names of a table's columns as texts, repeated ones too.

    Raises: DataError if it is no pandas, polars or pyarrow table.
    """
    if isinstance(table, pa.Table | pa.RecordBatch):
        return list(table.schema.names)
    if nw.dependencies.is_pandas_dataframe(table):
        return [str(name) for name in table.columns]
    try:
        return list(nw.from_native(table, eager_only=True).columns)
    except TypeError:
        raise NoTableError(f"expected a pandas, polars or pyarrow table, got {type(table).__name__}") from None


def as_arrow(table: Any, wanted: Sequence[str] | None = None) -> pa.Table:
    """The `wanted` columns of a pandas, polars or pyarrow table, by default all, as pyarrow.

    A pandas index is no column. Columns of Python objects become the type of their values where they have one, else
    texts by the rules of docs/data.md.

    Raises: DataError if it is no such table, a wanted column appears twice, or holds what has no certain text.
    """
    names = column_names(table)
    wanted = names if wanted is None else wanted
    columns, fields = [], []
    for name in wanted:
        if names.count(name) > 1:
            raise DataError(f"table: column '{name}' appears twice")
        column, carriers = _column(table, names.index(name), name)
        if pa.types.is_run_end_encoded(column.type):  # is a layout, not a type of values
            column = pc.run_end_decode(column)
        columns.append(column)
        marks = {_CARRIERS: json.dumps(carriers).encode()} if carriers else None
        fields.append(pa.field(name, column.type, metadata=marks))
    if not columns:
        return pa.table({"": pa.nulls(len(table))}).select([])
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def marked_carriers(schema: pa.Schema) -> dict[str, dict[str, str]]:
    """By column of text that `as_arrow` made of Python objects: what these were."""
    return {field.name: carriers for field in schema if (carriers := _carriers(field))}


def _carriers(field: Any) -> dict[str, str]:
    """What `as_arrow` noted; a file or stream may bring anything under that name, which says nothing."""
    try:
        noted = json.loads((field.metadata or {}).get(_CARRIERS, b"{}"))
    except (ValueError, RecursionError):
        return {}
    texts = isinstance(noted, dict) and all(isinstance(one, str) for one in noted.values())
    return noted if texts else {}


def _column(table: Any, place: int, name: str) -> tuple[Any, Mapping[str, str]]:
    try:
        if isinstance(table, pa.Table | pa.RecordBatch):
            return table.column(place), _carriers(table.schema.field(place))
        if nw.dependencies.is_pandas_dataframe(table):
            return _from_pandas(table.iloc[:, place], name)
        series = nw.from_native(table, eager_only=True)[:, place]
        if series.dtype in (nw.Int128, nw.UInt128):  # wider than what Arrow has
            return series.cast(nw.String).to_arrow(), {"number": str(series.dtype)}
        return series.to_arrow(), {}
    except (pa.ArrowException, TypeError, ValueError, OverflowError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"column '{name}' cannot be read ({reason}); make it numbers, texts or times") from None


def _from_pandas(series: Any, name: str) -> tuple[Any, Mapping[str, str]]:
    pandas = sys.modules["pandas"]
    kind = series.dtype
    if isinstance(kind, pandas.PeriodDtype):
        series = series.astype(str).where(series.notna(), None)
    elif isinstance(kind, pandas.SparseDtype):
        series = series.sparse.to_dense()
    elif isinstance(kind, pandas.CategoricalDtype):
        values, carriers = _from_pandas(pandas.Series(kind.categories), name)
        codes = series.cat.codes.to_numpy()
        indices = pa.array(codes.astype(np.int32), mask=codes < 0)
        return values.take(indices), carriers
    elif kind.kind in "cV" or isinstance(kind, pandas.IntervalDtype):
        raise DataError(f"column '{name}' holds {kind} values, which have no certain text; make it texts")
    if series.dtype == object:
        return objects(series.tolist(), name)
    array: Any = pa.Array.from_pandas(series)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array, {}


def objects(values: Sequence[Any], name: str) -> tuple[Any, dict[str, str]]:
    """A column of Python objects: typed where all are of one type, else text with what carried its values.

    Raises: DataError if one has no certain text, or only some are lists.
    """
    present = [not is_missing(value) for value in values]
    types = {type(value) for value, there in zip(values, present, strict=True) if there}
    if any(map(_is_list, types)):
        return _lists(values, present, types, name)
    cleaned = [value if there else None for value, there in zip(values, present, strict=True)]
    for known, typed in _TYPED:
        if types <= {known}:
            return pa.array(cleaned, typed), {}
    if types <= {int} or types <= {Decimal}:
        with suppress(pa.ArrowInvalid, OverflowError):  # more digits than Arrow's widest type
            return pa.array(cleaned), {}
    texts: list[str | None] = [None] * len(values)
    carriers: dict[str, str] = {}
    by_type: dict[type, list[int]] = {}
    for index, value in enumerate(cleaned):
        if value is not None:
            by_type.setdefault(type(value), []).append(index)
    for kind, places in by_type.items():
        found, carried = _texts([cleaned[place] for place in places], kind, name)
        for place, text in zip(places, found, strict=True):
            texts[place] = text
        carriers |= carried
    return pa.array(texts, _TEXT), carriers


def _texts(values: list[Any], kind: type, name: str) -> tuple[list[str | None], dict[str, str]]:
    """The texts of values of one Python type, and what carried them."""
    for known, convert in _CONVERSIONS:
        if issubclass(kind, known) and not issubclass(kind, Enum):  # its value or its name: nobody can tell
            texts, carrier = convert(values, name)
            return texts, {} if carrier is None else {carrier: f"Python {kind.__name__}"}
    raise DataError(
        f"column '{name}' holds values of Python type {kind.__name__}, which have no certain text; "
        "make it numbers, texts or times"
    )


def _by_arrow(kind: pa.DataType | None = None) -> Callable[[list[Any], str], tuple[list[str | None], str | None]]:
    def convert(values: list[Any], name: str) -> tuple[list[str | None], str | None]:
        array = pa.array(values, kind)
        texts: list[str | None] = as_text(array, name, certain=True).to_pylist()
        return texts, next(iter(carriers_of(array.type)), None)

    return convert


def _integers(values: list[Any], _name: str) -> tuple[list[str | None], str | None]:
    return [str(int(value)) for value in values], "number"


def _times(values: list[Any], _name: str) -> tuple[list[str | None], str | None]:
    # With their zone, as a text has it: wall clock and moment are both there.
    return [value.isoformat(" ") for value in values], "time"


_CONVERSIONS: tuple[tuple[Any, Callable[[list[Any], str], tuple[list[str | None], str | None]]], ...] = (
    (str, lambda values, _: ([str.__str__(value) for value in values], None)),
    (bytes, _by_arrow(pa.binary())),
    ((bool, np.bool_), _by_arrow(pa.bool_())),
    ((int, np.integer), _integers),
    (np.floating, _by_arrow()),
    (float, _by_arrow(pa.float64())),
    (Decimal, _by_arrow()),
    (datetime, _times),
    (date, _by_arrow(pa.date32())),
    (time, _by_arrow(pa.time64("us"))),
    (UUID, lambda values, _: ([str(value) for value in values], "uuid")),
)


def _is_list(kind: type) -> bool:
    return issubclass(kind, list | tuple | np.ndarray)


def _lists(
    values: Sequence[Any], present: list[bool], types: Collection[type], name: str
) -> tuple[Any, dict[str, str]]:
    other = sorted(kind.__name__ for kind in types if not _is_list(kind))
    if other:
        raise DataError(f"column '{name}' holds lists in some rows and {other[0]} in others; make it lists throughout")
    elements: list[Any] = []
    ends = [0]
    for value, there in zip(values, present, strict=True):
        if there:
            elements += value.tolist() if isinstance(value, np.ndarray) else value
        ends.append(len(elements))
    if any(_is_list(type(one)) for one in elements):
        raise DataError(f"column '{name}' holds lists of lists; make it lists of numbers, texts or times")
    flat, carriers = objects(elements, name)
    offsets = pa.array(ends, pa.int64())
    lists: Any = pa.LargeListArray.from_arrays(offsets, flat, mask=pa.array([not there for there in present]))
    return lists, carriers


def is_missing(value: Any) -> bool:
    """None, NaN of any type, NaT and pandas.NA."""
    if value is None:
        return True
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    if isinstance(value, Decimal):
        return value.is_nan()
    return type(value).__name__ in ("NaTType", "NAType") or (isinstance(value, np.datetime64) and np.isnat(value))
