"""Columns as codes into their distinct values.

N rows, V distinct values, L values of a multi-valued field.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from dmoe.errors import DataError

MISSING = -1

# A column's type is known only when it is read: annotations of pyarrow cannot follow it.
Column: TypeAlias = Any
pc: Any = pyarrow.compute
Codes = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Coded:
    """`values[codes_N]`, and missing where the code is -1. Some of the values may be used by no row.

    Of a multi-valued field the codes are (N, L): its values first, -1 behind them.
    """

    codes_N: Codes
    values: Column


def as_text(column: Column, name: str) -> Column:
    """A column as text: integers in digits, floats in their shortest digits (whole ones without a point),
    times as in `2014-10-21 23:00:00`, true and false; null and NaN stay missing.

    Raises: DataError if its type has no text.
    """
    kind = column.type
    if pa.types.is_string(kind):
        return column
    if pa.types.is_dictionary(kind):
        return as_text(column.dictionary_decode(), name)
    if pa.types.is_floating(kind):
        return _float_text(column.cast(pa.float64()) if pa.types.is_float16(kind) else column)
    try:
        text = column.cast(pa.string())
        text.validate(full=True)  # binary columns are cast as they are
    except pa.ArrowException:
        raise DataError(f"column '{name}' holds {kind} values, which cannot be read as text") from None
    return text


def _float_text(column: Column) -> Column:
    present = pc.fill_null(pc.invert(pc.is_nan(column)), False)
    column = pc.if_else(present, column, pa.scalar(None, column.type))
    wide = column.cast(pa.float64())
    whole = pc.fill_null(pc.and_(pc.equal(pc.floor(wide), wide), pc.less(pc.abs(wide), 2.0**53)), False)
    integers = pc.if_else(whole, wide, None).cast(pa.int64()).cast(pa.string())
    return pc.if_else(whole, integers, column.cast(pa.string()))


def codes_of(encoded: Column) -> Codes:
    """The codes of a dictionary column, -1 where null."""
    indices = encoded.indices.fill_null(MISSING) if encoded.null_count else encoded.indices
    codes: Codes = indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return codes


def without(column: Coded, missing: tuple[str, ...]) -> Coded:
    """The column with these values missing."""
    if not missing:
        return column
    gone = pc.is_in(column.values, value_set=pa.array(missing, pa.string())).to_numpy(zero_copy_only=False)
    if not gone.any():
        return column
    recode = np.where(gone, MISSING, np.arange(len(gone))).astype(np.int32)
    return Coded(take(recode, column.codes_N), column.values)


def take(by_code: Codes, codes_N: Codes) -> Codes:
    """`by_code[codes_N]`, and missing where the code is missing."""
    return np.append(by_code, np.int32(MISSING))[codes_N]
