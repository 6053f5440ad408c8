"""Two streams of hidden layers on gated inputs.

Shape suffixes: B rows, F fields, D embedding width, C context fields, N = F * D, H width of a stream,
K heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.mlp import MLP, initialise_linear


class FeatureGate(nn.Module):
    """`2 sigmoid(W MLP(context))` times the flattened embeddings (Mao et al., eq. 4-5).

    The context is the embeddings of some fields, or without them a learned vector of width D that starts at 0.

    Shape: (B, F, D) to (B, F * D).
    """

    def __init__(self, num_fields: int, embedding_dim: int, context: Sequence[int], units: Sequence[int]) -> None:
        super().__init__()
        self.fields_C: Tensor
        self.register_buffer("fields_C", torch.tensor(context, dtype=torch.int64), persistent=False)
        if not context:
            self.context = nn.Parameter(torch.zeros(embedding_dim))
        self.mlp = MLP(embedding_dim * max(1, len(context)), units)
        self.gate = nn.Linear(self.mlp.out_features, num_fields * embedding_dim)
        initialise_linear(self.gate)

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        num_context = self.fields_C.numel()
        context = embeddings_BFD[:, self.fields_C].flatten(1) if num_context else self.context.unsqueeze(0)
        return embeddings_BFD.flatten(1) * (2 * torch.sigmoid(self.gate(self.mlp(context))))


@register("finalmlp")
class FinalMLP(Expert):
    """`[h_1 ; h_2]`, `h_s = MLP_s(x_0 * 2 sigmoid(MLP(context_s)))` (Mao et al., AAAI 2023, eq. 3-7).

    Args:
        hidden_units: width of each hidden layer of the first stream.
        hidden_units_2: the same of the second stream.
        gate_units: hidden layers of the gates on the streams' inputs; null for no gates.
        context: fields, by number, that the first stream's gate reads; empty for a learned vector.
        context_2: the same for the second stream.
        heads: adds `h_1kᵀ W_k h_2k` of each of so many parts of both streams to the output; 0 for none.
        dropout: share of hidden units dropped while training.
        batch_norm: normalise before each ReLU.

    In the benchmark form the output goes through one linear layer; with `heads` that is the paper's bilinear
    fusion, each head with one more factor. The gates read this expert's own table, where the authors' code has
    tables of their own.

    Intermediates: none.

    Shape: (B, F, D) to (B, ``hidden_units[-1]`` + ``hidden_units_2[-1]`` + ``heads``).
    Raises: ValueError naming the argument.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        hidden_units: Sequence[int] = (500, 500, 500),
        hidden_units_2: Sequence[int] = (500,),
        gate_units: Sequence[int] | None = None,
        context: Sequence[int] = (),
        context_2: Sequence[int] = (),
        heads: int = 0,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        contexts = (
            arguments.numbers("context", context, num_fields),
            arguments.numbers("context_2", context_2, num_fields),
        )
        streams = (
            arguments.widths("hidden_units", hidden_units),
            arguments.widths("hidden_units_2", hidden_units_2),
        )
        self.gates = nn.ModuleList()
        if gate_units is not None:
            units = arguments.widths("gate_units", gate_units, empty=True)
            self.gates.extend(FeatureGate(num_fields, embedding_dim, one, units) for one in contexts)
        elif any(contexts):
            raise ValueError("context and context_2 need gates; set gate_units, for example to [64]")
        self.streams = nn.ModuleList(
            MLP(num_fields * embedding_dim, hidden, dropout=dropout, batch_norm=batch_norm) for hidden in streams
        )
        first, second = (hidden[-1] for hidden in streams)
        self.heads = arguments.integer("heads", heads, minimum=0)
        if heads:
            width = arguments.multiple("hidden_units[-1]", first, heads, "one part for each head")
            width_2 = arguments.multiple("hidden_units_2[-1]", second, heads, "one part for each head")
            self.bilinear = nn.Parameter(torch.empty(heads, width, width_2))
            nn.init.normal_(self.bilinear, std=(2 / (width + width_2)) ** 0.5)
        self.out_features = first + second + heads

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        inputs = [gate(embeddings_BFD) for gate in self.gates] or [embeddings_BFD.flatten(1)] * 2
        outputs = [stream(input_BN) for stream, input_BN in zip(self.streams, inputs, strict=True)]
        if self.heads:
            first_BKH, second_BKH = (output_BH.unflatten(1, (self.heads, -1)) for output_BH in outputs)
            weighted_BKH = torch.bmm(first_BKH.transpose(0, 1), self.bilinear).transpose(0, 1)
            outputs.append((weighted_BKH * second_BKH).sum(dim=2))
        return torch.cat(outputs, dim=1)
