"""xDeepFM: a compressed interaction network beside a deep network.

Shape suffixes: B rows, F fields, D embedding width, H width of a hidden layer.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.experts.cin import CIN
from dmoe.nn.experts.dnn import DNN


@register("xdeepfm")
class XDeepFM(Expert):
    """`[CIN ; DNN]` on the same embeddings (Lian et al., KDD 2018).

    Args:
        units: number of maps of each CIN layer.
        activation: "relu" on every CIN map, or null.
        split_half: half of each inner CIN layer feeds the next one, the other half is pooled; see `CIN`.
        hidden_units: width of each hidden layer of the DNN part.
        dropout: share of hidden units dropped while training.
        batch_norm: normalise before each ReLU of the DNN part.

    Intermediates: the pooled maps of each CIN layer, then each hidden layer after ReLU and before dropout.

    Shape: (B, F, D) to (B, pooled maps + ``hidden_units[-1]``).
    Raises: ValueError naming the argument.
    """

    first_order = True

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        units: Sequence[int] = (276,),
        activation: Literal["relu"] | None = None,
        split_half: bool = False,
        hidden_units: Sequence[int] = (500, 500, 500),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_fields, self.embedding_dim = num_fields, embedding_dim
        self.cin = CIN(num_fields, embedding_dim, units=units, activation=activation, split_half=split_half)
        hidden = arguments.widths("hidden_units", hidden_units)
        self.dnn = DNN(num_fields, embedding_dim, hidden_units=hidden, dropout=dropout, batch_norm=batch_norm)
        self.out_features = self.cin.out_features + self.dnn.out_features

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        pooled_BP, maps = self.cin.forward_with_intermediates(embeddings_BFD)
        deep_BH, layers = self.dnn.forward_with_intermediates(embeddings_BFD)
        return torch.cat([pooled_BP, deep_BH], dim=1), (*maps, *layers)
