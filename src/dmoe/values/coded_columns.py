"""Columns as codes into their distinct values.

N rows, V distinct values, L values of a multi-valued field.
"""

from collections.abc import Collection
from dataclasses import dataclass
from decimal import Context, InvalidOperation
from functools import lru_cache
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from dmoe.errors import DataError
from dmoe.values.missing import MissingTexts
from dmoe.values.spelling import float_text

MISSING = -1
_TEXT: pa.DataType = pa.string()
_EXACTLY = Context(prec=80)  # digits; no decimal type has more

# A column's type is known only when it is read: annotations of pyarrow cannot follow it.
Column: TypeAlias = Any
pc: Any = pyarrow.compute
Codes = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CodedColumn:
    """`values[codes_N]`, and missing where the code is -1. Some of the values may be used by no row.

    Of a multi-valued field the codes are (N, L): its values first, -1 behind them.
    """

    codes_N: Codes
    values: Column


def as_text(column: Column, name: str, *, certain: bool = False) -> Column:
    """A column as text, in the canonical text of its type (docs/data.md): null and NaN stay missing.

    With `certain`, floats that cannot hold every integer of their size are refused: an id in them may be another's.

    Raises: DataError if its type has no certain text.
    """
    kind = column.type
    if pa.types.is_string(kind):
        return column
    if isinstance(kind, pa.BaseExtensionType):
        if isinstance(kind, pa.UuidType):
            raw = column.storage.to_pylist()
            return pa.array([None if one is None else str(UUID(bytes=one)) for one in raw], _TEXT)
        return as_text(_storage(column, name), name, certain=certain)
    if pa.types.is_dictionary(kind):
        return as_text(column.dictionary, name, certain=certain).take(column.indices)
    if pa.types.is_null(kind):
        return column.cast(_TEXT)
    if pa.types.is_floating(kind):
        return _float_text(column, name, certain)
    if pa.types.is_decimal(kind):
        return _decimal_text(column, name)
    if pa.types.is_timestamp(kind):
        return _time_text(column)
    if pa.types.is_time(kind):
        return _without_zeros(column.cast(_TEXT))
    if not _has_text(kind):
        raise DataError(
            f"column '{name}' holds {kind} values, which have no certain text; make it numbers, texts or times"
        )
    try:
        text = column.cast(_TEXT)
        text.validate(full=True)  # binary columns are cast as they are
    except pa.ArrowException:
        raise DataError(f"column '{name}' holds {kind} values, which cannot be read as text") from None
    return text


