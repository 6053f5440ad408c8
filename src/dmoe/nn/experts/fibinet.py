"""Bilinear interactions of embeddings and of their re-weighted copies.

Shape suffixes: B rows, F fields, D embedding width, P = F(F-1)/2 pairs, R units of the squeeze, H hidden width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.experts.bilinear import WeightedPairs
from dmoe.nn.experts.pairs import Sides
from dmoe.nn.experts.product_network import PNNOutput, product_mlp
from dmoe.nn.mlp import initialise_linear

Bilinear = Literal["field-interaction", "field-each", "field-all"]
BILINEARS = ("field-interaction", "field-each", "field-all")


class SENet(nn.Module):
    """`x_i a_i`, `a = ReLU(W_2 ReLU(W_1 z))`, z_i the mean of x_i over D (Huang et al., eq. 3-5).

    Args:
        reduction: F / R, rounded down to at least one unit.

    Shape: (B, F, D) to the same.
    """

    def __init__(self, num_fields: int, reduction: int) -> None:
        super().__init__()
        units = max(1, num_fields // reduction)
        self.squeeze = nn.Linear(num_fields, units, bias=False)
        self.excite = nn.Linear(units, num_fields, bias=False)
        initialise_linear(self.squeeze)
        initialise_linear(self.excite)

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        weights_BF = torch.relu(self.excite(torch.relu(self.squeeze(embeddings_BFD.mean(dim=2)))))
        return embeddings_BFD * weights_BF.unsqueeze(2)


class BilinearPairs(nn.Module):
    """`(W x_i) * x_j` for all i < j, with one W for each pair, each first field, or all (Huang et al., eq. 6-8).

    Shape: (B, F, D) to (B, P, D).
    """

    def __init__(self, num_fields: int, embedding_dim: int, form: Bilinear) -> None:
        super().__init__()
        self.form = form
        if form == "field-interaction":
            self.pairs = WeightedPairs(num_fields, embedding_dim, "matrix")
            return
        # Of the last field no pair is the first, so it needs no matrix.
        matrices = num_fields - 1 if form == "field-each" else 1
        self.weight = nn.Parameter(torch.empty(matrices, embedding_dim, embedding_dim))
        nn.init.normal_(self.weight, std=embedding_dim**-0.5)
        self.sides = Sides(num_fields)

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        if self.form == "field-interaction":
            return self.pairs.hadamard(embeddings_BFD)
        if self.form == "field-all":
            first_BFD = embeddings_BFD[:, :-1] @ self.weight[0]
        else:
            first_BFD = torch.bmm(embeddings_BFD[:, :-1].transpose(0, 1), self.weight).transpose(0, 1)
        return self.sides.first(first_BFD) * self.sides.second(embeddings_BFD)


@register("fibinet")
class FiBiNET(Expert):
    """`MLP([Bilinear(X) ; Bilinear(SENet(X))])` (Huang et al., RecSys 2019).

    Args:
        bilinear: one matrix for each pair, "field-interaction", for each field, "field-each", or "field-all".
        reduction: fields to each unit of the SENet's inner layer.
        output: "hidden", the last hidden layer, or "raw", the concatenation that the MLP would read.
        hidden_units: width of each hidden layer; not used with "raw".
        dropout: share of hidden units dropped while training.
        batch_norm: normalise before each ReLU.

    Intermediates: each hidden layer, after ReLU and before dropout.

    Shape: (B, F, D) to (B, ``hidden_units[-1]``); raw: (B, 2 * P * D).
    Raises: ValueError naming the argument; fewer than two fields make no pair.
    """

    first_order = True

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        bilinear: Bilinear = "field-interaction",
        reduction: int = 3,
        output: PNNOutput = "hidden",
        hidden_units: Sequence[int] = (500, 500, 500),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields, minimum=2)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        arguments.choice("bilinear", bilinear, BILINEARS)
        self.senet = SENet(num_fields, arguments.integer("reduction", reduction))
        self.plain = BilinearPairs(num_fields, embedding_dim, bilinear)
        self.weighted = BilinearPairs(num_fields, embedding_dim, bilinear)
        width = num_fields * (num_fields - 1) * embedding_dim
        self.mlp = product_mlp(width, output, hidden_units, dropout=dropout, batch_norm=batch_norm)
        self.out_features = self.mlp.out_features

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        products = (self.plain(embeddings_BFD), self.weighted(self.senet(embeddings_BFD)))
        return self.mlp.forward_with_layers(torch.cat([one.flatten(1) for one in products], dim=1))
