"""Fusing cross networks of DCNv3.

Shape suffixes: B rows, F fields, D embedding width, N = F * D, C = N/2.
"""

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.mlp import initialise_linear


class CrossNetV3(nn.Module):
    """`x_{l+1} = y_l * ([c_l ; c_l * ReLU(LN(c_l))] + b_l) + x_l`, `c_l = W_l x_l` of half the width.

    Args:
        width: N, even.
        exponential: y_l is x_l, so that the order doubles with each layer, rather than x_0.
        layer_norm: otherwise the mask is ReLU(c_l).

    Biases start at zero; the authors' code overwrites its zeros with values from 0 to 1.

    Shape: (B, N) to every layer (B, N).
    """

    def __init__(self, width: int, layers: int, *, exponential: bool, layer_norm: bool, dropout: float) -> None:
        super().__init__()
        self.exponential = exponential
        self.linears = nn.ModuleList(nn.Linear(width, width // 2, bias=False) for _ in range(layers))
        self.biases = nn.ParameterList(torch.zeros(width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width // 2) if layer_norm else nn.Identity() for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        for linear in self.linears:
            assert isinstance(linear, nn.Linear)
            initialise_linear(linear)

    def forward(self, x0_BN: Tensor) -> tuple[Tensor, ...]:
        x_BN = x0_BN
        crossed = []
        for linear, bias_N, norm in zip(self.linears, self.biases, self.norms, strict=True):
            half_BC: Tensor = linear(x_BN)
            masked_BC = half_BC * torch.relu(norm(half_BC))
            weight_BN = torch.cat([half_BC, masked_BC], dim=1) + bias_N
            x_BN = self.dropout(torch.addcmul(x_BN, x_BN if self.exponential else x0_BN, weight_BN))
            crossed.append(x_BN)
        return tuple(crossed)


@register("dcnv3")
class DCNv3(Expert):
    """`[exponential cross network ; linear cross network]`, see `CrossNetV3` (Li et al., arXiv 2407.13349, FCN).

    Args:
        exponential_layers: depth of the network whose order doubles with each layer; 0 leaves it out.
        linear_layers: depth of the network whose order grows by one with each layer; 0 leaves it out.
        layer_norm: normalise c_l before its mask.
        dropout: share of a layer's units dropped while training.

    Both read the first halves of all fields' embeddings followed by the second halves: the mask acts on the
    latter. The loss of the two networks' own predictions (Tri-BCE) is not part of an expert.

    Intermediates: the layers of the exponential network, then those of the linear one.

    Shape: (B, F, D) to (B, 2 * F * D), or (B, F * D) with one of them.
    Raises: ValueError naming the argument.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        exponential_layers: int = 3,
        linear_layers: int = 3,
        layer_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        arguments.multiple("embedding_dim", embedding_dim, 2, "one half is masked")
        arguments.boolean("layer_norm", layer_norm)
        arguments.dropout_rate("dropout", dropout)
        depths = (
            (True, arguments.integer("exponential_layers", exponential_layers, minimum=0)),
            (False, arguments.integer("linear_layers", linear_layers, minimum=0)),
        )
        width = num_fields * embedding_dim
        self.networks = nn.ModuleList(
            CrossNetV3(width, depth, exponential=exponential, layer_norm=layer_norm, dropout=dropout)
            for exponential, depth in depths
            if depth
        )
        if not self.networks:
            raise ValueError("exponential_layers or linear_layers must be at least 1, got 0 and 0")
        self.out_features = width * len(self.networks)

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        halves = embeddings_BFD.chunk(2, dim=2)
        x0_BN = torch.cat([half.flatten(1) for half in halves], dim=1)
        crossed = [network(x0_BN) for network in self.networks]
        return torch.cat([layers[-1] for layers in crossed], dim=1), tuple(one for layers in crossed for one in layers)
