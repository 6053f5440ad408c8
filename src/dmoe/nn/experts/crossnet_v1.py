"""Cross network, version 1.

Shape suffixes: B rows, F fields, D embedding width, N = F * D, L layers.
"""

from itertools import accumulate

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register


@register("crossnet-v1")
class CrossNetV1(Expert):
    """`x_{l+1} = x_0 (w_lᵀ x_l) + b_l + x_l`, w_l a vector (Wang et al., ADKDD 2017, eq. 3).

    Args:
        layers: number of cross layers.

    Every layer is a multiple of x_0 plus a constant, `x_l = a_l x_0 + β_l` with `a_{l+1} = a_l (1 + w_lᵀ x_0) +
    w_lᵀ β_l` and `β_{l+1} = β_l + b_l`, and is computed so: one product gives all `w_lᵀ x_0`. The direction of the
    output is thus that of x_0, whatever the weights.

    Intermediates: x_1, …, x_layers; the last one is the output.

    Shape: (B, F, D) to (B, F * D).
    Raises: ValueError naming the argument.
    """

    def __init__(self, num_fields: int, embedding_dim: int, *, layers: int = 3) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        self.out_features = num_fields * embedding_dim
        depth = arguments.integer("layers", layers)
        self.weight = nn.Parameter(torch.empty(depth, self.out_features))
        self.bias = nn.Parameter(torch.empty(depth, self.out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: each vector Xavier normal of fan N and 1, biases zero."""
        nn.init.normal_(self.weight, std=(2 / (self.out_features + 1)) ** 0.5)
        nn.init.zeros_(self.bias)

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x0_BN = embeddings_BFD.flatten(1)
        projected_BL = nn.functional.linear(x0_BN, self.weight)
        constants_LN = list(accumulate(self.bias))  # a device's cumsum does not repeat to the bit
        scale_B1 = torch.ones_like(projected_BL[:, :1])
        crossed = []
        for layer, weight_N in enumerate(self.weight):
            scale_B1 = scale_B1 + scale_B1 * projected_BL[:, layer : layer + 1]
            if layer:
                scale_B1 = scale_B1 + (weight_N * constants_LN[layer - 1]).sum()
            crossed.append(torch.addcmul(constants_LN[layer], scale_B1, x0_BN))
        return crossed[-1], tuple(crossed)
