"""Rows of a table that may be stored in 16 bits: widened to float32, worked on, rounded back.

Rounding is stochastic: up or down with the probabilities that make the exact value the mean. Rounding to nearest
would undo every update below half a unit in the last place, and in bfloat16 that is most of them. The random bits
are a hash of (step, element), so they depend on neither threads nor order, and a resumed run draws the same.

Shape suffixes: V table rows, S table width, U rows of a call.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmoe.kernels.row_parallel import HALF_DTYPES, kernel, numpy_dtype

Array = npt.NDArray[Any]


class Numbering(NamedTuple):
    """The number that a table's row has where several processes hold parts of one table: of row i of this part,
    ((first + i) mod per_way) · ways + (first + i) div per_way. By default i: one process holds the table."""

    first: int = 0
    per_way: int = 1 << 62
    ways: int = 1


class RowStorage(Protocol):
    """Access to the rows of one table; `dtype` is that of the arithmetic."""

    dtype: np.dtype[Any]

    def read(self, rows_U: Array) -> tuple[Array, Array]:
        """An array to work on, and which of its rows are `rows_U`."""

    def write(self, values: Array, rows_U: Array, step: int) -> None:
        """Keeps what was changed in the array that `read(rows_U)` gave. Each row at most once for a step."""


def row_storage(weight: Tensor, numbering: Numbering = Numbering()) -> RowStorage:  # noqa: B008 (it is immutable)
    """The access to `weight`, a table on the CPU. Random bits are those of the rows' numbers.

    Raises: ValueError if its dtype is not float32, float64, bfloat16 or float16.
    """
    return _HalfRows(weight, numbering) if weight.dtype in HALF_DTYPES else _WholeRows(weight)


class _WholeRows:
    """Rows are worked on where they are."""

    def __init__(self, weight: Tensor) -> None:
        self.dtype = numpy_dtype(weight.dtype)
        self._weight = weight

    def read(self, rows_U: Array) -> tuple[Array, Array]:
        return self._weight.detach().numpy(), rows_U

    def write(self, values: Array, rows_U: Array, step: int) -> None:
        pass


class _HalfRows:
    """Rows are worked on in a float32 copy, which for the few hundred of a chunk stays in the cache."""

    def __init__(self, weight: Tensor, numbering: Numbering) -> None:
        self.dtype = np.dtype(np.float32)
        self._weight, self._numbering = weight, numbering
        self._widen, self._round = (
            (widen_bfloat16, round_to_bfloat16) if weight.dtype == torch.bfloat16 else (widen_float16, round_to_float16)
        )

    def read(self, rows_U: Array) -> tuple[Array, Array]:
        values_US = np.empty((len(rows_U), self._weight.shape[1]), np.float32)
        self._widen(rows_U, self._bits(), values_US)
        return values_US, np.arange(len(rows_U))

    def write(self, values: Array, rows_U: Array, step: int) -> None:
        self._round(rows_U, values, self._bits(), step, *self._numbering)

    def _bits(self) -> Array:
        bits_VS: Array = self._weight.detach().view(torch.uint16).numpy()
        return bits_VS


@kernel
def widen_bfloat16(rows_U: Array, bits_VS: Array, values_US: Array) -> None:
    for index in range(len(rows_U)):
        row = rows_U[index]
        for column in range(bits_VS.shape[1]):
            values_US[index, column] = np.uint32(np.uint32(bits_VS[row, column]) << np.uint32(16)).view(np.float32)


@kernel
def widen_float16(rows_U: Array, bits_VS: Array, values_US: Array) -> None:
    for index in range(len(rows_U)):
        row = rows_U[index]
        for column in range(bits_VS.shape[1]):
            bits = np.uint32(bits_VS[row, column])
            magnitude = np.uint32(bits & np.uint32(0x7FFF))
            # The exponent's bias is 15 here and 127 in float32; 31, infinity or not a number, becomes 255.
            bias = np.uint32(112 << 23) if magnitude < 0x7C00 else np.uint32(224 << 23)
            wide = np.uint32((magnitude << np.uint32(13)) + bias)
            # Below 2⁻¹⁴: multiples of 2⁻²⁴.
            value = wide.view(np.float32) if magnitude >= 0x0400 else np.float32(magnitude) * np.float32(2.0**-24)
            values_US[index, column] = -value if bits >> np.uint32(15) else value


@kernel
def round_to_bfloat16(
    rows_U: Array, values_US: Array, bits_VS: Array, step: int, first: int, per_way: int, ways: int
) -> None:
    width = bits_VS.shape[1]
    key = _mix(step)
    for index in range(len(rows_U)):
        row = rows_U[index]
        place = first + row
        number = place % per_way * ways + place // per_way
        for column in range(width):
            bits = np.float32(values_US[index, column]).view(np.uint32)
            magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
            random = _mix(key ^ np.uint32(number * width + column))
            # A carry into the exponent is right for numbers, but would make one of what is none.
            added = random & np.uint32(0xFFFF) if magnitude < 0x7F800000 else np.uint32(0)
            quiet = np.uint32(0x0040) if magnitude > 0x7F800000 else np.uint32(0)
            bits_VS[row, column] = np.uint16((np.uint32(bits + added) >> np.uint32(16)) | quiet)


@kernel
def round_to_float16(
    rows_U: Array, values_US: Array, bits_VS: Array, step: int, first: int, per_way: int, ways: int
) -> None:
    width = bits_VS.shape[1]
    key = _mix(step)
    for index in range(len(rows_U)):
        row = rows_U[index]
        place = first + row
        number = place % per_way * ways + place // per_way
        for column in range(width):
            value = np.float32(values_US[index, column])
            bits = value.view(np.uint32)
            magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
            random = _mix(key ^ np.uint32(number * width + column))
            if magnitude >= 0x38800000:  # 2⁻¹⁴ and more: ten bits after the leading one
                rounded = np.uint32(magnitude + (random & np.uint32(0x1FFF)) - np.uint32(112 << 23)) >> np.uint32(13)
            else:  # multiples of 2⁻²⁴
                scaled = abs(value) * np.float32(2.0**24)
                below = np.floor(scaled)
                up = np.float32(random >> np.uint32(8)) * np.float32(2.0**-24) < scaled - below
                rounded = np.uint32(below) + np.uint32(up)
            if magnitude >= 0x47800000:  # 2¹⁶ and more, and what is no number
                rounded = np.uint32(0x7E00) if magnitude > 0x7F800000 else np.uint32(0x7C00)
            bits_VS[row, column] = np.uint16(rounded | ((bits >> np.uint32(16)) & np.uint32(0x8000)))


@kernel
def _mix(number: Any) -> Any:
    """32 bits that look random, another set for each 32-bit number (lowbias32 of C. Wellons' hash prospector)."""
    x = np.uint32(number)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))
