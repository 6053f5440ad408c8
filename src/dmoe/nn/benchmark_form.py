"""One interaction as a model by itself, in the form in which the benchmarks report it.

Shape suffixes: B rows, F fields, D embedding width, W output width of the interaction, S summed outputs.
"""

import torch
from torch import Tensor, nn

from dmoe.nn.experts.base import Expert
from dmoe.nn.mlp import initialise_linear


class BareExpert(nn.Module):
    """The interaction alone, with no layer that aligns it and no ReLU after it."""

    def __init__(self, interaction: Expert) -> None:
        super().__init__()
        self.interaction = interaction

    def forward(self, embeddings_BFD: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """`(output_BW, the same, the interaction's inner layers)`."""
        raw_BW, inner = self.interaction.forward_with_intermediates(embeddings_BFD)
        return raw_BW, raw_BW, inner


class BenchmarkHead(nn.Module):
    """`b + Σ_s z_s + wᵀ z_rest`: the first S outputs enter the logit as they are, the others through weights.

    A factorisation machine's products are summed; hidden layers, cross layers and feature maps are weighed.

    Shape: (B, W) to (B, 1).
    """

    def __init__(self, width: int, summed: int) -> None:
        super().__init__()
        self.summed = summed
        if summed < width:
            self.linear = nn.Linear(width - summed, 1, bias=False)
            initialise_linear(self.linear)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, output_BW: Tensor) -> Tensor:
        logit_B1 = output_BW[:, : self.summed].sum(dim=1, keepdim=True) + self.bias
        if self.summed < output_BW.shape[1]:
            logit_B1 = logit_B1 + self.linear(output_BW[:, self.summed :])
        return logit_B1
