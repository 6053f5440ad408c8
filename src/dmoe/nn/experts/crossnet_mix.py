"""Cross network with a mixture of low-rank matrices.

Shape suffixes: B rows, F fields, D embedding width, N = F * D, E low-rank experts, R their rank.
"""

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.mlp import initialise_linear


@register("crossnet-mix")
class CrossNetMix(Expert):
    """`x_{l+1} = x_l + Σ_e g_e(x_l) x_0 * (U_e tanh(C_e tanh(V_eᵀ x_l)) + b_l)` (Wang et al., WWW 2021, eq. 3-4).

    Args:
        layers: number of cross layers.
        low_rank: rank R of each matrix.
        experts: number E of matrices in a layer; `g = softmax(G x_l)` weighs them, G shared by all layers.

    The g_e sum to 1, so one product with all U_e side by side gives the mixture, and b_l is added once.

    Intermediates: x_1, …, x_layers; the last one is the output.

    Shape: (B, F, D) to (B, F * D).
    Raises: ValueError naming the argument.
    """

    def __init__(
        self, num_fields: int, embedding_dim: int, *, layers: int = 3, low_rank: int = 32, experts: int = 4
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        self.out_features = width = num_fields * embedding_dim
        arguments.integer("low_rank", low_rank)
        arguments.integer("experts", experts)
        depth = range(arguments.integer("layers", layers))
        self.down = nn.ParameterList(torch.empty(experts, width, low_rank) for _ in depth)
        self.inner = nn.ParameterList(torch.empty(experts, low_rank, low_rank) for _ in depth)
        self.up = nn.ParameterList(torch.empty(experts, low_rank, width) for _ in depth)
        self.bias = nn.ParameterList(torch.empty(width) for _ in depth)
        self.gate = nn.Linear(width, experts, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: every single matrix Xavier normal, biases zero."""
        for weights in (self.down, self.inner, self.up):
            for weight_EIO in weights:
                nn.init.normal_(weight_EIO, std=(2 / (weight_EIO.shape[1] + weight_EIO.shape[2])) ** 0.5)
        for bias_N in self.bias:
            nn.init.zeros_(bias_N)
        initialise_linear(self.gate)

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x0_BN = x_BN = embeddings_BFD.flatten(1)
        crossed = []
        for down_ENR, inner_ERR, up_ERN, bias_N in zip(self.down, self.inner, self.up, self.bias, strict=True):
            experts, _, rank = down_ENR.shape
            gate_BE = torch.softmax(self.gate(x_BN), dim=1)
            low_BER = torch.tanh(x_BN @ down_ENR.transpose(0, 1).flatten(1)).view(-1, experts, rank)
            low_BER = torch.tanh(torch.bmm(low_BER.transpose(0, 1), inner_ERR).transpose(0, 1))
            mixed_BN = torch.addmm(bias_N, (low_BER * gate_BE.unsqueeze(2)).flatten(1), up_ERN.flatten(0, 1))
            x_BN = torch.addcmul(x_BN, x0_BN, mixed_BN)
            crossed.append(x_BN)
        return x_BN, tuple(crossed)
