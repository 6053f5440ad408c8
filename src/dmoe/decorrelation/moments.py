"""Co-moments of the outputs of several experts, with a written-out gradient, and norms made from them.

Shape suffixes: B rows, M experts, P and Q the widths of the two experts of a pair, D the width of one expert,
W the widths of all experts side by side.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers of two experts, the smaller first.
Pairs = Sequence[tuple[int, int]]


class Scaled(NamedTuple):
    """Moments of columns that were multiplied by `inverse_scales`, one an expert."""

    inverse_scales: tuple[Tensor, ...]
    means: tuple[Tensor, ...]
    squares: tuple[Tensor, ...]
    products: tuple[Tensor, ...]


class CoMoments(torch.autograd.Function):
    """Sums of squares of every column and sums of products of every pair of experts, about the batch means.

    With a group they are those of all ranks, which therefore have equal ones; the gradient is that of this rank's loss
    alone, for `GradientOfAll` to make it that of all.

    Written out because its gradient needs neither the centring nor the standardising to be undone: a sum of
    centred columns is zero, so each expert's gradient is one product per partner and one scaled copy.
    """

    @staticmethod
    def forward(
        ctx: Any, group: dist.ProcessGroup | None, rows: int, pairs: Pairs, *columns: Tensor
    ) -> tuple[Tensor, ...]:
        widths = [column_BD.shape[1] for column_BD in columns]
        sums_W = torch.cat([column_BD.sum(0) for column_BD in columns])
        magnitudes_M = torch.stack([magnitude(column_BD) for column_BD in columns])
        if group is not None:
            dist.all_reduce(sums_W, group=group)
            dist.all_reduce(magnitudes_M, dist.ReduceOp.MAX, group=group)
        inverse_M = inverse_scale(magnitudes_M)
        means = [sum_D / rows for sum_D in sums_W.split_with_sizes(widths)]
        centred = [
            centre(column_BD, mean_D, inverse)
            for column_BD, mean_D, inverse in zip(columns, means, inverse_M, strict=True)
        ]
        squares = [column_BD.square().sum(0) for column_BD in centred]
        products = [centred[p].T @ centred[q] for p, q in pairs]
        if group is not None:
            flat = torch.cat([moment.reshape(-1) for moment in (*squares, *products)])
            dist.all_reduce(flat, group=group)
            parts = torch.split(flat, [moment.numel() for moment in (*squares, *products)])
            squares = list(parts[: len(widths)])
            products = [part.view(product.shape) for part, product in zip(parts[len(widths) :], products, strict=True)]
        ctx.widths, ctx.pairs = widths, pairs
        ctx.stacked = one_product_is_cheaper(widths)
        ctx.save_for_backward(inverse_M, *([torch.cat(centred, dim=1)] if ctx.stacked else centred))
        scales = [*inverse_M.unbind(), *(mean_D * inverse for mean_D, inverse in zip(means, inverse_M, strict=True))]
        ctx.mark_non_differentiable(*scales)
        return (*scales, *squares, *products)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *all_gradients: Tensor) -> tuple[Tensor | None, ...]:
        inverse_M, *centred = ctx.saved_tensors
        num = len(ctx.widths)
        gradients = all_gradients[2 * num :]
        with torch.autocast(centred[0].device.type, enabled=False):
            if ctx.stacked:
                return (None, None, None, *_gradients_at_once(centred[0], inverse_M, gradients, ctx.widths, ctx.pairs))
            results = [centred[m] * (gradients[m] * (2 * inverse_M[m])) for m in range(num)]
            for (p, q), gradient_PQ in zip(ctx.pairs, gradients[num:], strict=True):
                results[p].addmm_(centred[q], (gradient_PQ * inverse_M[p]).T)
                results[q].addmm_(centred[p], gradient_PQ * inverse_M[q])
        return (None, None, None, *results)


class GradientOfAll(torch.autograd.Function):
    """A loss that is equal on all ranks, because it is made of moments of all: backward, its gradient on this rank is
    that of the sum of the ranks' losses. One number is sent, where the gradients of all moments would be many."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


def _gradients_at_once(
    centred_BW: Tensor, inverse_M: Tensor, gradients: Sequence[Tensor], widths: Sequence[int], pairs: Pairs
) -> Sequence[Tensor]:
    """The experts' gradients as one product of the stacked columns with the symmetric matrix of all gradients."""
    num = len(widths)
    places = [slice(sum(widths[:m]), sum(widths[: m + 1])) for m in range(num)]
    matrix_WW = torch.diag(2 * torch.cat(list(gradients[:num])))
    for (p, q), gradient_PQ in zip(pairs, gradients[num:], strict=True):
        matrix_WW[places[p], places[q]] = gradient_PQ
        matrix_WW[places[q], places[p]] = gradient_PQ.T
    scale_W = torch.cat([inverse.expand(width) for inverse, width in zip(inverse_M, widths, strict=True)])
    return (centred_BW @ matrix_WW.mul_(scale_W)).split_with_sizes(list(widths), dim=1)


def one_product_is_cheaper(widths: Sequence[int]) -> bool:
    """Whether the gradient of all pairs is cheaper as one product of the stacked columns.

    It needs M/(M-1) times the arithmetic, but reads and writes each row once rather than once a pair, which decides
    for many narrow experts (`benchmarks/pairs_of_experts.py`).
    """
    return len(widths) > 2 and sum(widths) < 8 * len(widths) ** 2


