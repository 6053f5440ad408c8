"""Self-attention over the fields.

Shape suffixes: B rows, F fields, D embedding width, A attention width, H heads, K = A/H.
"""

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, layer_by_layer, register
from dmoe.nn.mlp import initialise_linear


class FieldAttention(nn.Module):
    """`ReLU(LN(softmax(Q Kᵀ) V + X W_res))`, Q, K, V = X W, in `heads` parts of the width (Song et al., eq. 5-8).

    Args:
        residual: add the input, through a matrix if its width is another.
        scale: divide Q Kᵀ by sqrt(K) before the softmax.
        layer_norm: normalise before the ReLU.

    Shape: (B, F, D) to (B, F, ``units``).
    """

    def __init__(self, dim: int, units: int, heads: int, *, residual: bool, scale: bool, layer_norm: bool) -> None:
        super().__init__()
        self.heads, self.residual = heads, residual
        self.factor = (units // heads) ** -0.5 if scale else 1.0
        self.query = nn.Linear(dim, units, bias=False)
        self.key = nn.Linear(dim, units, bias=False)
        self.value = nn.Linear(dim, units, bias=False)
        self.shortcut = nn.Linear(dim, units, bias=False) if residual and dim != units else nn.Identity()
        self.norm = nn.LayerNorm(units) if layer_norm else nn.Identity()
        for module in (self.query, self.key, self.value, self.shortcut):
            if isinstance(module, nn.Linear):
                initialise_linear(module)

    def forward(self, input_BFD: Tensor) -> Tensor:
        query_BHFK, key_BHFK, value_BHFK = (
            linear(input_BFD).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        weights_BHFF = torch.softmax(query_BHFK @ key_BHFK.transpose(2, 3) * self.factor, dim=3)
        output_BFA = (weights_BHFF @ value_BHFK).transpose(1, 2).flatten(2)
        if self.residual:
            output_BFA = output_BFA + self.shortcut(input_BFD)
        return torch.relu(self.norm(output_BFA))


@register("autoint")
class AutoInt(Expert):
    """Layers of self-attention over the fields, `X_{l+1} = ReLU(Attention(X_l) + X_l W)` (Song et al., CIKM 2019).

    Args:
        layers: number of attention layers.
        units: width A of a field after each layer.
        heads: number of attention heads; A is split among them.
        residual: add a layer's input to its output, through a matrix where the widths differ.
        scale: divide the scores by the square root of a head's width.
        layer_norm: normalise each field before the ReLU.

    Intermediates: each layer, flattened, (B, F * A); the last one is the output.

    Shape: (B, F, D) to (B, F * A).
    Raises: ValueError naming the argument.
    """

    first_order = True

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        layers: int = 3,
        units: int = 64,
        heads: int = 2,
        residual: bool = True,
        scale: bool = False,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        arguments.multiple("units", units, arguments.integer("heads", heads), "one part for each head")
        for name, value in (("residual", residual), ("scale", scale), ("layer_norm", layer_norm)):
            arguments.boolean(name, value)
        self.layers = nn.ModuleList(
            FieldAttention(
                units if layer else embedding_dim, units, heads, residual=residual, scale=scale, layer_norm=layer_norm
            )
            for layer in range(arguments.integer("layers", layers))
        )
        self.out_features = num_fields * units

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return layer_by_layer(self.layers, embeddings_BFD)
