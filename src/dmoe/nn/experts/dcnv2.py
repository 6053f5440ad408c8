"""DCN-V2: a cross network with a deep network.

Shape suffixes: B rows, F fields, D embedding width, N = F * D, H width of a hidden layer.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.experts.crossnet import CrossNet
from dmoe.nn.mlp import MLP


@register("dcnv2")
class DCNv2(Expert):
    """`[CrossNet(x_0) ; DNN(x_0)]`, or `DNN(CrossNet(x_0))` (Wang et al., WWW 2021, section 3).

    Args:
        structure: "parallel", the two side by side, or "stacked", the DNN on top of the cross layers.
        layers: number of cross layers.
        low_rank: width r of each cross layer's matrix `U Vᵀ`; null for a full matrix.
        hidden_units: width of each hidden layer of the DNN.
        dropout: share of hidden units dropped while training.
        batch_norm: normalise before each ReLU.

    Intermediates: the cross layers x_1, …, x_layers, where the D-MoE paper places its loss (section 4.7).

    Shape: (B, F, D) to (B, F * D + ``hidden_units[-1]``); stacked: (B, ``hidden_units[-1]``).
    Raises: ValueError naming the argument.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        structure: Literal["parallel", "stacked"] = "parallel",
        layers: int = 3,
        low_rank: int | None = None,
        hidden_units: Sequence[int] = (500, 500, 500),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_fields, self.embedding_dim = num_fields, embedding_dim
        self.structure = arguments.choice("structure", structure, ("parallel", "stacked"))
        self.cross = CrossNet(num_fields, embedding_dim, layers=layers, low_rank=low_rank)
        hidden = arguments.widths("hidden_units", hidden_units)
        self.mlp = MLP(self.cross.out_features, hidden, dropout=dropout, batch_norm=batch_norm)
        beside = self.cross.out_features if structure == "parallel" else 0
        self.out_features = beside + self.mlp.out_features

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        crossed_BN, layers = self.cross.forward_with_intermediates(embeddings_BFD)
        if self.structure == "stacked":
            stacked_BH: Tensor = self.mlp(crossed_BN)
            return stacked_BH, layers
        deep_BH = self.mlp(embeddings_BFD.flatten(1))
        return torch.cat([crossed_BN, deep_BH], dim=1), layers
