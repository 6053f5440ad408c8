"""Logistic regression's sum.

Shape suffixes: B rows, F fields, D embedding width.
"""

from torch import Tensor

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register


@register("lr")
class LR(Expert):
    """`Σ_i x_i`; in the benchmark form and with embedding_dim 1, logistic regression (Richardson et al., WWW 2007).

    It has no interaction, no parameters of its own and no intermediates.

    Shape: (B, F, D) to (B, D).
    Raises: ValueError naming the argument.
    """

    def __init__(self, num_fields: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.out_features = self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        self.summed_features = self.out_features

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        return embeddings_BFD.sum(dim=1)
