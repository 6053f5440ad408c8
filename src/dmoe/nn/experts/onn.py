"""Operation-aware neural network.

Shape suffixes: B rows, F fields, D embedding width, P = F(F-1)/2 pairs, K width of one of a feature's vectors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmoe.nn import arguments
from dmoe.nn.experts.base import register
from dmoe.nn.experts.ffm import FieldAwarePairs
from dmoe.nn.experts.product_network import PNNOutput, ProductNetwork


@register("onn")
class ONN(ProductNetwork):
    """`MLP([(v_{i,i})_i ; (<v_{i,j}, v_{j,i}>)_{i<j}])`, a vector for each partner (Yang et al., Neural Networks 2020).

    Args:
        output: "hidden", the last hidden layer, or "raw", the concatenation that the MLP would read.
        hidden_units: width of each hidden layer; not used with "raw".
        dropout: share of hidden units dropped while training.
        batch_norm: normalise before each ReLU.

    The table's width D is split into F vectors of width K: v_{i,j} meets field j, v_{i,i} is copied.
    Intermediates: each hidden layer, after ReLU and before dropout.

    Shape: (B, F, D) to (B, ``hidden_units[-1]``); raw: (B, F * K + P).
    Raises: ValueError naming the argument; fewer than two fields make no pair.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        output: PNNOutput = "hidden",
        hidden_units: Sequence[int] = (500, 500, 500),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(num_fields, embedding_dim)
        self.width = arguments.multiple("embedding_dim", embedding_dim, num_fields, "one vector for each field")
        self.pairs = FieldAwarePairs(num_fields, own=True)
        width = num_fields * self.width + num_fields * (num_fields - 1) // 2
        self._put_behind(width, output, hidden_units, dropout=dropout, batch_norm=batch_norm)

    def products(self, embeddings_BFD: Tensor) -> Tensor:
        vectors_BCK = embeddings_BFD.reshape(-1, self.num_fields**2, self.width)
        own_BFK = vectors_BCK[:, :: self.num_fields + 1]
        return torch.cat([own_BFK.flatten(1), self.pairs(vectors_BCK).sum(dim=2)], dim=1)
