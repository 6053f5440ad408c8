"""Factorisation machine: second-order interactions only.

Shape suffixes: B rows, F fields, D embedding width, P = F(F-1)/2 pairs, W output width.
"""

from typing import Literal

from torch import Tensor

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.experts.pairs import PairProducts

FMOutput = Literal["bi-interaction", "pairs", "scalar"]
FM_OUTPUTS = ("bi-interaction", "pairs", "scalar")


def bi_interaction(embeddings_BFD: Tensor) -> Tensor:
    """`Σ_{i<j} x_i * x_j`, as `((Σ_i x_i)² - Σ_i x_i²) / 2` elementwise (Rendle 2010, lemma 3.1)."""
    sum_BD = embeddings_BFD.sum(dim=1)
    return 0.5 * (sum_BD.square() - embeddings_BFD.square().sum(dim=1))


@register("fm")
class FM(Expert):
    """`Σ_{i<j} x_i * x_j`, second-order interactions of all pairs of fields (Rendle, ICDM 2010).

    Args:
        output: "bi-interaction", `Σ_{i<j} x_i * x_j` elementwise, width D; "pairs", every `<x_i, x_j>` in
            lexicographic order, width F(F-1)/2; "scalar", their sum, width 1.

    A scalar, aligned to many units, has rank 1: every correlation with it is equal. There is no linear part,
    and there are no parameters and no intermediates.

    Shape: (B, F, D) to (B, ``out_features``).
    Raises: ValueError naming the argument; fewer than two fields make no pair.
    """

    first_order = True

    def __init__(self, num_fields: int, embedding_dim: int, *, output: FMOutput = "bi-interaction") -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields, minimum=2)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        self.output = arguments.choice("output", output, FM_OUTPUTS)
        if output == "pairs":
            self.pairs = PairProducts(num_fields, diagonal=False)
            self.out_features = self.pairs.num_pairs
        else:
            self.out_features = embedding_dim if output == "bi-interaction" else 1
        self.summed_features = self.out_features

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        if self.output == "pairs":
            products_BP: Tensor = self.pairs(embeddings_BFD)
            return products_BP
        summed_BD = bi_interaction(embeddings_BFD)
        return summed_BD if self.output == "bi-interaction" else summed_BD.sum(dim=1, keepdim=True)
