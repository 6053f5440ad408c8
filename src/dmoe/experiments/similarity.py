"""How alike experts are, beyond CEC: centred kernel alignment, errors in common, and the collapse of tables.

Shape suffixes: N rows, D width, M experts, V table rows.
"""

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


class LinearCKA:
    """Linear centred kernel alignment of M experts over any number of rows, in one pass and without bias.

    CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) (Kornblith et al., ICML 2019), with the unbiased estimator of
    HSIC (Song et al., JMLR 2012, eq. 5) of linear kernels, which needs no N×N matrix. Unlike CEC it does not change
    under a rotation of the units. It may come out slightly below 0 for independent experts.

    Shape: `update` takes M tensors (N, D_m), N from 0 up.
    """

    def __init__(self, num_experts: int) -> None:
        if num_experts < 2:
            raise ValueError(f"LinearCKA.num_experts must be at least 2, got {num_experts}")
        self.num_experts = num_experts
        self.rows = 0
        self._origin: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._traces: list[float] = [0.0] * num_experts
        self._pairs = list(combinations_with_replacement(range(num_experts), 2))
        self._products: dict[tuple[int, int], Tensor] = {}
        self._diagonals: dict[tuple[int, int], float] = dict.fromkeys(self._pairs, 0.0)
        self._weighted: dict[tuple[int, int], Tensor] = {}

    def update(self, outputs: Sequence[Tensor]) -> None:
        """Adds one batch.

        Raises: ValueError for another number of experts.
        """
        if len(outputs) != self.num_experts:
            raise ValueError(f"expected the outputs of {self.num_experts} experts, got {len(outputs)}")
        if len(outputs[0]) == 0:
            return
        columns = [output.detach().double().cpu() for output in outputs]
        if not self._origin:
            # The estimate does not depend on the origin, but its rounding does.
            self._origin = [column_ND.mean(0) for column_ND in columns]
            self._sums = [torch.zeros_like(origin_D) for origin_D in self._origin]
        columns = [column_ND - origin_D for column_ND, origin_D in zip(columns, self._origin, strict=True)]
        squares = [column_ND.square().sum(1) for column_ND in columns]
        self.rows += len(columns[0])
        for index, (column_ND, square_N) in enumerate(zip(columns, squares, strict=True)):
            self._sums[index] += column_ND.sum(0)
            self._traces[index] += square_N.sum().item()
        for p, q in self._pairs:
            product = columns[p].T @ columns[q]
            self._products[p, q] = self._products[p, q] + product if (p, q) in self._products else product
            self._diagonals[p, q] += torch.dot(squares[p], squares[q]).item()
        for p in range(self.num_experts):
            for q in range(self.num_experts):
                weighted_D = columns[p].T @ squares[q]
                self._weighted[p, q] = self._weighted[p, q] + weighted_D if (p, q) in self._weighted else weighted_D

    def compute(self) -> list[list[float | None]]:
        """M×M, filled below the diagonal; None elsewhere, and where an expert does not vary.

        Raises: ValueError for fewer than four rows, where the estimator is undefined.
        """
        if self.rows < 4:
            raise ValueError(f"the unbiased estimator needs at least four rows, got {self.rows}")
        matrix: list[list[float | None]] = [[None] * self.num_experts for _ in range(self.num_experts)]
        own = [self._hsic(index, index) for index in range(self.num_experts)]
        for p, q in self._pairs:
            if p != q and own[p] > 0 and own[q] > 0:
                matrix[q][p] = self._hsic(p, q) / math.sqrt(own[p] * own[q])
        return matrix

    def _hsic(self, p: int, q: int) -> float:
        """Σ over rows i ≠ j of the kernels' entries, by the sums that were kept."""
        n = self.rows
        diagonal = self._diagonals[p, q]
        trace = self._products[p, q].square().sum().item() - diagonal
        totals = [
            self._sums[index].square().sum().item() - self._traces[index] for index in (p, q)
        ]  # 1ᵀ K̃ 1 and 1ᵀ L̃ 1
        crossed = (
            (self._sums[p] @ self._products[p, q] @ self._sums[q]).item()
            - torch.dot(self._sums[p], self._weighted[p, q]).item()
            - torch.dot(self._sums[q], self._weighted[q, p]).item()
            + diagonal
        )  # 1ᵀ K̃ L̃ 1
        return (trace + totals[0] * totals[1] / ((n - 1) * (n - 2)) - 2 * crossed / (n - 2)) / (n * (n - 3))


def information_abundance(table_VD: Floats, weights_V: Floats | None = None) -> float | None:
    """Σ_k σ_k / max_k σ_k of the table's singular values, 1 (one direction) to D (all alike); None for a zero table.

    Guo et al., "On the Embedding Collapse when Scaling up Recommendation Models" (ICML 2024). With `weights_V` each row
    counts as often as given, so that rows which training never reached do not hide a collapse.
    """
    weighted_VD = table_VD if weights_V is None else table_VD * weights_V[:, None]
    eigenvalues = np.linalg.eigvalsh(weighted_VD.T @ table_VD)
    singular = np.sqrt(np.maximum(eigenvalues, 0.0))
    return float(singular.sum() / singular.max()) if singular.max() > 0 else None


def error_correlation(labels_N: NDArray[np.bool_], alone: Sequence[Floats]) -> float | None:
    """Mean over pairs of experts of the correlation of their errors y - p, from the logits of each expert alone.

    None if an expert's error is constant.
    """
    errors = np.stack([labels_N - 1 / (1 + np.exp(-logits_N)) for logits_N in alone])
    if (errors.std(axis=1) == 0).any():
        return None
    matrix: Floats = np.atleast_2d(np.corrcoef(errors))
    return float(matrix[np.triu_indices(len(alone), 1)].mean())
