"""DeepFM: a factorisation machine beside a deep network.

Shape suffixes: B rows, F fields, D embedding width, W output width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.experts.dnn import DNN
from dmoe.nn.experts.fm import FM, FMOutput


@register("deepfm")
class DeepFM(Expert):
    """`[FM ; DNN]` on the same embeddings (Guo et al., IJCAI 2017).

    Args:
        output: what the FM part hands on: "bi-interaction" (D), "pairs" (F(F-1)/2) or "scalar" (1).
        hidden_units: width of each hidden layer of the DNN part.
        dropout: share of hidden units dropped while training.
        batch_norm: normalise before each ReLU.

    Intermediates: each hidden layer of the DNN part, after ReLU and before dropout.

    Shape: (B, F, D) to (B, FM width + ``hidden_units[-1]``).
    Raises: ValueError naming the argument; fewer than two fields make no pair.
    """

    first_order = True

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        output: FMOutput = "bi-interaction",
        hidden_units: Sequence[int] = (500, 500, 500),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_fields, self.embedding_dim = num_fields, embedding_dim
        self.fm = FM(num_fields, embedding_dim, output=output)
        hidden = arguments.widths("hidden_units", hidden_units)
        self.dnn = DNN(num_fields, embedding_dim, hidden_units=hidden, dropout=dropout, batch_norm=batch_norm)
        self.summed_features = self.fm.out_features
        self.out_features = self.fm.out_features + self.dnn.out_features

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        deep_BH, layers = self.dnn.forward_with_intermediates(embeddings_BFD)
        return torch.cat([self.fm(embeddings_BFD), deep_BH], dim=1), layers
