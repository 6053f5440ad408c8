"""Gated cross network.

Shape suffixes: B rows, F fields, D embedding width, N = F * D, H width of a hidden layer.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.mlp import MLP, initialise_linear


@register("gdcn")
class GDCN(Expert):
    """`x_{l+1} = x_0 * (W_l x_l + b_l) * sigmoid(V_l x_l) + x_l`, alone or with a DNN (Wang et al., CIKM 2023, eq. 2).

    Args:
        structure: "parallel", the cross layers beside the DNN (GDCN-P), "stacked", the DNN on top of them (GDCN-S),
            or "cross", the cross layers alone (GCN).
        layers: number of cross layers.
        hidden_units: width of each hidden layer of the DNN; not used with "cross".
        dropout: share of hidden units dropped while training.
        batch_norm: normalise before each ReLU.

    Biases start at zero; the authors' code and FuxiCTR overwrite their zeros with values from 0 to 1.

    Intermediates: the cross layers x_1, …, x_layers.

    Shape: (B, F, D) to (B, F * D + ``hidden_units[-1]``); stacked: (B, ``hidden_units[-1]``); cross: (B, F * D).
    Raises: ValueError naming the argument.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        structure: Literal["parallel", "stacked", "cross"] = "parallel",
        layers: int = 3,
        hidden_units: Sequence[int] = (500, 500, 500),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        self.structure = arguments.choice("structure", structure, ("parallel", "stacked", "cross"))
        width = num_fields * embedding_dim
        depth = range(arguments.integer("layers", layers))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in depth)
        self.gates = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in depth)
        hidden = arguments.widths("hidden_units", hidden_units)
        self.mlp = MLP(width, hidden if structure != "cross" else (), dropout=dropout, batch_norm=batch_norm)
        self.out_features = self.mlp.out_features + (width if structure == "parallel" else 0)
        for linear in (*self.layers, *self.gates):
            assert isinstance(linear, nn.Linear)
            initialise_linear(linear)

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x0_BN = x_BN = embeddings_BFD.flatten(1)
        crossed = []
        for layer, gate in zip(self.layers, self.gates, strict=True):
            x_BN = torch.addcmul(x_BN, x0_BN, layer(x_BN) * torch.sigmoid(gate(x_BN)))
            crossed.append(x_BN)
        if self.structure == "parallel":
            return torch.cat([x_BN, self.mlp(x0_BN)], dim=1), tuple(crossed)
        output_BH: Tensor = self.mlp(x_BN)
        return output_BH, tuple(crossed)
