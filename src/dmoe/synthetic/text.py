"""Turns drawn rows into the text of a log: hashes, numbers, hours, empty cells. Shape suffix: R rows."""

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from dmoe.synthetic.draw import MISSING, Columns
from dmoe.synthetic.logit import AFFINITY_RANK, affinity_purpose, bell, key, scramble
from dmoe.synthetic.spec import Categorical, GivenVectors, Numeric, Preset, Several
from dmoe.synthetic.tasks import UNKNOWN

Column: TypeAlias = "pa.Array[pa.Scalar[pa.DataType]]"

FIRST_HOUR = 14_10_21_00  # YYMMDDHH: the first hour of the Avazu log
_HEX_PAIRS = np.array([f"{byte:02x}" for byte in range(256)], dtype="S2").view(np.uint16)


def render(preset: Preset, seed: int, columns: Columns, labels: Mapping[str, NDArray[np.uint8]]) -> pa.Table:
    """The rows as a table in file order, row id and labels included; missing cells and unknown labels are null."""
    names: list[str] = []
    arrays: list[Column] = []
    if preset.row_id is not None:
        row_R = np.arange(columns.start, columns.start + len(columns))
        names.append(preset.row_id)
        arrays.append(pa.array(scramble(row_R, key(seed, "row id"))))
    position = len(names) + preset.label_after
    for column in preset.columns:
        names.append(column.name)
        if isinstance(column, Numeric):
            arrays.append(_numbers(column, columns.numbers[column.name]))
        elif isinstance(column, Several):
            arrays.append(_joined(preset.law(column), seed, columns.tokens[column.name]))
        else:
            arrays.append(_tokens(column, seed, columns.tokens[column.name]))
    names[position:position] = labels
    arrays[position:position] = [_labels(label_R) for label_R in labels.values()]
    return pa.Table.from_arrays(arrays, names=names)


def _labels(label_R: NDArray[np.uint8]) -> Column:
    unknown_R = label_R == UNKNOWN
    return pa.array(label_R, mask=unknown_R if unknown_R.any() else None)


def _numbers(column: Numeric, z_R: NDArray[np.float64]) -> Column:
    missing_R = np.isnan(z_R)
    if column.count is None:
        return pa.array(np.round(z_R, 3), mask=missing_R)
    mu, sigma = column.count
    # Undoes `visible`: the whole number that this z was told from.
    count_R = np.rint(np.exp(mu + sigma * np.where(missing_R, 0.0, z_R))) - 1
    return pa.array(count_R.astype(np.int64), mask=missing_R)


def _joined(law: Categorical, seed: int, token_RL: NDArray[np.int64]) -> Column:
    """The texts of a row's tokens with bars between them, null if there are none."""
    present_RL = token_RL != MISSING
    texts: Any = _tokens(law, seed, token_RL[present_RL]).cast(pa.string())
    offsets: Any = pa.array(np.concatenate([[0], np.cumsum(present_RL.sum(1))]).astype(np.int32))
    lists: Any = pa.ListArray.from_arrays(offsets, texts, mask=pa.array(~present_RL.any(1)))
    joined: Any = pyarrow.compute.binary_join(lists, "|")
    return cast(Column, joined)


def given_vectors(preset: Preset, seed: int, given: GivenVectors) -> pa.Table:
    """`key` and `vector` of every token of the column: main effect, affinities, then nothing but noise."""
    column = next(one for one in preset.categorical if one.name == given.column)
    token_K = np.arange(column.size)
    planted = [bell(token_K, key(seed, f"main/{column.name}"))]
    planted += [bell(token_K, affinity_purpose(seed, column.name, component)) for component in range(AFFINITY_RANK)]
    random = np.random.Generator(np.random.PCG64([seed, 2]))
    vector_KW = random.standard_normal((column.size, given.width))
    vector_KW[:, : len(planted)] *= given.noise
    vector_KW[:, : len(planted)] += np.stack(planted, axis=1)
    flat = pa.array(vector_KW.astype(np.float32).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, given.width)
    return pa.table({"key": _tokens(column, seed, token_K).cast(pa.string()), "vector": vectors})


def _tokens(column: Categorical, seed: int, token_R: NDArray[np.int64]) -> Column:
    missing_R = token_R == MISSING
    if column.text == "hex":
        return _hex(hash_of(column, seed, token_R), missing_R)
    if column.text == "hour":
        number_R = FIRST_HOUR + token_R // 24 * 100 + token_R % 24
    elif column.codes:
        number_R = np.asarray(column.codes, dtype=np.int64)[token_R]
    else:
        number_R = column.first + token_R
    if column.missing_text:
        return pa.array(np.where(missing_R, int(column.missing_text), number_R))
    texts: Column = pa.array(number_R, mask=missing_R)
    return texts


def hash_of(column: Categorical, seed: int, token_R: NDArray[np.int64]) -> NDArray[np.uint32]:
    """32 bits for each token, different for different tokens: every step can be undone."""
    bits_R = token_R.astype(np.uint32)
    for step in range(3):
        purpose = int(key(seed, f"text/{column.name}/{step}"))
        bits_R = bits_R * np.uint32(purpose & 0xFFFFFFFF | 1) + np.uint32(purpose >> 32)
        bits_R ^= bits_R >> np.uint32(15)
    return bits_R


def _hex(bits_R: NDArray[np.uint32], missing_R: NDArray[np.bool_]) -> Column:
    """Eight lower-case hexadecimal digits each, as an Arrow string column built from its buffers."""
    rows = len(bits_R)
    text = _HEX_PAIRS[bits_R.astype(">u4").view(np.uint8)].tobytes()
    offsets = np.arange(0, 8 * rows + 1, 8, dtype=np.int32)
    valid = pa.py_buffer(np.packbits(~missing_R, bitorder="little").tobytes()) if missing_R.any() else None
    return pa.Array.from_buffers(pa.string(), rows, [valid, pa.py_buffer(offsets.tobytes()), pa.py_buffer(text)])
