"""Inner products of pairs of fields, from batched Gram matrices.

Shape suffixes: B rows, F fields, D embedding width, P pairs, W width of the result.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dmoe.kernels.row_parallel import FEW_ROWS, compiled_loops_serve, map_chunks
from dmoe.nn.experts.pair_kernels import copy_upper, mirror_upper

# Gram matrices are made and used up in pieces that stay in a core's cache.
_PIECE_FLOATS = 1 << 19
_ROWS_PER_CHUNK = 64


class _UpperGram(torch.autograd.Function):
    """The upper triangle of `X Xᵀ`, with one product in the backward pass in place of two and a scatter.

    A pair is read once, so its gradient belongs to both of its fields: `dX = (S + diag(S)) X`, where S is the
    symmetric matrix that holds the gradient of pair (i, j) at (i, j) and (j, i).
    """

    @staticmethod
    def forward(ctx: Any, embeddings_BFD: Tensor, upper_P: Tensor, mirror_FF: Tensor, above: int) -> Tensor:
        ctx.save_for_backward(embeddings_BFD, mirror_FF)
        ctx.above = above
        gram_BFF = torch.bmm(embeddings_BFD, embeddings_BFD.transpose(1, 2))
        return gram_BFF.flatten(1).index_select(1, upper_P)

    @staticmethod
    def backward(ctx: Any, gradient_BP: Tensor) -> tuple[Tensor, None, None, None]:
        embeddings_BFD, mirror_FF = ctx.saved_tensors
        # Under autocast the products are of half precision, while the embeddings are not.
        gradient_BP = gradient_BP.to(embeddings_BFD.dtype)
        return _gradient(gradient_BP, embeddings_BFD, mirror_FF, ctx.above), None, None, None


class _UpperGramInPieces(torch.autograd.Function):
    """`_UpperGram` on the CPU, behind the embeddings themselves if asked for: `[X ; triu(X Xᵀ)]` written once."""

    @staticmethod
    def forward(
        ctx: Any, embeddings_BFD: Tensor, num_pairs: int, mirror_FF: Tensor, above: int, with_embeddings: bool
    ) -> Tensor:
        ctx.save_for_backward(embeddings_BFD, mirror_FF)
        rows, fields, width = embeddings_BFD.shape
        first = fields * width if with_embeddings else 0
        ctx.above, ctx.first = above, first
        output_BW = embeddings_BFD.new_empty(rows, first + num_pairs)
        if with_embeddings:
            output_BW[:, :first] = embeddings_BFD.flatten(1)
        output = output_BW.numpy()
        for start, stop in _pieces(rows, fields):
            piece_BFD = embeddings_BFD[start:stop]
            gram = torch.bmm(piece_BFD, piece_BFD.transpose(1, 2)).numpy()
            part = output[start:stop]

            if rows <= FEW_ROWS:
                part[:, first:] = gram[:, *np.triu_indices(fields, above)]
                continue

            def copy(begin: int, end: int, gram: Any = gram, part: Any = part) -> None:
                copy_upper(begin, end, gram, above, first, part)

            map_chunks(stop - start, _ROWS_PER_CHUNK, copy)
        return output_BW

    @staticmethod
    def backward(ctx: Any, gradient_BW: Tensor) -> tuple[Tensor, None, None, None, None]:
        embeddings_BFD, mirror_FF = ctx.saved_tensors
        rows, fields, width = embeddings_BFD.shape
        above, first = ctx.above, ctx.first
        own_BFD = gradient_BW[:, :first].view(rows, fields, width) if first else None
        if torch.is_grad_enabled():  # a second derivative was asked for
            found_BFD = _gradient(gradient_BW[:, first:], embeddings_BFD, mirror_FF, above)
            return found_BFD if own_BFD is None else found_BFD + own_BFD, None, None, None, None
        result_BFD = torch.empty_like(embeddings_BFD, memory_format=torch.contiguous_format)
        gradient = gradient_BW.contiguous().numpy()
        for start, stop in _pieces(rows, fields):
            symmetric_BFF = embeddings_BFD.new_empty(stop - start, fields, fields)
            part, symmetric = gradient[start:stop], symmetric_BFF.numpy()

            def mirror(begin: int, end: int, part: Any = part, symmetric: Any = symmetric) -> None:
                mirror_upper(begin, end, part, above, first, symmetric)

            map_chunks(stop - start, _ROWS_PER_CHUNK, mirror)
            piece_BFD, target_BFD = embeddings_BFD[start:stop], result_BFD[start:stop]
            if own_BFD is None:
                torch.bmm(symmetric_BFF, piece_BFD, out=target_BFD)
            else:
                torch.baddbmm(own_BFD[start:stop], symmetric_BFF, piece_BFD, out=target_BFD)
        return result_BFD, None, None, None, None


def _gradient(gradient_BP: Tensor, embeddings_BFD: Tensor, mirror_FF: Tensor, above: int) -> Tensor:
    rows, fields, _ = embeddings_BFD.shape
    gradient_BFF = gradient_BP.index_select(1, mirror_FF.flatten()).view(rows, fields, fields)
    gradient_BFF.diagonal(dim1=1, dim2=2).mul_(0.0 if above else 2.0)
    return torch.bmm(gradient_BFF, embeddings_BFD)


def _pieces(rows: int, fields: int) -> list[tuple[int, int]]:
    step = max(1, _PIECE_FLOATS // fields**2)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def adds_in_no_order(device: torch.device) -> bool:
    """Whether the gradient of rows that are picked several times is added up in whatever order threads come."""
    return device.type == "cuda"


class Sides(nn.Module):
    """The first or the second field of all pairs i < j, in lexicographic order, with gradients that repeat to the bit.

    Shape: (B, F, D) or, for the first, (B, F - 1, D), to (B, P, D).
    """

    first_P: Tensor
    second_P: Tensor
    sorted_P: Tensor

    def __init__(self, num_fields: int) -> None:
        super().__init__()
        self.num_fields = num_fields
        first_P, second_P = torch.triu_indices(num_fields, num_fields, offset=1)
        self.register_buffer("first_P", first_P, persistent=False)
        self.register_buffer("second_P", second_P, persistent=False)
        # Where each pair stands among those ordered by their second field.
        self.register_buffer("sorted_P", second_P * (second_P - 1) // 2 + first_P, persistent=False)

    def first(self, fields_BFD: Tensor) -> Tensor:
        if not adds_in_no_order(fields_BFD.device):
            return fields_BFD.index_select(1, self.first_P)
        last = self.num_fields - 1
        parts = torch.split(fields_BFD[:, :last], 1, dim=1)
        return torch.cat([one.expand(-1, last - field, -1) for field, one in enumerate(parts)], dim=1)

    def second(self, fields_BFD: Tensor) -> Tensor:
        if not adds_in_no_order(fields_BFD.device):
            return fields_BFD.index_select(1, self.second_P)
        parts = torch.split(fields_BFD[:, 1:], 1, dim=1)
        by_second_BPD = torch.cat([one.expand(-1, field + 1, -1) for field, one in enumerate(parts)], dim=1)
        return by_second_BPD.index_select(1, self.sorted_P)


class PairProducts(nn.Module):
    """`<x_i, x_j>` for all pairs of fields i < j, or i <= j with `diagonal`, in lexicographic order.

    Args:
        with_embeddings: whether the embeddings themselves stand before the products.

    Shape: ``embeddings_BFD`` (B, F, D) to (B, ``num_pairs``), F(F-1)/2 or F(F+1)/2; with the embeddings F * D more.
    """

    upper_P: Tensor
    _mirror_FF: Tensor

    def __init__(self, num_fields: int, *, diagonal: bool, with_embeddings: bool = False) -> None:
        super().__init__()
        first_P, second_P = torch.triu_indices(num_fields, num_fields, offset=0 if diagonal else 1)
        self.num_pairs = len(first_P)
        self.diagonal, self.with_embeddings = diagonal, with_embeddings
        mirror_FF = torch.zeros(num_fields, num_fields, dtype=torch.long)
        mirror_FF[first_P, second_P] = mirror_FF[second_P, first_P] = torch.arange(self.num_pairs)
        self.register_buffer("upper_P", first_P * num_fields + second_P, persistent=False)
        self.register_buffer("_mirror_FF", mirror_FF, persistent=False)

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        above = 0 if self.diagonal else 1
        products_BW: Tensor
        if compiled_loops_serve(embeddings_BFD) and not torch.is_autocast_enabled("cpu"):
            products_BW = _UpperGramInPieces.apply(  # type: ignore[no-untyped-call]
                embeddings_BFD, self.num_pairs, self._mirror_FF, above, self.with_embeddings
            )
            return products_BW
        products_BW = _UpperGram.apply(  # type: ignore[no-untyped-call]
            embeddings_BFD, self.upper_P, self._mirror_FF, above
        )
        return torch.cat([embeddings_BFD.flatten(1), products_BW], dim=1) if self.with_embeddings else products_BW
