"""Products of pairs of fields with a learned weight between the two.

Shape suffixes: B rows, F fields, D embedding width, P = F(F-1)/2 pairs in lexicographic order.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.pairs import PairProducts, Sides

PairWeight = Literal["matrix", "vector", "number"]
PAIR_WEIGHTS = ("matrix", "vector", "number")


class WeightedPairs(nn.Module):
    """`x_iᵀ W_ij x_j` for all i < j; W_ij is a D×D matrix, a vector on its diagonal, or a number times identity.

    Args:
        weight: "matrix", "vector" or "number".

    Weights start as N(0, 1/D) for matrices (Xavier normal for each one), else Xavier normal of the (P, D) or
    (P, 1) array, as in FuxiCTR; its Xavier of the whole (P, D, D) array makes matrices some ten times smaller.

    Shape: ``embeddings_BFD`` (B, F, D) to (B, P).
    Raises: ValueError naming the argument.
    """

    def __init__(self, num_fields: int, embedding_dim: int, weight: PairWeight) -> None:
        super().__init__()
        self.form = arguments.choice("weight", weight, PAIR_WEIGHTS)
        self.num_fields, self.num_pairs = num_fields, num_fields * (num_fields - 1) // 2
        shapes = {"matrix": (embedding_dim, embedding_dim), "vector": (embedding_dim,), "number": ()}
        self.weight = nn.Parameter(torch.empty(self.num_pairs, *shapes[weight]))
        self.sides = Sides(num_fields)
        if self.form == "number":
            self.inner = PairProducts(num_fields, diagonal=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        width = self.weight.shape[1] if self.weight.dim() > 1 else 1
        fan = 2 * width if self.form == "matrix" else self.num_pairs + width
        nn.init.normal_(self.weight, std=(2 / fan) ** 0.5)

    def hadamard(self, embeddings_BFD: Tensor) -> Tensor:
        """`(W_ijᵀ x_i) * x_j` (B, P, D), whose sum over D is the product."""
        second_BPD = self.sides.second(embeddings_BFD)
        if self.form == "matrix":
            return self._transformed(embeddings_BFD) * second_BPD
        weight = self.weight if self.form == "vector" else self.weight.unsqueeze(1)
        return self.sides.first(embeddings_BFD) * weight * second_BPD

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        if self.form == "number":
            products_BP: Tensor = self.inner(embeddings_BFD) * self.weight
            return products_BP
        return self.hadamard(embeddings_BFD).sum(dim=2)

    def _transformed(self, embeddings_BFD: Tensor) -> Tensor:
        """`W_ijᵀ x_i` (B, P, D): the pairs of one first field are neighbours, so each field needs one product."""
        dim = embeddings_BFD.shape[2]
        blocks = torch.split(self.weight, list(range(self.num_fields - 1, 0, -1)))
        return torch.cat(
            [
                (embeddings_BFD[:, field] @ block.transpose(0, 1).flatten(1)).view(-1, len(block), dim)
                for field, block in enumerate(blocks)
            ],
            dim=1,
        )
