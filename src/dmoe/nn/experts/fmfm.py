"""Field-matrixed factorisation machine.

Shape suffixes: B rows, F fields, D embedding width, P = F(F-1)/2 pairs.
"""

from typing import Literal

from torch import Tensor

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.experts.bilinear import WeightedPairs
from dmoe.nn.experts.fwfm import PAIR_OUTPUTS, PairOutput


@register("fmfm")
class FmFM(Expert):
    """`x_iᵀ M_ij x_j` for all i < j, one matrix for each pair of fields (Sun et al., WWW 2021, eq. 8).

    Args:
        weights: M_ij as a full "matrix", or as a "vector" on its diagonal (FvFM).
        output: "pairs", every product in lexicographic order, or "bi-interaction", the vector
            `Σ_{i<j} (M_ijᵀ x_i) * x_j`.

    All pairs that share their first field are one matrix product.

    Shape: (B, F, D) to (B, P), or (B, D).
    Raises: ValueError naming the argument; fewer than two fields make no pair.
    """

    first_order = True

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        weights: Literal["matrix", "vector"] = "matrix",
        output: PairOutput = "pairs",
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields, minimum=2)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        arguments.choice("weights", weights, ("matrix", "vector"))
        self.output = arguments.choice("output", output, PAIR_OUTPUTS)
        self.pairs = WeightedPairs(num_fields, embedding_dim, weights)
        self.out_features = self.pairs.num_pairs if output == "pairs" else embedding_dim
        self.summed_features = self.out_features

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        return self.pairs.hadamard(embeddings_BFD).sum(dim=2 if self.output == "pairs" else 1)
