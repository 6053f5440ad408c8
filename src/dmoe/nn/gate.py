"""The gate of eq. 9.

Shape suffixes: B rows, F fields, D embedding width, M experts.
"""

import torch
from torch import Tensor, nn

from dmoe.nn.mlp import MLP, initialise_linear


class Gate(nn.Module):
    """`softmax(Linear_M(ReLU(Linear_units(flatten(embeddings)))))` (eq. 9 of arXiv 2505.17925).

    Shape: ``embeddings_BFD`` (B, F, D) to weights (B, M); every row sums to 1.
    """

    def __init__(self, num_fields: int, embedding_dim: int, num_experts: int, units: int = 64) -> None:
        super().__init__()
        self.hidden = MLP(num_fields * embedding_dim, [units])
        self.output = nn.Linear(units, num_experts)
        initialise_linear(self.output)

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        logits_BM: Tensor = self.output(self.hidden(embeddings_BFD.flatten(1)))
        return torch.softmax(logits_BM, dim=1)
