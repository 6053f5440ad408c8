"""De-correlation of experts: the losses (eq. 8, 15-17) and the metric (eq. 13, 14) of arXiv 2505.17925.

Needs torch alone, and works on the layers of any model.

Shape suffixes: B rows, M experts, P and Q the widths of the two experts of a pair, D the width of one expert,
W the widths of all experts side by side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Scale = Literal["paper", "dimension-free"]
CorrNorm = Literal["frobenius", "spectral"]
CovNorm = Literal["l1", "l2"]
ProcessGroup = dist.ProcessGroup | Literal["world"] | None


class AlphaScales(NamedTuple):
    """One weight, said in both scales of the loss."""

    paper: float
    dimension_free: float


def scales_of_alpha(
    alpha: float, scale: Scale, d1: int, d2: int, norm: CorrNorm | CovNorm = "frobenius"
) -> AlphaScales:
    """The value that `alpha`, given for `scale`, has in either scale, for experts of widths d1 and d2.

    In the paper's scale L/(B-1) is rms(r)/d, so an alpha found at one width is wrong at another. The
    dimension-free loss is sqrt(d1·d2) times the paper's. Norm "l1" is a mean in both scales.

    >>> scales_of_alpha(100.0, "paper", 500, 500)
    AlphaScales(paper=100.0, dimension_free=0.2)
    """
    _check_choice("scale", scale, Scale)
    factor = 1.0 if norm == "l1" else math.sqrt(d1 * d2)
    if scale == "paper":
        return AlphaScales(alpha, alpha / factor)
    return AlphaScales(alpha * factor, alpha)


class _PairLoss(nn.Module):
    """What the losses share: checks, precision, the way to the co-moments, the sum over pairs."""

    def __init__(self, norm: str, scale: Scale, process_group: ProcessGroup) -> None:
        super().__init__()
        _check_choice("scale", scale, Scale)
        self.norm, self.scale, self.process_group = norm, scale, process_group

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        local_rows = _check_outputs(outputs)
        if len(outputs) < 2:
            # The sum over no rows: zero, and still a part of the graph.
            return outputs[0][:0].float().sum() if outputs else torch.zeros(())
        with torch.autocast(outputs[0].device.type, enabled=False):
            dtype = torch.float32
            for output in outputs:
                dtype = torch.promote_types(dtype, output.dtype)
            columns = [output.to(dtype) for output in outputs]
            group = _resolve(self.process_group)
            rows = local_rows if group is None else _global_rows(local_rows, group, outputs[0].device)
            if rows < 2:
                raise ValueError(
                    f"{type(self).__name__} is undefined for a batch of {rows} row(s): a correlation needs two; "
                    "leave the term out of such a batch"
                )
            norms = self._norms(columns, rows, group)
        total = norms[0].new_zeros(())
        for (p, q), norm in zip(combinations(range(len(outputs)), 2), norms, strict=True):
            size = outputs[p].shape[1] * outputs[q].shape[1]
            dimension_free = self.scale == "dimension-free" and self.norm != "l1"
            total = total + norm / (math.sqrt(size) if dimension_free else size)
        return total

    def _norms(self, columns: list[Tensor], rows: int, group: dist.ProcessGroup | None) -> list[Tensor]:
        """The norm of each pair's matrix, pairs in the order of `combinations`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"norm={self.norm!r}, scale={self.scale!r}"


