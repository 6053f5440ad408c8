"""Stacked factorisation machines.

Shape suffixes: B rows, D embedding width, V vectors of the layer before (the fields at first), U vectors of this
layer, K rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, layer_by_layer, register
from dmoe.nn.mlp import MLP, initialise_linear


class WukongLayer(nn.Module):
    """`LN([FMB(X) ; LCB(X)] + Res(X))`: `FMB = MLP(LN(X Xᵀ Y))` as vectors, `LCB = W X` (Zhang et al., section 3).

    X Xᵀ Y is computed as X (Xᵀ Y), or from the Gram matrix where that is less arithmetic.

    Shape: (B, V, D) to (B, ``fm_vectors`` + ``linear_vectors``, D).
    """

    def __init__(
        self, vectors: int, dim: int, fm_vectors: int, linear_vectors: int, rank: int, hidden_units: Sequence[int]
    ) -> None:
        super().__init__()
        self.dim = dim
        self.gram_is_cheaper = vectors * (dim + rank) < 2 * dim * rank
        self.project = nn.Linear(vectors, rank, bias=False)
        self.fm_norm = nn.LayerNorm(vectors * rank)
        self.mlp = MLP(vectors * rank, hidden_units)
        self.expand = nn.Linear(self.mlp.out_features, fm_vectors * dim)
        self.compress = nn.Linear(vectors, linear_vectors, bias=False)
        output = fm_vectors + linear_vectors
        self.shortcut = nn.Linear(vectors, output, bias=False) if vectors != output else nn.Identity()
        self.norm = nn.LayerNorm(dim)
        for module in (self.project, self.expand, self.compress, self.shortcut):
            if isinstance(module, nn.Linear):
                initialise_linear(module)

    def forward(self, x_BVD: Tensor) -> Tensor:
        x_BDV = x_BVD.transpose(1, 2)
        products_BVK = self.project(x_BVD @ x_BDV) if self.gram_is_cheaper else x_BVD @ self.project(x_BDV)
        fm_BUD = self.expand(self.mlp(self.fm_norm(products_BVK.flatten(1)))).unflatten(1, (-1, self.dim))
        linear_BUD = self.compress(x_BDV).transpose(1, 2)
        output_BUD: Tensor = self.norm(torch.cat([fm_BUD, linear_BUD], dim=1) + self.shortcut(x_BDV).transpose(1, 2))
        return output_BUD


@register("wukong")
class Wukong(Expert):
    """`X_{l+1} = LN([FMB(X_l) ; LCB(X_l)] + Res(X_l))`, stacked machines (Zhang et al., arXiv 2403.02545).

    See `WukongLayer`; the order of the interactions doubles with each layer.

    Args:
        layers: number of layers.
        fm_vectors: vectors that the factorisation-machine block of a layer gives.
        linear_vectors: vectors that its linear compression block gives.
        rank: columns of Y.
        hidden_units: width of each hidden layer of the block's MLP, whose last layer is linear.

    Intermediates: each layer, flattened; the last one is the output.

    Shape: (B, F, D) to (B, (``fm_vectors`` + ``linear_vectors``) * D).
    Raises: ValueError naming the argument.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        layers: int = 3,
        fm_vectors: int = 12,
        linear_vectors: int = 12,
        rank: int = 8,
        hidden_units: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        arguments.integer("fm_vectors", fm_vectors)
        arguments.integer("linear_vectors", linear_vectors)
        arguments.integer("rank", rank)
        hidden = arguments.widths("hidden_units", hidden_units)
        vectors = fm_vectors + linear_vectors
        self.layers = nn.ModuleList(
            WukongLayer(vectors if layer else num_fields, embedding_dim, fm_vectors, linear_vectors, rank, hidden)
            for layer in range(arguments.integer("layers", layers))
        )
        self.out_features = vectors * embedding_dim

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return layer_by_layer(self.layers, embeddings_BFD)
