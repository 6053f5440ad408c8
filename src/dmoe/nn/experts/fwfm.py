"""Field-weighted factorisation machine.

Shape suffixes: B rows, F fields, D embedding width, P = F(F-1)/2 pairs.
"""

from typing import Literal

import torch
from torch import Tensor

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.experts.bilinear import WeightedPairs

PairOutput = Literal["pairs", "bi-interaction"]
PAIR_OUTPUTS = ("pairs", "bi-interaction")


@register("fwfm")
class FwFM(Expert):
    """`r_ij <x_i, x_j>` for all i < j, one weight for each pair of fields (Pan et al., WWW 2018, eq. 6).

    Args:
        output: "pairs", every weighted product in lexicographic order, or "bi-interaction", the vector
            `Σ_{i<j} r_ij x_i * x_j`.

    The vector is computed as `½ Σ_i x_i * (R X)_i` with R symmetric and zero on its diagonal.

    Shape: (B, F, D) to (B, P), or (B, D).
    Raises: ValueError naming the argument; fewer than two fields make no pair.
    """

    first_order = True

    def __init__(self, num_fields: int, embedding_dim: int, *, output: PairOutput = "pairs") -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields, minimum=2)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        self.output = arguments.choice("output", output, PAIR_OUTPUTS)
        self.pairs = WeightedPairs(num_fields, embedding_dim, "number")
        self.out_features = self.pairs.num_pairs if output == "pairs" else embedding_dim
        self.summed_features = self.out_features

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        if self.output == "pairs":
            products_BP: Tensor = self.pairs(embeddings_BFD)
            return products_BP
        places = (self.pairs.sides.first_P, self.pairs.sides.second_P)
        upper_FF = self.pairs.weight.new_zeros(self.num_fields, self.num_fields).index_put(places, self.pairs.weight)
        return 0.5 * (embeddings_BFD * torch.matmul(upper_FF + upper_FF.t(), embeddings_BFD)).sum(dim=1)
