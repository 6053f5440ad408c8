"""Inner products of pairs of fields, from one batched Gram matrix.

Shape suffixes: B rows, F fields, D embedding width, P pairs.
"""

from typing import Any

import torch
from torch import Tensor, nn


class _UpperGram(torch.autograd.Function):
    """The upper triangle of `X Xᵀ`, with one product in the backward pass in place of two and a scatter.

    A pair is read once, so its gradient belongs to both of its fields: `dX = (S + diag(S)) X`, where S is the
    symmetric matrix that holds the gradient of pair (i, j) at (i, j) and (j, i).
    """

    @staticmethod
    def forward(ctx: Any, embeddings_BFD: Tensor, upper_P: Tensor, mirror_FF: Tensor, diagonal_factor: float) -> Tensor:
        ctx.save_for_backward(embeddings_BFD, mirror_FF)
        ctx.diagonal_factor = diagonal_factor
        gram_BFF = torch.bmm(embeddings_BFD, embeddings_BFD.transpose(1, 2))
        return gram_BFF.flatten(1).index_select(1, upper_P)

    @staticmethod
    def backward(ctx: Any, gradient_BP: Tensor) -> tuple[Tensor, None, None, None]:
        embeddings_BFD, mirror_FF = ctx.saved_tensors
        rows, fields, _ = embeddings_BFD.shape
        # Under autocast the products are of half precision, while the embeddings are not.
        gradient_BP = gradient_BP.to(embeddings_BFD.dtype)
        gradient_BFF = gradient_BP.index_select(1, mirror_FF.flatten()).view(rows, fields, fields)
        gradient_BFF.diagonal(dim1=1, dim2=2).mul_(ctx.diagonal_factor)
        return torch.bmm(gradient_BFF, embeddings_BFD), None, None, None


class PairProducts(nn.Module):
    """`<x_i, x_j>` for all pairs of fields i < j, or i <= j with `diagonal`, in lexicographic order.

    Shape: ``embeddings_BFD`` (B, F, D) to (B, ``num_pairs``), F(F-1)/2 or F(F+1)/2.
    """

    upper_P: Tensor
    _mirror_FF: Tensor

    def __init__(self, num_fields: int, *, diagonal: bool) -> None:
        super().__init__()
        first_P, second_P = torch.triu_indices(num_fields, num_fields, offset=0 if diagonal else 1)
        self.num_pairs = len(first_P)
        self.diagonal = diagonal
        mirror_FF = torch.zeros(num_fields, num_fields, dtype=torch.long)
        mirror_FF[first_P, second_P] = mirror_FF[second_P, first_P] = torch.arange(self.num_pairs)
        self.register_buffer("upper_P", first_P * num_fields + second_P, persistent=False)
        self.register_buffer("_mirror_FF", mirror_FF, persistent=False)

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        diagonal_factor = 2.0 if self.diagonal else 0.0
        products_BP: Tensor = _UpperGram.apply(  # type: ignore[no-untyped-call]
            embeddings_BFD, self.upper_P, self._mirror_FF, diagonal_factor
        )
        return products_BP
