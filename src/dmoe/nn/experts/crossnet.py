"""Cross network, version 2.

Shape suffixes: B rows, F fields, D embedding width, N = F * D.
"""

import torch
from torch import Tensor, nn

from dmoe.nn import options
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.mlp import initialise_linear


@register("crossnet")
class CrossNet(Expert):
    """`x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`, x_0 the concatenated embeddings (Wang et al., WWW 2021, eq. 1).

    Args:
        layers: number of cross layers.
        low_rank: width r of `W_l = U_l V_lᵀ` (eq. 2), cheaper if r < N/2; null for a full matrix.

    Intermediates: x_1, …, x_layers; the last one is the output.

    Shape: (B, F, D) to (B, F * D).
    Raises: ValueError naming the argument.
    """

    def __init__(self, num_fields: int, embedding_dim: int, *, layers: int = 3, low_rank: int | None = None) -> None:
        super().__init__()
        self.num_fields = options.integer("num_fields", num_fields)
        self.embedding_dim = options.integer("embedding_dim", embedding_dim)
        self.out_features = num_fields * embedding_dim
        if low_rank is not None:
            options.integer("low_rank", low_rank)
        self.layers = nn.ModuleList(
            _square_linear(self.out_features, low_rank) for _ in range(options.integer("layers", layers))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: each matrix, U and V as well, Xavier normal; biases zero."""
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module)

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x0_BN = embeddings_BFD.flatten(1)
        x_BN = x0_BN
        crossed = []
        for layer in self.layers:
            x_BN = torch.addcmul(x_BN, x0_BN, layer(x_BN))
            crossed.append(x_BN)
        return x_BN, tuple(crossed)


def _square_linear(width: int, low_rank: int | None) -> nn.Module:
    if low_rank is None:
        return nn.Linear(width, width)
    return nn.Sequential(nn.Linear(width, low_rank, bias=False), nn.Linear(low_rank, width))
