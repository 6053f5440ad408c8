"""Losses that de-correlate experts: eq. 8, 15-17 of arXiv 2505.17925, and two from self-supervised learning.

Shape suffixes: B rows, M experts, P and Q the widths of the two experts of a pair, D the width of one expert,
W the widths of all experts side by side.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from dmoe.decorrelation.checks import ProcessGroup, check_choice, check_outputs, global_rows, resolve
from dmoe.decorrelation.moments import (
    GradientOfAll,
    Pairs,
    Scaled,
    centre,
    co_moments,
    frobenius_by_rows,
    inverse_deviation,
    inverse_scale,
    magnitude,
    rows_are_cheaper,
    spectral_norm,
)

Scale = Literal["paper", "dimension-free"]
CorrNorm = Literal["frobenius", "spectral"]
CovNorm = Literal["l1", "l2"]


class AlphaScales(NamedTuple):
    """One weight, said in both scales of the loss: `paper` and `dimension_free`."""

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
    check_choice("scale", scale, Scale)
    factor = 1.0 if norm == "l1" else math.sqrt(d1 * d2)
    if scale == "paper":
        return AlphaScales(alpha, alpha / factor)
    return AlphaScales(alpha * factor, alpha)


class PairLoss(nn.Module):
    """What the losses share: checks, precision, the way to the co-moments, the sum over pairs."""

    def __init__(self, norm: str, scale: Scale, process_group: ProcessGroup) -> None:
        super().__init__()
        check_choice("scale", scale, Scale)
        self.norm, self.scale, self.process_group = norm, scale, process_group

    def forward(self, outputs: Sequence[Tensor], pairs: Pairs | None = None) -> Tensor:
        """`pairs`: the experts to be told apart, each pair once; by default all."""
        local_rows = check_outputs(outputs)
        every = list(combinations(range(len(outputs)), 2))
        if pairs is not None and not set(pairs) <= set(every):
            raise ValueError(f"pairs must be numbers of two of {len(outputs)} outputs, the smaller first, got {pairs}")
        pairs = every if pairs is None else sorted(set(pairs))
        if not pairs:
            # The sum over no rows: zero, and still a part of the graph.
            return outputs[0][:0].float().sum() if outputs else torch.zeros(())
        with torch.autocast(outputs[0].device.type, enabled=False):
            dtype = torch.float32
            for output in outputs:
                dtype = torch.promote_types(dtype, output.dtype)
            columns = [output.to(dtype) for output in outputs]
            group = resolve(self.process_group)
            rows = local_rows if group is None else global_rows(local_rows, group, outputs[0].device)
            if rows < 2:
                raise ValueError(
                    f"{type(self).__name__} is undefined for a batch of {rows} row(s): a correlation needs two; "
                    "leave the term out of such a batch"
                )
            moments = None if group is None else co_moments(columns, rows, group, pairs)
            norms = self._norms(columns, rows, moments, pairs)
            total = self._of_experts(columns, rows, moments)
        for (p, q), norm in zip(pairs, norms, strict=True):
            total = total + self._of_pair(norm, outputs[p].shape[1] * outputs[q].shape[1], rows)
        if group is not None:
            total = cast(Tensor, GradientOfAll.apply(total, group))  # type: ignore[no-untyped-call]
        return total

    def _of_experts(self, columns: list[Tensor], rows: int, moments: Scaled | None) -> Tensor:  # noqa: ARG002
        """What experts add by themselves; `moments` are there if they are of the rows of all ranks."""
        return columns[0].new_zeros(())

    def _of_pair(self, norm: Tensor, size: int, rows: int) -> Tensor:  # noqa: ARG002
        """What a pair adds, from the norm of its matrix of `size` entries."""
        dimension_free = self.scale == "dimension-free" and self.norm != "l1"
        return norm / (math.sqrt(size) if dimension_free else size)

    def _norms(self, columns: list[Tensor], rows: int, moments: Scaled | None, pairs: Pairs) -> list[Tensor]:
        """The norm of each pair's matrix; `moments` as for `_of_experts`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"norm={self.norm!r}, scale={self.scale!r}"


class CorrLoss(PairLoss):
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
        check_choice("norm", norm, CorrNorm)
        if not 0 <= eps < math.inf:
            raise ValueError(f"CorrLoss.eps must be finite and at least 0, got {eps}")
        super().__init__(norm, scale, process_group)
        self.eps = eps

    def _norms(self, columns: list[Tensor], rows: int, moments: Scaled | None, pairs: Pairs) -> list[Tensor]:
        if self.norm == "frobenius" and moments is None and rows_are_cheaper(columns, pairs):
            standardised = []
            for column_BD in columns:
                mean_D, factor = column_BD.mean(0), inverse_scale(magnitude(column_BD))
                centred_BD = centre(column_BD, mean_D, factor)
                squares_D, scaled_D = centred_BD.square().sum(0), mean_D.detach() * factor
                standardised.append(centred_BD * inverse_deviation(squares_D, scaled_D, rows, self.eps))
            return frobenius_by_rows(standardised, pairs)
        moments = moments or co_moments(columns, rows, None, pairs)
        inverse = [
            inverse_deviation(squares_D, mean_D, rows, self.eps)
            for squares_D, mean_D in zip(moments.squares, moments.means, strict=True)
        ]
        norm = spectral_norm if self.norm == "spectral" else torch.linalg.vector_norm
        return [
            norm(product_PQ * inverse[p][:, None] * inverse[q])
            for product_PQ, (p, q) in zip(moments.products, pairs, strict=True)
        ]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps:g}"


