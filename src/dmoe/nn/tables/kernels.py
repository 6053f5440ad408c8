"""Compiled loops of the multi-table embedding on the CPU.

Shape suffixes: B rows, C categorical fields, P = B·C positions, U distinct table rows of the batch,
V table rows, S summed width of all tables, D width of one table.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.kernels.row_parallel import kernel

Array = npt.NDArray[Any]


@kernel
def first_bad_id(ids_BC: Array, sizes_C: Array) -> int:
    """The first position (row-major) whose id is outside [0, vocabulary size of its field), or -1."""
    num_rows, num_fields = ids_BC.shape
    for row in range(num_rows):
        bad = False
        for field in range(num_fields):
            bad |= (ids_BC[row, field] < 0) | (ids_BC[row, field] >= sizes_C[field])
        if bad:
            for field in range(num_fields):
                if ids_BC[row, field] < 0 or ids_BC[row, field] >= sizes_C[field]:
                    position: int = row * num_fields + field
                    return position
    return -1


@kernel
def gather(
    start: int,
    stop: int,
    ids_BC: Array,
    offsets_C: Array,
    weight_VS: Array,
    first_columns_T: Array,
    widths_T: Array,
    num_fields: int,
    out: Array,
) -> None:
    """Copies the table rows of batch rows [start, stop) into `out`.

    `out` is flat: the (B, num_fields, D) outputs of all tables, one after the other; fields beyond C are left.
    """
    num_rows, num_categorical = ids_BC.shape
    for row in range(start, stop):
        for field in range(num_categorical):
            source = offsets_C[field] + ids_BC[row, field]
            position = row * num_fields + field
            for table in range(len(widths_T)):
                width = widths_T[table]
                first = first_columns_T[table]
                target = num_rows * num_fields * first + position * width
                for column in range(width):
                    out[target + column] = weight_VS[source, first + column]


@kernel
def gather_to(
    start: int,
    stop: int,
    ids_BC: Array,
    offsets_C: Array,
    weight_VS: Array,
    first_column: int,
    places_C: Array,
    out_BFD: Array,
) -> None:
    """Copies one table's rows for batch rows [start, stop) to `out_BFD`.

    `places_C`: where each id column stands there, -1 for nowhere.
    """
    for row in range(start, stop):
        for field in range(len(places_C)):
            source, place = offsets_C[field] + ids_BC[row, field], places_C[field]
            if place < 0:
                continue
            for column in range(out_BFD.shape[2]):
                out_BFD[row, place, column] = weight_VS[source, first_column + column]


@kernel
def put_fields(start: int, stop: int, part_BFD: Array, places_F: Array, out_BFD: Array) -> None:
    """Copies the fields of batch rows [start, stop) to their places in `out_BFD`, -1 for nowhere."""
    for row in range(start, stop):
        for field in range(len(places_F)):
            place = places_F[field]
            if place < 0:
                continue
            for column in range(out_BFD.shape[2]):
                out_BFD[row, place, column] = part_BFD[row, field, column]


@kernel
def take_fields(start: int, stop: int, whole_BFD: Array, places_F: Array, out_BFD: Array) -> None:
    """The inverse of `put_fields`."""
    for row in range(start, stop):
        for field in range(len(places_F)):
            place = places_F[field]
            for column in range(out_BFD.shape[2]):
                out_BFD[row, field, column] = whole_BFD[row, place, column] if place >= 0 else 0.0


@kernel
def distinct_rows(ids_BC: Array, offsets_C: Array, bits: Array, ranks: Array) -> Array:
    """The distinct table rows of a batch, ascending.

    `bits`: zeroed uint64 words, one bit a table row. `ranks`: int64, as long as `bits`; receives the number of
    distinct rows before each word. A bitmap of 4M rows is 0.5 MB, stays in the cache and needs no sorting.
    """
    one = np.uint64(1)
    num_rows, num_fields = ids_BC.shape
    for row in range(num_rows):
        for field in range(num_fields):
            index = np.int64(offsets_C[field] + ids_BC[row, field])
            bits[index >> 6] |= one << np.uint64(index & 63)
    total = 0
    for word in range(len(bits)):
        ranks[word] = total
        total += _count_bits(bits[word])
    rows_U = np.empty(total, np.int64)
    count = 0
    for word in range(len(bits)):
        rest = bits[word]
        while rest != 0:
            lowest = rest & (~rest + one)
            rows_U[count] = word * 64 + np.int64(_count_bits(lowest - one))
            count += 1
            rest ^= lowest
    return rows_U


@kernel
def positions_of(
    start: int, stop: int, ids_BC: Array, offsets_C: Array, bits: Array, ranks: Array, inverse_BC: Array
) -> None:
    """For batch rows [start, stop): where each table row stands in the result of `distinct_rows`."""
    one = np.uint64(1)
    for row in range(start, stop):
        for field in range(ids_BC.shape[1]):
            index = np.int64(offsets_C[field] + ids_BC[row, field])
            below = bits[index >> 6] & ((one << np.uint64(index & 63)) - one)
            inverse_BC[row, field] = ranks[index >> 6] + _count_bits(below)


@kernel
def _count_bits(word: Any) -> Any:
    word = np.uint64(word)
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel
def scatter_add(
    first_field: int,
    last_field: int,
    inverse_BC: Array,
    gradient_BFD: Array,
    places_C: Array,
    first_column: int,
    summed_US: Array,
) -> None:
    """Adds one table's gradient of fields [first_field, last_field) to the distinct rows, in batch order.

    `places_C`: where each field stands in the gradient, -1 for nowhere.

    No other thread may have a field of the same vocabulary: both would add to the same rows.
    """
    for row in range(inverse_BC.shape[0]):
        for field in range(first_field, last_field):
            target, place = inverse_BC[row, field], places_C[field]
            if place < 0:
                continue
            for column in range(gradient_BFD.shape[2]):
                summed_US[target, first_column + column] += gradient_BFD[row, place, column]