class CorrLoss(_PairLoss):
    """`L = Σ_{m1<m2} ‖Z1ᵀ Z2‖ / (d1·d2)` of standardised expert outputs (eq. 8, 17), without alpha/(B-1).

    `L/(B-1)` is rms(r)/d with norm "frobenius", r being the Pearson correlations between the d columns of one
    expert and those of the other: 1/d for experts whose columns are all copies of one, whatever their signs.
    With scale "dimension-free" (times sqrt(d1·d2)) it is rms(r) itself, from 0 to 1 for each pair.

    A column is divided by sqrt(v + eps·mean(v)), v its unbiased variance over the batch and mean(v) the mean
    over the columns of its expert. A dead column therefore contributes 0, gradients stay finite, and an
    expert's own scale does not matter: outputs near 1e-8 are seen as well as outputs near 1.

    Args:
        norm: reading of ‖·‖₂: "frobenius" (entrywise) or "spectral" (largest singular value).
        scale: "paper", or "dimension-free" so that alpha does not depend on the width.
        eps: share of the expert's mean variance added to every variance. 0 is legal: dead columns are then
            kept from NaN by float rounding alone.
        process_group: a group of torch.distributed, or "world", to correlate the batch of all ranks. Every
            rank gets the same loss; the gradient is that of the sum of the ranks' losses, as in
            torch.distributed.nn, so that DistributedDataParallel's mean over ranks is the gradient of one
            process on the whole batch. The B of alpha/(B-1) is then the rows of all ranks.

    Shape: M tensors (B, d_m) of any floating type; widths may differ. Result: scalar, float32 or better even
    under autocast. Fewer than two tensors give 0. Differentiable once.
    Raises: ValueError for fewer than two rows, tensors that do not fit, or an unknown norm or scale.
    """

    def __init__(
        self,
        norm: CorrNorm = "frobenius",
        scale: Scale = "paper",
        eps: float = 1e-6,
        process_group: ProcessGroup = None,
    ) -> None:
        _check_choice("norm", norm, CorrNorm)
        if not 0 <= eps < math.inf:
            raise ValueError(f"CorrLoss.eps must be finite and at least 0, got {eps}")
        super().__init__(norm, scale, process_group)
        self.eps = eps

    def _norms(self, columns: list[Tensor], rows: int, group: dist.ProcessGroup | None) -> list[Tensor]:
        if self.norm == "frobenius" and group is None and _rows_are_cheaper(columns):
            standardised = []
            for column_BD in columns:
                mean_D, inverse_scale = column_BD.mean(0), _inverse_scale(_magnitude(column_BD))
                centred_BD = _centre(column_BD, mean_D, inverse_scale)
                squares_D, scaled_D = centred_BD.square().sum(0), mean_D.detach() * inverse_scale
                standardised.append(centred_BD * _inverse_deviation(squares_D, scaled_D, rows, self.eps))
            return _frobenius_by_rows(standardised)
        moments = _co_moments(columns, rows, group)
        inverse = [
            _inverse_deviation(squares_D, mean_D, rows, self.eps)
            for squares_D, mean_D in zip(moments.squares, moments.means, strict=True)
        ]
        norm = _spectral_norm if self.norm == "spectral" else torch.linalg.vector_norm
        pairs = combinations(inverse, 2)
        return [
            norm(product_PQ * left_P[:, None] * right_Q)
            for product_PQ, (left_P, right_Q) in zip(moments.products, pairs, strict=True)
        ]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps:g}"


class CovLoss(_PairLoss):
    """`L = Σ_{p<q} ‖X̃pᵀ X̃q‖ / (d_p·d_q)` of centred, not standardised, outputs (eq. 15, 16), without alpha/(B-1).

    Norms are entrywise. `L/(B-1)` is mean|cov| with norm "l1", in both scales; with norm "l2" it is rms(cov)/d
    in the paper's scale and rms(cov) in the dimension-free one. Unlike `CorrLoss` it falls when the outputs
    merely shrink.

    Args, shape, precision, data parallelism, errors: as `CorrLoss`.
    """

    def __init__(self, norm: CovNorm = "l2", scale: Scale = "paper", process_group: ProcessGroup = None) -> None:
        _check_choice("norm", norm, CovNorm)
        super().__init__(norm, scale, process_group)

    def _norms(self, columns: list[Tensor], rows: int, group: dist.ProcessGroup | None) -> list[Tensor]:
        if self.norm == "l2" and group is None and _rows_are_cheaper(columns):
            inverse_scales = [_inverse_scale(_magnitude(column_BD)) for column_BD in columns]
            centred = [
                _centre(column_BD, column_BD.mean(0), inverse)
                for column_BD, inverse in zip(columns, inverse_scales, strict=True)
            ]
            norms = _frobenius_by_rows(centred)
        else:
            moments = _co_moments(columns, rows, group)
            inverse_scales = list(moments.inverse_scales)
            order = 1 if self.norm == "l1" else 2
            norms = [torch.linalg.vector_norm(product_PQ, order) for product_PQ in moments.products]
        return [norm / p / q for norm, (p, q) in zip(norms, combinations(inverse_scales, 2), strict=True)]