def carriers_of(kind: Any) -> dict[str, str]:
    """What values of a type come in, beside text: `number`, `boolean`, `time`, `date`, `clock` or `uuid`."""
    types = pa.types
    if types.is_dictionary(kind):
        return carriers_of(kind.value_type)
    if is_list(kind):
        return carriers_of(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return {"uuid": "uuid"} if isinstance(kind, pa.UuidType) else carriers_of(kind.storage_type)
    by_carrier = {
        "number": types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind),
        "boolean": types.is_boolean(kind),
        "time": types.is_timestamp(kind),
        "date": types.is_date(kind),
        "clock": types.is_time(kind),
    }
    return {carrier: str(kind) for carrier, there in by_carrier.items() if there}


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists, however they are laid out."""
    types = pa.types
    one = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return one or types.is_list_view(kind) or types.is_large_list_view(kind)


def wall_clock(column: Column) -> Column:
    """Times of a zone as the clock there showed; all else as it is."""
    if pa.types.is_timestamp(column.type) and column.type.tz is not None:
        return pc.local_timestamp(column)
    return column


def float64_of(column: Column) -> Column:
    """A float column as float64: of a narrower one, the number of its shortest digits, which a text would say."""
    if pa.types.is_float64(column.type):
        return column
    return _shortest(column).cast(pa.float64())


def _has_text(kind: pa.DataType) -> bool:
    types = pa.types
    texts = types.is_large_string(kind) or types.is_string_view(kind) or types.is_boolean(kind)
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return texts or binary or types.is_binary_view(kind) or types.is_integer(kind) or types.is_date(kind)


def _storage(column: Column, name: str) -> Column:
    # What an extension makes of its storage is not ours to guess, but for booleans of 8 bits.
    if isinstance(column.type, pa.Bool8Type):
        return column.storage.cast(pa.bool_())
    if isinstance(column.type, pa.JsonType):
        return column.storage
    raise DataError(f"column '{name}' holds {column.type} values, which have no certain text; make it texts")


def _shortest(column: Column) -> Column:
    """The text of floats; Arrow writes those of 16 bits only as wider ones."""
    if not pa.types.is_float16(column.type):
        return column.cast(_TEXT)
    numbers = column.to_numpy(zero_copy_only=False)
    return pa.array([None if one is None or np.isnan(one) else str(np.float16(one)) for one in numbers], _TEXT)


# Whole numbers below are told apart by floats of so many bits.
EXACT_BELOW = {16: 2.0**11, 32: 2.0**24, 64: 2.0**53}


def _float_text(column: Column, name: str, certain: bool) -> Column:
    encoded = column.cast(pa.float64()).dictionary_encode()
    wide = encoded.dictionary
    present = pc.invert(pc.is_nan(wide))
    size = pc.if_else(pc.and_(present, pc.is_finite(wide)), pc.abs(wide), 0.0)
    limit = EXACT_BELOW[column.type.bit_width]
    if certain and len(wide) and pc.max(size).as_py() >= limit:
        raise DataError(
            f"column '{name}' holds {column.type} numbers of 2^{int(np.log2(limit))} and more, "
            "which do not tell every id or second from the next; read it as text or integers"
        )
    whole = pc.and_(pc.and_(present, pc.less(size, 2.0**53)), pc.equal(pc.floor(wide), wide))
    integers = pc.if_else(whole, wide, None).cast(pa.int64()).cast(_TEXT)
    others = _shortest(pc.if_else(pc.and_(present, pc.invert(whole)), wide, None).cast(column.type))
    long = pc.fill_null(pc.match_substring(others, "e"), False)
    if pc.any(long).as_py():  # Arrow writes exponents where a number is very large or small
        narrow = np.dtype(f"f{column.type.bit_width // 8}").type
        texts = others.to_pylist()
        others = pa.array([float_text(narrow(one)) if one and "e" in one else one for one in texts], _TEXT)
    return pc.if_else(whole, integers, others).take(encoded.indices)


def _decimal_text(column: Column, name: str) -> Column:
    encoded = column.dictionary_encode()
    try:
        values = encoded.dictionary.to_pylist()
    except InvalidOperation:  # a scale of more digits than the type has, which Arrow cannot write
        raise DataError(f"column '{name}' holds {column.type} values, which cannot be read as text") from None
    texts = [None if one is None else f"{one.normalize(_EXACTLY):f}" if one else "0" for one in values]
    return pa.array(texts, _TEXT).take(encoded.indices)


def _time_text(column: Column) -> Column:
    zone = column.type.tz is not None
    text = _without_zeros(column.cast(pa.timestamp(column.type.unit)).cast(_TEXT))
    return pc.binary_join_element_wise(text, "Z", "") if zone else text


def _without_zeros(text: Column) -> Column:
    """Fractions of seconds without the zeros at their end."""
    return pc.replace_substring_regex(text, r"(\.[0-9]*[1-9])0+$|\.0+$", r"\1")


def codes_of(encoded: Column) -> Codes:
    """The codes of a dictionary column, -1 where null."""
    indices = encoded.indices.fill_null(MISSING) if encoded.null_count else encoded.indices
    codes: Codes = indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return codes


def without(column: CodedColumn, missing: Collection[str]) -> CodedColumn:
    """The column with these values missing, however they are written."""
    if not missing:
        return column
    gone = missing_texts(tuple(missing)).among(column.values)
    if not gone.any():
        return column
    recode = np.where(gone, MISSING, np.arange(len(gone))).astype(np.int32)
    return CodedColumn(take(recode, column.codes_N), column.values)


@lru_cache
def missing_texts(texts: tuple[str, ...]) -> MissingTexts:
    return MissingTexts(texts)


def take(by_code: Codes, codes_N: Codes) -> Codes:
    """`by_code[codes_N]`, and missing where the code is missing."""
    return np.append(by_code, np.int32(MISSING))[codes_N]
