"""Cross-expert correlation (eq. 13, 14 of arXiv 2505.17925) over any number of rows.

Shape suffixes: B rows, M experts, P and Q the widths of the two experts of a pair, D the width of one expert,
W the widths of all experts side by side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor

from dmoe.decorrelation.checks import check_outputs


@dataclass(frozen=True, slots=True)
class ExpertCorrelation:
    """Cross-expert correlation over a whole set of rows (eq. 13, 14).

    Matrices are M×M nested tuples, filled below the diagonal, None elsewhere; also None for a pair that has no
    live column on one side, where no correlation exists. No value is ever NaN.
    """

    matrix: tuple[tuple[float | None, ...], ...]
    """Mean |r| over the live columns of each pair, 0 to 1."""
    rms: tuple[tuple[float | None, ...], ...]
    """sqrt(mean r²) over the same columns: what `CorrLoss` lowers."""
    total: float
    """Sum of `matrix` over pairs: the model-level figure of section 4.3."""
    noise_floor: float
    """What independent columns would show for one pair by the chance of a finite sample: E|r|."""
    rows: int
    columns: tuple[int, ...]
    """Width of each expert."""
    dead_columns: tuple[int, ...]
    """Columns of each expert that did not vary over all rows; no correlation is defined for them."""

    @property
    def total_noise_floor(self) -> float:
        """The noise floor of `total`."""
        return self.noise_floor * math.comb(len(self.columns), 2)


def noise_floor(rows: int) -> float:
    """E|r| of two independent columns of `rows` rows, at least one of them normal.

    r² then follows Beta(1/2, (N-2)/2), so E|r| = Γ((N-1)/2) / (sqrt(π) Γ(N/2)), about sqrt(2/(πN)): 0.0080 for
    10,000 rows. For columns that are not normal it holds in the limit of many rows.

    Raises: ValueError for fewer than two rows.
    """
    if rows < 2:
        raise ValueError(f"a correlation needs at least two rows, got {rows}")
    return math.exp(math.lgamma((rows - 1) / 2) - math.lgamma(rows / 2)) / math.sqrt(math.pi)


def cross_expert_correlation(x: Tensor, y: Tensor) -> float:
    """CEC(x, y): mean |r_ij| over all live columns i of x and j of y (eq. 14), in float64, 0 to 1.

    Shape: (N, P) and (N, Q). For more rows than fit in memory, or for the number of dead columns, use
    `CrossExpertCorrelation`.
    Raises: ValueError for fewer than two rows, values that are not finite, or an x or y of dead columns only.

    >>> x = torch.tensor([[1.0], [2.0], [3.0]])
    >>> round(cross_expert_correlation(x, -x), 6)
    1.0
    """
    metric = CrossExpertCorrelation(2)
    metric.update([x, y])
    value = metric.compute().matrix[1][0]
    if value is None:
        raise ValueError("x or y has no column that varies: their correlation is undefined")
    return value


@dataclass(frozen=True, slots=True)
class _Moments:
    """Moments of some rows; `merged` is the pairwise update of Chan, Golub and LeVeque (1979)."""

    rows: int
    mean_W: Tensor
    squares_W: Tensor
    low_W: Tensor
    high_W: Tensor
    products: tuple[Tensor, ...]

    def merged(self, other: "_Moments", pairs: Sequence[tuple[slice, slice]]) -> "_Moments":
        rows = self.rows + other.rows
        difference_W = other.mean_W - self.mean_W
        weight = self.rows * other.rows / rows
        return _Moments(
            rows,
            self.mean_W + difference_W * (other.rows / rows),
            self.squares_W + other.squares_W + difference_W.square() * weight,
            torch.minimum(self.low_W, other.low_W),
            torch.maximum(self.high_W, other.high_W),
            tuple(
                torch.addr(mine + theirs, difference_W[left], difference_W[right], alpha=weight)
                for mine, theirs, (left, right) in zip(self.products, other.products, pairs, strict=True)
            ),
        )


class CrossExpertCorrelation:
    """Cross-expert correlation (eq. 13, 14) of M experts over any number of rows, in one pass.

    Rows are gathered into blocks of a fixed size, so that the size of the batches changes nothing at all, and
    blocks are merged as float64 co-moments, so that neither a large mean nor the order of rows matters. Memory:
    one block and one P×Q matrix a pair.

    A column is dead if it has the same value in every row, or if its standard deviation is below the rounding
    of its largest value in float64 (16 units in the last place). One varying row in a million is alive.

    >>> metric = CrossExpertCorrelation(2)
    >>> for _ in range(10):
    ...     x = torch.randn(100, 4)
    ...     metric.update([x, x.flip(1)])
    >>> metric.compute().rows
    1000
    """

    BLOCK_ROWS = 2048

    def __init__(self, num_experts: int) -> None:
        if num_experts < 2:
            raise ValueError(f"CrossExpertCorrelation.num_experts must be at least 2, got {num_experts}")
        self.num_experts = num_experts
        self._widths: list[int] = []
        self._merged: _Moments | None = None
        self._block_BW = torch.empty(0)
        self._filled = 0

    def update(self, outputs: Sequence[Tensor]) -> None:
        """Adds one batch: M tensors (B, d_m), B from 0 up, widths fixed by the first batch.

        Raises: ValueError for tensors that do not fit; for values that are not finite, here or in `compute`.
        """
        if len(outputs) != self.num_experts:
            raise ValueError(f"expected the outputs of {self.num_experts} experts, got {len(outputs)}")
        rows = check_outputs(outputs)
        widths = [output.shape[1] for output in outputs]
        # Buffers of inference mode could not be written to after it.
        with torch.inference_mode(False), torch.no_grad():
            if not self._widths:
                self._widths = widths
                device = outputs[0].device if outputs[0].device.type != "mps" else "cpu"  # mps has no float64
                self._block_BW = torch.empty(self.BLOCK_ROWS, sum(widths), dtype=torch.float64, device=device)
            elif widths != self._widths:
                raise ValueError(f"experts have widths {widths}; earlier batches had {self._widths}")
            start = 0
            while start < rows:
                taken = min(rows - start, self.BLOCK_ROWS - self._filled)
                block_BW = self._block_BW[self._filled : self._filled + taken]
                for part_BD, output in zip(block_BW.split_with_sizes(widths, dim=1), outputs, strict=True):
                    part_BD.copy_(output[start : start + taken])
                start += taken
                self._filled += taken
                if self._filled == self.BLOCK_ROWS:
                    self._merged, self._filled = self._all(), 0

    @property
    def rows(self) -> int:
        """Rows so far."""
        return self._filled + (0 if self._merged is None else self._merged.rows)

    def merge(self, other: "CrossExpertCorrelation") -> None:
        """Adds the rows that `other`, for example of another process, has seen; `other` stays as it is.

        Raises: ValueError if the experts differ in number or width.
        """
        if other.num_experts != self.num_experts:
            raise ValueError(f"cannot merge {other.num_experts} experts into {self.num_experts}")
        if self._widths and other._widths and self._widths != other._widths:
            raise ValueError(f"cannot merge experts of widths {other._widths} into widths {self._widths}")
        theirs = other._all()
        if theirs is None:
            return
        if not self._widths:
            self._widths = list(other._widths)
            self._block_BW = torch.empty_like(other._block_BW)
        self._merged = theirs if self._merged is None else self._merged.merged(theirs, self._pairs())

    def compute(self) -> ExpertCorrelation:
        """The figures for all rows so far; more may follow.

        Raises: ValueError for fewer than two rows.
        """
        moments = self._all()
        if moments is None or moments.rows < 2:
            rows = moments.rows if moments else 0
            raise ValueError(f"cross-expert correlation needs at least two rows, got {rows}")
        size_W = torch.maximum(moments.low_W.abs(), moments.high_W.abs())
        spread_W = moments.squares_W.sqrt()
        rounding = 8 * torch.finfo(torch.float64).eps * math.sqrt(moments.rows)
        alive_W = (moments.low_W < moments.high_W) & (spread_W > rounding * size_W)
        num = self.num_experts
        mean: list[list[float | None]] = [[None] * num for _ in range(num)]
        rms: list[list[float | None]] = [[None] * num for _ in range(num)]
        for (p, q), (left, right), product_PQ in zip(
            combinations(range(num), 2), self._pairs(), moments.products, strict=True
        ):
            r = (product_PQ / spread_W[left, None] / spread_W[right])[alive_W[left]][:, alive_W[right]]
            if r.numel():
                r = r.abs().clamp(max=1.0)
                mean[q][p], rms[q][p] = r.mean().item(), r.square().mean().sqrt().item()
        return ExpertCorrelation(
            matrix=tuple(map(tuple, mean)),
            rms=tuple(map(tuple, rms)),
            total=math.fsum(value for row in mean for value in row if value is not None),
            noise_floor=noise_floor(moments.rows),
            rows=moments.rows,
            columns=tuple(self._widths),
            dead_columns=tuple(int((~part).sum()) for part in alive_W.split_with_sizes(self._widths)),
        )

    def _pairs(self) -> list[tuple[slice, slice]]:
        edges = [sum(self._widths[:m]) for m in range(self.num_experts + 1)]
        return list(combinations((slice(start, end) for start, end in pairwise(edges)), 2))

    def _all(self) -> _Moments | None:
        """Moments of the merged blocks and of the rows that wait in the unfinished one."""
        if self._filled == 0:
            return self._merged
        block_BW = self._block_BW[: self._filled]
        mean_W = block_BW.mean(0)
        centred_BW = block_BW - mean_W
        squares_W = centred_BW.square().sum(0)
        finite_W = torch.isfinite(squares_W)
        if not finite_W.all():
            bad = [bool(part.all()) for part in finite_W.split_with_sizes(self._widths)].index(False)
            raise ValueError(
                f"expert {bad} gave an output that is not finite, or too large to be squared; "
                "its correlation is undefined"
            )
        products = tuple(centred_BW[:, left].T @ centred_BW[:, right] for left, right in self._pairs())
        low_W, high_W = block_BW.amin(0), block_BW.amax(0)  # aminmax along rows takes four times as long
        block = _Moments(self._filled, mean_W, squares_W, low_W, high_W, products)
        return block if self._merged is None else self._merged.merged(block, self._pairs())
