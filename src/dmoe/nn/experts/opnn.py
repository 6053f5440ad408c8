"""Outer-product network.

Shape suffixes: B rows, F fields, D embedding width, P = F(F-1)/2 pairs, H width of a hidden layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmoe.nn import arguments
from dmoe.nn.experts.base import register
from dmoe.nn.experts.bilinear import PAIR_WEIGHTS, PairWeight, WeightedPairs
from dmoe.nn.experts.product_network import PNNOutput, ProductNetwork


@register("opnn")
class OPNN(ProductNetwork):
    """`MLP([x_0 ; (x_iᵀ W_ij x_j)_{i<j}])`: kernels W_ij weigh the outer products (Qu et al., ICDM 2016).

    Args:
        kernel: W_ij as a "matrix" (D, D), a "vector" on its diagonal, or a "number".
        output: "hidden", the last hidden layer, or "raw", the concatenation that the MLP would read.
        hidden_units: width of each hidden layer; not used with "raw".
        dropout: share of hidden units dropped while training.
        batch_norm: normalise before each ReLU.

    Intermediates: each hidden layer, after ReLU and before dropout.

    Shape: (B, F, D) to (B, ``hidden_units[-1]``); raw: (B, F * D + P).
    Raises: ValueError naming the argument; fewer than two fields make no pair.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        kernel: PairWeight = "matrix",
        output: PNNOutput = "hidden",
        hidden_units: Sequence[int] = (500, 500, 500),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(num_fields, embedding_dim)
        arguments.choice("kernel", kernel, PAIR_WEIGHTS)
        self.pairs = WeightedPairs(num_fields, embedding_dim, kernel)
        width = num_fields * embedding_dim + self.pairs.num_pairs
        self._put_behind(width, output, hidden_units, dropout=dropout, batch_norm=batch_norm)

    def products(self, embeddings_BFD: Tensor) -> Tensor:
        return torch.cat([embeddings_BFD.flatten(1), self.pairs(embeddings_BFD)], dim=1)
