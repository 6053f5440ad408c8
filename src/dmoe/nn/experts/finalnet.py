"""Two streams of factorised interaction layers.

Shape suffixes: B rows, F fields, D embedding width, I input width, H output width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.mlp import BatchNorm, initialise_linear

Residual = Literal["concat", "sum"]


class FactorisedBlock(nn.Module):
    """Layers `[u ; v] = W x + b`, then `[u ; u * v]` of half width each, or `u + u * v` (Zhu et al., eq. 3-4).

    The order doubles with each layer. After it: batch normalisation, ReLU and dropout, where asked for.

    Shape: (B, I) to the output (B, ``hidden_units[-1]``) and every layer before dropout.
    """

    def __init__(
        self,
        in_features: int,
        hidden_units: Sequence[int],
        *,
        residual: Residual,
        activation: bool,
        dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.residual, self.activation = residual, activation
        factor = 2 if residual == "sum" else 1
        widths = (in_features, *hidden_units)
        self.linears = nn.ModuleList(
            nn.Linear(before, factor * width) for before, width in zip(widths, hidden_units, strict=False)
        )
        self.norms = nn.ModuleList(BatchNorm(width) if batch_norm else nn.Identity() for width in hidden_units)
        self.dropout = nn.Dropout(dropout)
        for linear in self.linears:
            assert isinstance(linear, nn.Linear)
            initialise_linear(linear)

    def forward(self, x_BI: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        layers = []
        for linear, norm in zip(self.linears, self.norms, strict=True):
            first, second = linear(x_BI).chunk(2, dim=1)
            crossed = first * second
            x_BI = norm(torch.cat([first, crossed], dim=1) if self.residual == "concat" else first + crossed)
            if self.activation:
                x_BI = torch.relu(x_BI)
            layers.append(x_BI)
            x_BI = self.dropout(x_BI)
        return x_BI, tuple(layers)


@register("finalnet")
class FinalNet(Expert):
    """`[h_1 ; h_2]`, each of stacked layers `[u ; v] = W x + b`, `[u ; u * v]` (Zhu et al., SIGIR 2023, FINAL).

    Args:
        hidden_units: width of each layer of the first stream.
        hidden_units_2: the same of the second stream; empty for one stream (1B).
        residual: "concat", `[u ; u * v]`, even widths; or "sum", `u + u * v` with a W of twice as many rows.
        activation: "relu" after each layer, or null.
        field_gate: the first stream reads `[X ; X * (W X + b)]`, W along the axis of fields, at first X twice.
        dropout: share of a layer's units dropped while training.
        batch_norm: normalise after each interaction.

    The authors' loss for two streams, which distils their mean into each, is not part of an expert.

    Intermediates: the layers of the first stream, then those of the second, before dropout.

    Shape: (B, F, D) to (B, ``hidden_units[-1]`` + ``hidden_units_2[-1]``).
    Raises: ValueError naming the argument.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        hidden_units: Sequence[int] = (400, 400),
        hidden_units_2: Sequence[int] = (400, 400),
        residual: Residual = "concat",
        activation: Literal["relu"] | None = None,
        field_gate: bool = False,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        arguments.choice("residual", residual, ("concat", "sum"))
        arguments.choice("activation", activation, (None, "relu"))
        arguments.dropout_rate("dropout", dropout)
        arguments.boolean("batch_norm", batch_norm)
        width = num_fields * embedding_dim
        widths, self.gate = [width, width], None
        if arguments.boolean("field_gate", field_gate):
            self.gate = nn.Linear(num_fields, num_fields)
            nn.init.zeros_(self.gate.weight)
            nn.init.ones_(self.gate.bias)
            widths[0] = 2 * width
        self.streams = nn.ModuleList()
        self.out_features = 0
        for name, hidden, before in (
            ("hidden_units", arguments.widths("hidden_units", hidden_units), widths[0]),
            ("hidden_units_2", arguments.widths("hidden_units_2", hidden_units_2, empty=True), widths[1]),
        ):
            if residual == "concat":
                for index, units in enumerate(hidden):
                    arguments.multiple(f"{name}[{index}]", units, 2, "one half is the products")
            if hidden:
                self.streams.append(
                    FactorisedBlock(
                        before,
                        hidden,
                        residual=residual,
                        activation=activation == "relu",
                        dropout=dropout,
                        batch_norm=batch_norm,
                    )
                )
                self.out_features += hidden[-1]

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        first_BI = x0_BN = embeddings_BFD.flatten(1)
        if self.gate is not None:
            gates_BFD = self.gate(embeddings_BFD.transpose(1, 2)).transpose(1, 2)
            first_BI = torch.cat([x0_BN, (embeddings_BFD * gates_BFD).flatten(1)], dim=1)
        answers = [stream(input_) for stream, input_ in zip(self.streams, (first_BI, x0_BN), strict=False)]
        return torch.cat([output for output, _ in answers], dim=1), tuple(
            layer for _, layers in answers for layer in layers
        )