class _Scaled(NamedTuple):
    """Moments of columns that were multiplied by `inverse_scales`, one an expert."""

    inverse_scales: tuple[Tensor, ...]
    means: tuple[Tensor, ...]
    squares: tuple[Tensor, ...]
    products: tuple[Tensor, ...]


class _CoMoments(torch.autograd.Function):
    """Sums of squares of every column and sums of products of every pair of experts, about the batch means.

    Written out because its gradient needs neither the centring nor the standardising to be undone: a sum of
    centred columns is zero, so each expert's gradient is one product per partner and one scaled copy.
    """

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup | None, rows: int, *columns: Tensor) -> tuple[Tensor, ...]:
        widths = [column_BD.shape[1] for column_BD in columns]
        sums_W = torch.cat([column_BD.sum(0) for column_BD in columns])
        magnitudes_M = torch.stack([_magnitude(column_BD) for column_BD in columns])
        if group is not None:
            dist.all_reduce(sums_W, group=group)
            dist.all_reduce(magnitudes_M, dist.ReduceOp.MAX, group=group)
        inverse_M = _inverse_scale(magnitudes_M)
        means = [sum_D / rows for sum_D in sums_W.split_with_sizes(widths)]
        centred = [
            _centre(column_BD, mean_D, inverse)
            for column_BD, mean_D, inverse in zip(columns, means, inverse_M, strict=True)
        ]
        squares = [column_BD.square().sum(0) for column_BD in centred]
        products = [left_BP.T @ right_BQ for left_BP, right_BQ in combinations(centred, 2)]
        if group is not None:
            for moment in (*squares, *products):
                dist.all_reduce(moment, group=group)
        ctx.group = group
        ctx.save_for_backward(inverse_M, *centred)
        scales = [*inverse_M.unbind(), *(mean_D * inverse for mean_D, inverse in zip(means, inverse_M, strict=True))]
        ctx.mark_non_differentiable(*scales)
        return (*scales, *squares, *products)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *all_gradients: Tensor) -> tuple[Tensor | None, ...]:
        inverse_M, *centred = ctx.saved_tensors
        num = len(centred)
        gradients = all_gradients[2 * num :]
        if ctx.group is not None:
            gradients = tuple(gradient.clone(memory_format=torch.contiguous_format) for gradient in gradients)
            for gradient in gradients:
                dist.all_reduce(gradient, group=ctx.group)
        with torch.autocast(centred[0].device.type, enabled=False):
            results = [centred[m] * (gradients[m] * (2 * inverse_M[m])) for m in range(num)]
            for (p, q), gradient_PQ in zip(combinations(range(num), 2), gradients[num:], strict=True):
                results[p].addmm_(centred[q], (gradient_PQ * inverse_M[p]).T)
                results[q].addmm_(centred[p], gradient_PQ * inverse_M[q])
        return (None, None, *results)


def _co_moments(columns: list[Tensor], rows: int, group: dist.ProcessGroup | None) -> _Scaled:
    num = len(columns)
    moments = cast(tuple[Tensor, ...], _CoMoments.apply(group, rows, *columns))  # type: ignore[no-untyped-call]
    return _Scaled(moments[:num], moments[num : 2 * num], moments[2 * num : 3 * num], moments[3 * num :])


def _magnitude(column_BD: Tensor) -> Tensor:
    """Largest absolute value, a scalar outside the graph."""
    if column_BD.numel() == 0:
        return column_BD.new_zeros(())
    low, high = torch.aminmax(column_BD.detach())
    return torch.maximum(-low, high)


def _inverse_scale(magnitude: Tensor) -> Tensor:
    """A power of two that brings `magnitude` near 1: squares of outputs near 1e-20 would underflow.

    A power of two costs no rounding, so nothing else changes.
    """
    magnitude = magnitude.clamp_min(torch.finfo(magnitude.dtype).tiny)
    mantissa, _ = torch.frexp(magnitude)
    inverse: Tensor = mantissa / magnitude
    return inverse