class CovLoss(PairLoss):
    """`L = Σ_{p<q} ‖X̃pᵀ X̃q‖ / (d_p·d_q)` of centred, not standardised, outputs (eq. 15, 16), without alpha/(B-1).

    Norms are entrywise. `L/(B-1)` is mean|cov| with norm "l1", in both scales; with norm "l2" it is rms(cov)/d
    in the paper's scale and rms(cov) in the dimension-free one. Unlike `CorrLoss` it falls when the outputs
    merely shrink.

    Args, shape, precision, data parallelism, errors: as `CorrLoss`.
    """

    def __init__(self, norm: CovNorm = "l2", scale: Scale = "paper", process_group: ProcessGroup = None) -> None:
        check_choice("norm", norm, CovNorm)
        super().__init__(norm, scale, process_group)

    def _norms(self, columns: list[Tensor], rows: int, moments: Scaled | None, pairs: Pairs) -> list[Tensor]:
        if self.norm == "l2" and moments is None and rows_are_cheaper(columns, pairs):
            inverse_scales = [inverse_scale(magnitude(column_BD)) for column_BD in columns]
            centred = [
                centre(column_BD, column_BD.mean(0), inverse)
                for column_BD, inverse in zip(columns, inverse_scales, strict=True)
            ]
            norms = frobenius_by_rows(centred, pairs)
        else:
            moments = moments or co_moments(columns, rows, None, pairs)
            inverse_scales = list(moments.inverse_scales)
            order = 1 if self.norm == "l1" else 2
            norms = [torch.linalg.vector_norm(product_PQ, order) for product_PQ in moments.products]
        return [norm / inverse_scales[p] / inverse_scales[q] for norm, (p, q) in zip(norms, pairs, strict=True)]


class BarlowTwinsLoss(CorrLoss):
    """`L = Σ_{p<q} ‖Zpᵀ Zq‖² / ((B-1)·d_p·d_q)`: squared correlations across experts, without alpha/(B-1).

    `L/(B-1)` is the mean of r² for each pair, from 0 to 1; its gradient fades as experts de-correlate, while that
    of `CorrLoss` does not. It is the redundancy term of Barlow Twins (Zbontar et al., ICML 2021), taken over all
    entries; the term that draws the diagonal to 1 would make experts equal and is left out.

    Args, shape, precision, data parallelism, errors: as `CorrLoss`, of which this is the square.
    """

    def __init__(self, eps: float = 1e-6, process_group: ProcessGroup = None) -> None:
        super().__init__(eps=eps, process_group=process_group)

    def _of_pair(self, norm: Tensor, size: int, rows: int) -> Tensor:
        return norm.square() / (size * (rows - 1))


class VICRegLoss(CovLoss):
    """Squared covariances across experts, and a hinge that keeps every column's deviation from shrinking.

    `L/(B-1) = Σ_{p<q} mean cov² + variance_weight · Σ_p mean_i max(0, 1 - sqrt(var_i + eps))`, without alpha, after
    VICReg (Bardes et al., ICLR 2022). Its own covariance term stays within a branch; here it runs across experts.
    Its invariance term, which would make experts equal, is left out.

    Args:
        variance_weight: weight of the hinge; without it the loss falls when outputs merely shrink.
        eps: added to each variance, unbiased over the batch, under the root.
        process_group: as for `CorrLoss`.

    Shape, precision, data parallelism, errors: as `CorrLoss`.
    """

    def __init__(self, variance_weight: float = 1.0, eps: float = 1e-4, process_group: ProcessGroup = None) -> None:
        for name, value in (("variance_weight", variance_weight), ("eps", eps)):
            if not 0 <= value < math.inf:
                raise ValueError(f"VICRegLoss.{name} must be finite and at least 0, got {value}")
        super().__init__("l2", process_group=process_group)
        self.variance_weight, self.eps = variance_weight, eps

    def _of_experts(self, columns: list[Tensor], rows: int, moments: Scaled | None) -> Tensor:
        hinges = []
        for index, column_BD in enumerate(columns):
            own, at = (moments, index) if moments is not None else (co_moments([column_BD], rows, None), 0)
            variance_D = own.squares[at] / (rows - 1) / own.inverse_scales[at].square()
            hinges.append(torch.relu(1 - (variance_D + self.eps).sqrt()).mean())
        return torch.stack(hinges).sum() * (self.variance_weight * (rows - 1))

    def _of_pair(self, norm: Tensor, size: int, rows: int) -> Tensor:
        return norm.square() / (size * (rows - 1))

    def extra_repr(self) -> str:
        return f"variance_weight={self.variance_weight:g}, eps={self.eps:g}"
