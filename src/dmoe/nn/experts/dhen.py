"""Deep hierarchical ensemble of interactions.

Shape suffixes: B rows, D embedding width, V vectors of the layer before (the fields at first), U vectors that one
interaction gives, P = V(V-1)/2 pairs.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.autoint import FieldAttention
from dmoe.nn.experts.base import Expert, layer_by_layer, register
from dmoe.nn.experts.pairs import PairProducts
from dmoe.nn.mlp import MLP, initialise_linear

Interaction = Literal["dot", "attention", "cross", "linear"]
INTERACTIONS = ("dot", "attention", "cross", "linear")


class _Dot(nn.Module):
    """`W ReLU(MLP((<x_i, x_j>)_{i<j}))` as U vectors: the pairwise products of DLRM, then hidden layers."""

    def __init__(self, vectors: int, dim: int, outputs: int, hidden_units: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        self.pairs = PairProducts(vectors, diagonal=False)
        self.mlp = MLP(self.pairs.num_pairs, hidden_units)
        self.expand = nn.Linear(self.mlp.out_features, outputs * dim)

    def forward(self, x_BVD: Tensor) -> Tensor:
        output_BUD: Tensor = self.expand(self.mlp(self.pairs(x_BVD))).unflatten(1, (-1, self.dim))
        return output_BUD


class _OverVectors(nn.Module):
    """`W f(X)`, W (U, V) along the axis of vectors; f is attention, a cross layer, or nothing."""

    def __init__(self, vectors: int, dim: int, outputs: int, interaction: Interaction) -> None:
        super().__init__()
        self.interaction = interaction
        self.compress = nn.Linear(vectors, outputs, bias=False)
        if interaction == "attention":
            self.inner: nn.Module = FieldAttention(dim, dim, 1, residual=True, scale=True, layer_norm=False)
        elif interaction == "cross":
            self.inner = nn.Linear(vectors * dim, vectors * dim)
        else:
            self.inner = nn.Identity()

    def forward(self, x_BVD: Tensor) -> Tensor:
        if self.interaction == "cross":
            x_BVD = x_BVD * self.inner(x_BVD.flatten(1)).view_as(x_BVD)
        else:
            x_BVD = self.inner(x_BVD)
        output_BUD: Tensor = self.compress(x_BVD.transpose(1, 2)).transpose(1, 2)
        return output_BUD


class DHENLayer(nn.Module):
    """`LN(Ensemble_i(Interaction_i(X)) + ShortCut(X))` (Zhang et al., eq. 1-3).

    Shape: (B, V, D) to (B, ``out_vectors``, D).
    """

    def __init__(
        self,
        vectors: int,
        dim: int,
        interactions: Sequence[Interaction],
        outputs: int,
        *,
        ensemble: Literal["concat", "sum"],
        hidden_units: Sequence[int],
    ) -> None:
        super().__init__()
        self.concatenated = ensemble == "concat"
        self.out_vectors = outputs * (len(interactions) if self.concatenated else 1)
        self.interactions = nn.ModuleList(
            _Dot(vectors, dim, outputs, hidden_units) if name == "dot" else _OverVectors(vectors, dim, outputs, name)
            for name in interactions
        )
        same = vectors == self.out_vectors
        self.shortcut = nn.Identity() if same else nn.Linear(vectors, self.out_vectors, bias=False)
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module)

    def forward(self, x_BVD: Tensor) -> Tensor:
        outputs = [interaction(x_BVD) for interaction in self.interactions]
        ensemble_BUD = torch.cat(outputs, dim=1) if self.concatenated else torch.stack(outputs).sum(dim=0)
        output_BUD: Tensor = self.norm(ensemble_BUD + self.shortcut(x_BVD.transpose(1, 2)).transpose(1, 2))
        return output_BUD


@register("dhen")
class DHEN(Expert):
    """`X_{n+1} = LN(Ensemble_i(Interaction_i(X_n)) + ShortCut(X_n))` (Zhang et al., arXiv 2203.11014, eq. 1-3).

    Args:
        layers: number of layers.
        interactions: what each layer holds, from "dot" (inner products of all pairs, then an MLP), "attention"
            (one head of self-attention with its residual), "cross" (`X * (W X + b)` of the flattened X) and
            "linear"; a name may come twice. Each ends in `vectors` vectors.
        vectors: vectors of width D that each interaction gives.
        ensemble: "concat" or "sum" of the interactions' vectors.
        hidden_units: width of each hidden layer of "dot".

    All interactions of a layer read one input. The paper's convolution module is not offered.

    Intermediates: each layer, flattened; the last one is the output.

    Shape: (B, F, D) to (B, D * ``vectors`` * number of interactions), or (B, D * ``vectors``) with "sum".
    Raises: ValueError naming the argument; "dot" needs two fields, and two vectors after each layer.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        layers: int = 2,
        interactions: Sequence[Interaction] = ("dot", "cross", "linear"),
        vectors: int = 8,
        ensemble: Literal["concat", "sum"] = "concat",
        hidden_units: Sequence[int] = (128,),
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        depth = arguments.integer("layers", layers)
        arguments.integer("vectors", vectors)
        arguments.choice("ensemble", ensemble, ("concat", "sum"))
        hidden = arguments.widths("hidden_units", hidden_units)
        if not interactions or isinstance(interactions, str):
            raise ValueError(f"interactions must be a list of {', '.join(INTERACTIONS)}, got {interactions!r}")
        for index, name in enumerate(interactions):
            arguments.choice(f"interactions[{index}]", name, INTERACTIONS)
        given = vectors * (len(interactions) if ensemble == "concat" else 1)
        if "dot" in interactions and min(num_fields, given if depth > 1 else num_fields) < 2:
            raise ValueError(
                f"interactions 'dot' needs at least two vectors in each layer, got {num_fields} and {given}"
            )
        self.layers = nn.ModuleList(
            DHENLayer(
                given if layer else num_fields,
                embedding_dim,
                interactions,
                vectors,
                ensemble=ensemble,
                hidden_units=hidden,
            )
            for layer in range(depth)
        )
        self.out_features = given * embedding_dim

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return layer_by_layer(self.layers, embeddings_BFD)
