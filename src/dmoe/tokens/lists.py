"""Multi-valued columns: texts with separators, or lists, as codes into their distinct values.

N rows, T distinct texts (or rows, of a column of lists), E values of all of them, L values kept of each.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.config.fields import MultiValuedOptions
from dmoe.schema import MISSING_ID
from dmoe.values.coded_columns import MISSING, CodedColumn, Codes, Column, as_text, codes_of, is_list, pc, without


def split_values(column: Column, options: MultiValuedOptions, missing: Iterable[str], name: str) -> CodedColumn:
    """The values of each row, (N, L), those that are missing left out.

    Raises: DataError if the column holds no texts and no lists of them.
    """
    if is_list(column.type):
        codes_N: Codes = np.arange(len(column), dtype=np.int32)
        split = column
    else:
        encoded = as_text(column, name, certain=True).dictionary_encode()
        codes_N = codes_of(encoded)
        split = pc.split_pattern(encoded.dictionary, options.separator)
    # Not `list_parent_indices`: it has the values too that lie under a null.
    counts_T = pc.fill_null(pc.list_value_length(split), 0).to_numpy(zero_copy_only=False)
    text_of_E = np.repeat(np.arange(len(split)), counts_T)
    values = as_text(split.flatten(), name, certain=True).dictionary_encode()
    elements = without(CodedColumn(codes_of(values), values.dictionary), (*missing, *options.missing_values))
    by_text_TL = padded(text_of_E, elements.codes_N, len(split), options.max_length, options.keep == "last")
    # The last row, found by the code of a missing text, has no values.
    none_L = np.full((1, options.max_length), MISSING, np.int32)
    return CodedColumn(np.concatenate([by_text_TL, none_L])[codes_N], elements.values)


def padded(
    text_of_E: npt.NDArray[np.integer], codes_E: Codes, texts: int, length: int, last: bool
) -> npt.NDArray[np.int32]:
    """(T, `length`): the codes of each text in order, the first or last of them, -1 behind; codes of -1 left out."""
    present = codes_E != MISSING
    text_of_E, codes_E = text_of_E[present], codes_E[present]
    counts_T = np.bincount(text_of_E, minlength=texts)
    place_E = np.arange(len(codes_E)) - np.repeat(np.cumsum(counts_T) - counts_T, counts_T)
    if last:
        place_E -= np.repeat(np.maximum(counts_T - length, 0), counts_T)
    kept = (place_E >= 0) & (place_E < length)
    by_text_TL = np.full((texts, length), MISSING, np.int32)
    by_text_TL[text_of_E[kept], place_E[kept]] = codes_E[kept]
    return by_text_TL


def as_lists(ids_NL: npt.NDArray[np.int32]) -> Column:
    """Padded ids as a column of lists: the padding, id 0, is left out."""
    present_NL = ids_NL != MISSING_ID
    offsets = np.zeros(len(ids_NL) + 1, np.int32)
    np.cumsum(present_NL.sum(1), out=offsets[1:])
    values: Column = pa.array(ids_NL[present_NL])
    ends: Column = pa.array(offsets)
    return pa.ListArray.from_arrays(ends, values, type=ID_LISTS)


def as_ids(lists: Column, length: int) -> npt.NDArray[np.int32] | None:
    """The inverse of `as_lists`, (N, `length`); None if a list is longer or holds nulls."""
    flat = lists.flatten()
    offsets = lists.offsets.to_numpy()
    counts_N = np.diff(offsets)
    if flat.null_count or (len(counts_N) and int(counts_N.max()) > length):
        return None
    ids_NL = np.zeros((len(lists), length), np.int32)
    ids_NL[np.arange(length) < counts_N[:, None]] = flat.to_numpy(zero_copy_only=False)
    return ids_NL


# What readers of Parquet give for a list, whatever they call its values.
ID_LISTS: pa.DataType = pa.list_(pa.field("element", pa.int32(), nullable=False))