def _centre(column_BD: Tensor, mean_D: Tensor, inverse_scale: Tensor) -> Tensor:
    """`(column - mean) · inverse_scale` in one pass; exact because the scale is a power of two."""
    return torch.addcmul(-mean_D * inverse_scale, column_BD, inverse_scale)


def _inverse_deviation(squares_D: Tensor, mean_D: Tensor, rows: int, eps: float) -> Tensor:
    """1/sqrt(v + eps·mean(v)) of scaled columns.

    Added to v is what the rounding of the mean can make of a constant column, and a number whose power -3/2, which
    is in the gradient, stays finite for an expert that is zero throughout.
    """
    variance_D = squares_D / (rows - 1)
    rounding_D = (32 * torch.finfo(mean_D.dtype).eps * mean_D).square() + 1e-24
    return (variance_D + eps * variance_D.mean() + rounding_D).rsqrt()


def _spectral_norm(matrix_PQ: Tensor) -> Tensor:
    """Largest singular value.

    By the eigenvector u of the smaller Gram matrix: ‖Cᵀu‖ with u held fixed has both the value and the gradient
    u vᵀ, at a fraction of the time of a full decomposition, and a finite gradient at zero.
    """
    matrix_PQ = matrix_PQ if matrix_PQ.shape[0] <= matrix_PQ.shape[1] else matrix_PQ.T
    gram_PP = matrix_PQ.detach() @ matrix_PQ.detach().T
    if not torch.isfinite(gram_PP).all():
        return matrix_PQ.sum() * math.nan  # an eigensolver would raise; a NaN loss is for the caller to see
    left_P = torch.linalg.eigh(gram_PP).eigenvectors[:, -1]
    norm: Tensor = torch.linalg.vector_norm(left_P @ matrix_PQ)
    return norm


def _rows_are_cheaper(columns: Sequence[Tensor]) -> bool:
    """Whether B×B products need less arithmetic than the P×Q products of all pairs."""
    widths = [column_BD.shape[1] for column_BD in columns]
    return columns[0].shape[0] * sum(widths) < sum(p * q for p, q in combinations(widths, 2))


def _frobenius_by_rows(columns: Sequence[Tensor]) -> list[Tensor]:
    """‖X1ᵀ X2‖_F of each pair from `tr(X1 X1ᵀ X2 X2ᵀ)`; below the rounding of that trace, 0."""
    norms = []
    for left_BB, right_BB in combinations([column_BD @ column_BD.T for column_BD in columns], 2):
        trace = (left_BB * right_BB).sum()
        size = torch.linalg.vector_norm(left_BB.detach()) * torch.linalg.vector_norm(right_BB.detach())
        # Not `trace > …`: a NaN must stay a NaN.
        negligible = trace <= torch.finfo(trace.dtype).eps * size
        norms.append(torch.where(negligible, 0.0, torch.where(negligible, 1.0, trace).sqrt()))
    return norms


def _resolve(group: ProcessGroup) -> dist.ProcessGroup | None:
    if group != "world":
        return group
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("process_group='world' needs torch.distributed.init_process_group to be called first")
    return dist.group.WORLD


def _global_rows(rows: int, group: dist.ProcessGroup, device: torch.device) -> int:
    count = torch.tensor(rows, device=device)
    dist.all_reduce(count, group=group)
    return int(count)


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be {' or '.join(get_args(choices))}, got {value!r}")


def _check_outputs(outputs: Sequence[Tensor]) -> int:
    """The number of rows that all outputs share."""
    for index, output in enumerate(outputs):
        if output.ndim != 2 or output.shape[1] == 0 or not output.is_floating_point():
            raise ValueError(
                f"outputs[{index}] must be a floating (rows, width) tensor of width at least 1, "
                f"got {output.dtype} {tuple(output.shape)}"
            )
        if output.shape[0] != outputs[0].shape[0]:
            raise ValueError(
                f"outputs[{index}] has {output.shape[0]} rows and outputs[0] has {outputs[0].shape[0]}: "
                "all must be of the same batch"
            )
    return outputs[0].shape[0] if outputs else 0


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
        rows = _check_outputs(outputs)
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
