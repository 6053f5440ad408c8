"""Linear CKA between experts over any number of rows: a measure beside cross-expert correlation.

Shape suffixes: N rows in all, B rows of a batch, D the width of one expert, P and Q those of a pair, W the widths
of all experts side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise

import torch
from torch import Tensor

from dmoe.decorrelation.checks import check_outputs


@dataclass(frozen=True, slots=True)
class ExpertSimilarity:
    """Linear CKA of each pair of experts over a whole set of rows.

    `matrix` is M×M nested tuples, filled below the diagonal, None elsewhere; also None for a pair of which one
    expert is constant, or has no similarity with itself beyond chance, where CKA does not exist.
    """

    matrix: tuple[tuple[float | None, ...], ...]
    """0 for no linear dependence, 1 for outputs equal up to rotation and scale; the unbiased one may be below 0."""
    rows: int
    unbiased: bool


class LinearCKA:
    """Centred kernel alignment with a linear kernel (Kornblith et al., ICML 2019), in one pass over the rows.

    `CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))`, with HSIC(X, Y) = ‖X̃ᵀ Ỹ‖² of centred columns or, by
    default, the unbiased estimator of Song et al. (JMLR 2012, eq. 5). The biased one grows towards 1 where rows are
    few beside the width. Unlike CEC, CKA does not change when an expert's columns are rotated into each other.

    Everything is a sum over rows of products of at most four numbers, about the mean of the first batch, in
    float64, so memory is one (W, W) matrix, whatever the number of rows.

    >>> metric = LinearCKA(2)
    >>> x = torch.randn(100, 4, dtype=torch.float64)
    >>> metric.update([x, 3 * x.flip(1) + 1])
    >>> round(metric.compute().matrix[1][0], 6)
    1.0
    """

    def __init__(self, num_experts: int, *, unbiased: bool = True) -> None:
        if num_experts < 2:
            raise ValueError(f"LinearCKA.num_experts must be at least 2, got {num_experts}")
        self.num_experts, self.unbiased = num_experts, unbiased
        self._widths: list[int] = []
        self._rows = 0
        self._shift_W = torch.empty(0)
        self._sums_W = torch.empty(0)
        self._products_WW = torch.empty(0)
        # Σ_i a_i b_i and Σ_i x_i b_i, with a_i = ‖x_i‖² and b_i the same of every other expert.
        self._norm_products_MM = torch.empty(0)
        self._norm_columns_WM = torch.empty(0)

    def update(self, outputs: Sequence[Tensor]) -> None:
        """Adds one batch: M tensors (B, d_m), B from 0 up, widths fixed by the first batch.

        Raises: ValueError for tensors that do not fit or values that are not finite.
        """
        if len(outputs) != self.num_experts:
            raise ValueError(f"expected the outputs of {self.num_experts} experts, got {len(outputs)}")
        rows = check_outputs(outputs)
        widths = [output.shape[1] for output in outputs]
        if self._widths and widths != self._widths:
            raise ValueError(f"experts have widths {widths}; earlier batches had {self._widths}")
        if rows == 0:
            return
        # Sums of inference mode could not be added to after it.
        with torch.inference_mode(False), torch.no_grad():
            device = outputs[0].device if outputs[0].device.type != "mps" else "cpu"  # mps has no float64
            columns_BW = torch.cat([output.to(device, torch.float64) for output in outputs], dim=1)
            if not torch.isfinite(columns_BW).all():
                raise ValueError("an expert gave an output that is not finite; its similarity is undefined")
            if not self._widths:
                self._widths = widths
                self._shift_W = columns_BW.mean(0)
                self._sums_W = torch.zeros_like(self._shift_W)
                width = len(self._shift_W)
                self._products_WW = columns_BW.new_zeros(width, width)
                self._norm_products_MM = columns_BW.new_zeros(self.num_experts, self.num_experts)
                self._norm_columns_WM = columns_BW.new_zeros(width, self.num_experts)
            columns_BW = columns_BW - self._shift_W
            parts = columns_BW.split_with_sizes(widths, dim=1)
            norms_BM = torch.stack([part_BD.square().sum(1) for part_BD in parts], dim=1)
            self._rows += rows
            self._sums_W += columns_BW.sum(0)
            # Blocks below the diagonal are the transposes of those above it, and never read.
            for (left_BP, left), (right_BQ, right) in combinations_with_replacement(
                zip(parts, self._places(), strict=True), 2
            ):
                self._products_WW[left, right] += left_BP.T @ right_BQ
            self._norm_products_MM += norms_BM.T @ norms_BM
            self._norm_columns_WM += columns_BW.T @ norms_BM

    def compute(self) -> ExpertSimilarity:
        """The figures for all rows so far; more may follow.

        Raises: ValueError for fewer than two rows, or than four with the unbiased estimator.
        """
        least = 4 if self.unbiased else 2
        if self._rows < least:
            raise ValueError(f"CKA needs at least {least} rows, got {self._rows}")
        places = self._places()
        estimate = self._unbiased if self.unbiased else self._biased
        hsic = {
            (p, q): estimate(places[p], places[q], p, q)
            for p, q in combinations_with_replacement(range(self.num_experts), 2)
        }
        matrix: list[list[float | None]] = [[None] * self.num_experts for _ in range(self.num_experts)]
        for (p, q), value in hsic.items():
            if p != q and hsic[p, p] > 0 and hsic[q, q] > 0:
                matrix[q][p] = value / (hsic[p, p] * hsic[q, q]) ** 0.5
        return ExpertSimilarity(tuple(map(tuple, matrix)), self._rows, self.unbiased)

    def _places(self) -> list[slice]:
        """Where the columns of each expert stand among the W."""
        edges = [sum(self._widths[:m]) for m in range(self.num_experts + 1)]
        return [slice(start, end) for start, end in pairwise(edges)]

    def _biased(self, left: slice, right: slice, p: int, q: int) -> float:  # noqa: ARG002
        """‖X̃ᵀ Ỹ‖²; what rounding makes of two constants is 0."""
        centred_PQ = self._products_WW[left, right] - torch.outer(self._sums_W[left], self._sums_W[right]) / self._rows
        return float(centred_PQ.square().sum())

    def _unbiased(self, left: slice, right: slice, p: int, q: int) -> float:
        """`[tr(K̃L̃) + 1ᵀK̃1 1ᵀL̃1 / ((n-1)(n-2)) - 2/(n-2) 1ᵀK̃L̃1] / (n(n-3))`, K̃ = XXᵀ with a diagonal of 0.

        All three are sums over rows: (K̃1)_i = x_i·s - a_i, where s = Σ x_i and a_i = ‖x_i‖².
        """
        rows = self._rows
        product_PQ = self._products_WW[left, right]
        sum_P, sum_Q = self._sums_W[left], self._sums_W[right]
        norms = self._norm_products_MM[p, q]
        trace = product_PQ.square().sum() - norms
        total_p = sum_P.square().sum() - self._products_WW[left, left].diagonal().sum()
        total_q = sum_Q.square().sum() - self._products_WW[right, right].diagonal().sum()
        crossed = (
            sum_P @ product_PQ @ sum_Q
            - sum_P @ self._norm_columns_WM[left, q]
            - sum_Q @ self._norm_columns_WM[right, p]
            + norms
        )
        hsic = trace + total_p * total_q / ((rows - 1) * (rows - 2)) - 2 * crossed / (rows - 2)
        return float(hsic / (rows * (rows - 3)))
