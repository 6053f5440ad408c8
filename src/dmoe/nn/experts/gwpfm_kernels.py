"""Compiled loops of GwPFM on the CPU.

Shape suffixes: B rows, F fields, G groups, K width of one of a feature's vectors, D = G * K.
"""

from typing import Any

import numpy.typing as npt

from dmoe.kernels.row_parallel import kernel

Array = npt.NDArray[Any]


@kernel
def group_sums(
    start: int, stop: int, embeddings_BFD: Array, group_F: Array, sums_BGD: Array, squares_BGK: Array
) -> None:
    """Adds, for batch rows [start, stop), the fields of each group, and the squares of their vectors for it."""
    width = squares_BGK.shape[2]
    for row in range(start, stop):
        for field in range(len(group_F)):
            group = group_F[field]
            for column in range(embeddings_BFD.shape[2]):
                sums_BGD[row, group, column] += embeddings_BFD[row, field, column]
            for column in range(width):
                value = embeddings_BFD[row, field, group * width + column]
                squares_BGK[row, group, column] += value * value


@kernel
def group_sums_gradient(
    start: int,
    stop: int,
    embeddings_BFD: Array,
    group_F: Array,
    sums_BGD: Array,
    squares_BGK: Array,
    gradient_BFD: Array,
) -> None:
    """The gradient of the embeddings from those of what `group_sums` gives."""
    width = squares_BGK.shape[2]
    for row in range(start, stop):
        for field in range(len(group_F)):
            group = group_F[field]
            for column in range(embeddings_BFD.shape[2]):
                gradient_BFD[row, field, column] = sums_BGD[row, group, column]
            for column in range(width):
                own = group * width + column
                gradient_BFD[row, field, own] += 2 * embeddings_BFD[row, field, own] * squares_BGK[row, group, column]
