"""Compiled moves between a Gram matrix and its upper triangle on the CPU.

Shape suffixes: B rows, F fields, W width of what the products stand in.
"""

from typing import Any

import numpy.typing as npt

from dmoe.kernels.row_parallel import kernel

Array = npt.NDArray[Any]


@kernel
def copy_upper(start: int, stop: int, gram_BFF: Array, above: int, first: int, out_BW: Array) -> None:
    """The pairs j >= i + above of batch rows [start, stop) into the columns of `out_BW` from `first` on."""
    fields = gram_BFF.shape[1]
    for row in range(start, stop):
        place = first
        for i in range(fields):
            for j in range(i + above, fields):
                out_BW[row, place] = gram_BFF[row, i, j]
                place += 1


@kernel
def mirror_upper(start: int, stop: int, gradient_BW: Array, above: int, first: int, out_BFF: Array) -> None:
    """The symmetric matrices of which `copy_upper` took the pairs; the diagonal twice, 0 where it was not taken."""
    fields = out_BFF.shape[1]
    for row in range(start, stop):
        place = first
        for i in range(fields):
            out_BFF[row, i, i] = 0
            for j in range(i + above, fields):
                out_BFF[row, i, j] = gradient_BW[row, place]
                place += 1
            out_BFF[row, i, i] *= 2
        for i in range(1, fields):
            for j in range(i):
                out_BFF[row, i, j] = out_BFF[row, j, i]