def co_moments(columns: list[Tensor], rows: int, group: dist.ProcessGroup | None, pairs: Pairs = ()) -> Scaled:
    num = len(columns)
    moments = cast(tuple[Tensor, ...], CoMoments.apply(group, rows, pairs, *columns))  # type: ignore[no-untyped-call]
    return Scaled(moments[:num], moments[num : 2 * num], moments[2 * num : 3 * num], moments[3 * num :])


def magnitude(column_BD: Tensor) -> Tensor:
    """Largest absolute value, a scalar outside the graph."""
    if column_BD.numel() == 0:
        return column_BD.new_zeros(())
    low, high = torch.aminmax(column_BD.detach())
    return torch.maximum(-low, high)


def inverse_scale(magnitude: Tensor) -> Tensor:
    """A power of two that brings `magnitude` near 1: squares of outputs near 1e-20 would underflow.

    A power of two costs no rounding, so nothing else changes.
    """
    magnitude = magnitude.clamp_min(torch.finfo(magnitude.dtype).tiny)
    mantissa, _ = torch.frexp(magnitude)
    inverse: Tensor = mantissa / magnitude
    return inverse


def centre(column_BD: Tensor, mean_D: Tensor, inverse_scale: Tensor) -> Tensor:
    """`(column - mean) · inverse_scale` in one pass; exact because the scale is a power of two."""
    return torch.addcmul(-mean_D * inverse_scale, column_BD, inverse_scale)


def inverse_deviation(squares_D: Tensor, mean_D: Tensor, rows: int, eps: float) -> Tensor:
    """1/sqrt(v + eps·mean(v)) of scaled columns.

    Added to v is what the rounding of the mean can make of a constant column, and a number whose power -3/2, which
    is in the gradient, stays finite for an expert that is zero throughout.
    """
    variance_D = squares_D / (rows - 1)
    rounding_D = (32 * torch.finfo(mean_D.dtype).eps * mean_D).square() + 1e-24
    return (variance_D + eps * variance_D.mean() + rounding_D).rsqrt()


def spectral_norm(matrix_PQ: Tensor) -> Tensor:
    """Largest singular value.

    By the eigenvector u of the smaller Gram matrix: ‖Cᵀu‖ with u held fixed has both the value and the gradient
    u vᵀ, at a fraction of the time of a full decomposition, and a finite gradient at zero.
    """
    matrix_PQ = matrix_PQ if matrix_PQ.shape[0] <= matrix_PQ.shape[1] else matrix_PQ.T
    gram_PP = matrix_PQ.detach() @ matrix_PQ.detach().T
    if eigensolver_waits(gram_PP):
        left_P = top_by_squaring(gram_PP)
    elif torch.isfinite(gram_PP).all():
        left_P = torch.linalg.eigh(gram_PP).eigenvectors[:, -1]
    else:
        return matrix_PQ.sum() * math.nan  # an eigensolver would raise; a NaN loss is for the caller to see
    norm: Tensor = torch.linalg.vector_norm(left_P @ matrix_PQ)
    return norm


def eigensolver_waits(matrix: Tensor) -> bool:
    """Whether an eigensolver would hold the host up until the device is done: off the CPU."""
    return matrix.device.type != "cpu"


def top_by_squaring(gram_PP: Tensor) -> Tensor:
    """An eigenvector (P,) of the largest eigenvalue of a positive semidefinite matrix, by products alone.

    Squared k times, Gᵏ' with k' = 2ᵏ is λ₁ᵏ' times the projection to its eigenvectors, up to (λ₂/λ₁)ᵏ', and k is such
    that eigenvalues which that does not part are equal up to rounding. Zeros for zeros, NaN for what is not finite.
    """
    found = torch.finfo(gram_PP.dtype)
    for _ in range(3 - round(math.log2(found.eps))):
        gram_PP = gram_PP / gram_PP.diagonal().sum().clamp_min(found.tiny)
        gram_PP = gram_PP @ gram_PP
    sizes_P = torch.linalg.vector_norm(gram_PP, dim=0)
    column_P = gram_PP.index_select(1, sizes_P.argmax().reshape(1)).squeeze(1)
    top_P: Tensor = column_P / torch.linalg.vector_norm(column_P).clamp_min(found.tiny)
    return top_P


def rows_are_cheaper(columns: Sequence[Tensor], pairs: Pairs) -> bool:
    """Whether B×B products need less arithmetic than the P×Q products of the pairs."""
    widths = [column_BD.shape[1] for column_BD in columns]
    return columns[0].shape[0] * sum(widths) < sum(widths[p] * widths[q] for p, q in pairs)


def frobenius_by_rows(columns: Sequence[Tensor], pairs: Pairs) -> list[Tensor]:
    """‖X1ᵀ X2‖_F of each of `pairs` from `tr(X1 X1ᵀ X2 X2ᵀ)`; below the rounding of that trace, 0.

    The traces of all pairs are the Gram matrix of the M matrices X Xᵀ.
    """
    grams_MK = torch.stack([(column_BD @ column_BD.T).flatten() for column_BD in columns])
    traces_MM = grams_MK @ grams_MK.T
    sizes_M = torch.linalg.vector_norm(grams_MK.detach(), dim=1)
    norms = []
    for p, q in pairs:
        trace = traces_MM[p, q]
        # Not `trace > …`: a NaN must stay a NaN.
        negligible = trace <= torch.finfo(trace.dtype).eps * sizes_M[p] * sizes_M[q]
        norms.append(torch.where(negligible, 0.0, torch.where(negligible, 1.0, trace).sqrt()))
    return norms
