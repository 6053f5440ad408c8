"""An expert as the mixture takes it.

Shape suffixes: B rows, F fields, D embedding width, W raw width of an expert, H units of the alignment layer.
"""

from torch import Tensor, nn
from torch.nn import functional

from dmoe.nn.experts.base import Expert
from dmoe.nn.mlp import initialise_linear


class AlignedExpert(nn.Module):
    """An interaction followed by the layer that gives all experts one width (eq. 2, 7; figure 3).

    `o = ReLU(Linear(Interaction(e)))`, H = `units`.
    """

    def __init__(self, interaction: Expert, units: int = 500) -> None:
        super().__init__()
        self.interaction = interaction
        self.align = nn.Linear(interaction.out_features, units)
        initialise_linear(self.align)

    def forward(self, embeddings_BFD: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """`(o_BH after ReLU, the same before it, the interaction's inner layers)`."""
        raw_BW, inner = self.interaction.forward_with_intermediates(embeddings_BFD)
        aligned_BH = self.align(raw_BW)
        return functional.relu(aligned_BH), aligned_BH, inner
