"""Compressed interaction network, computed from inner products wherever the D axis may be summed first.

Shape suffixes: B rows, F fields, D embedding width, G maps of the layer before (F at first), H maps of this
layer, K of them which feed the next layer, Q which are pooled only, P = F(F+1)/2 pairs i <= j.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.experts.pairs import PairProducts
from dmoe.nn.mlp import initialise_linear


@register("cin")
class CIN(Expert):
    """`X^k_h = Σ_ij W^k_hij (x_i * X^{k-1}_j) + b^k_h`, each map summed over D (Lian et al., KDD 2018, eq. 6-8).

    Args:
        units: number of maps H_k of each layer. The D-MoE paper: [276] on Avazu, [16, 16] on Criteo.
        activation: "relu" on every map, as in the authors' code, or null, as in FuxiCTR.
        split_half: of every layer but the last, the first floor(H_k / 2) maps feed the next layer only and the
            others are pooled only, as in the authors' code; otherwise every map does both, as in FuxiCTR.

    Intermediates: the pooled maps p^k of each layer; concatenated they are the output.

    The weights are those of a Conv1d of kernel 1 over the F * G products, (H, F * G), and are drawn as
    FuxiCTR from version 2.0 on draws them: Xavier normal, bias zero.

    Shape: (B, F, D) to (B, number of pooled maps).
    Raises: ValueError naming the argument.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        units: Sequence[int] = (276,),
        activation: Literal["relu"] | None = None,
        split_half: bool = False,
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        maps = arguments.widths("units", units)
        self.activation = arguments.choice("activation", activation, (None, "relu"))
        self.split_half = arguments.boolean("split_half", split_half)
        if split_half and 1 in maps[:-1]:
            raise ValueError(f"units must be at least 2 in every layer but the last with split_half, got {list(maps)}")
        self._fed_forward = [width // 2 if split_half else width for width in maps[:-1]] + [0]
        self.layers = nn.ModuleList(
            nn.Linear(num_fields * before, width)
            for before, width in zip((num_fields, *self._fed_forward), maps, strict=False)
        )
        self.pairs = PairProducts(num_fields, diagonal=True)
        self.out_features = sum(
            width - (fed if split_half else 0) for width, fed in zip(maps, self._fed_forward, strict=True)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: Xavier normal over fan F * G and H, bias zero."""
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            initialise_linear(layer)

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        maps_BDG = embeddings_BFD.transpose(1, 2)
        pooled = []
        for index, fed in enumerate(self._fed_forward):
            layer = self.layers[index]
            assert isinstance(layer, nn.Linear)
            pooled_BH, maps_BDG = self._layer(embeddings_BFD, maps_BDG, layer, fed, first=index == 0)
            pooled.append(pooled_BH)
        return torch.cat(pooled, dim=1), tuple(pooled)

    def _layer(
        self, embeddings_BFD: Tensor, maps_BDG: Tensor, layer: nn.Linear, fed: int, *, first: bool
    ) -> tuple[Tensor, Tensor]:
        """The pooled maps of one layer and the `fed` maps (B, D, K) which the next layer reads."""
        if self.activation == "relu":
            # ReLU stands between the maps and their sum over D: every map has to be built.
            maps_BDH = functional.relu(_maps(embeddings_BFD, maps_BDG, layer.weight, layer.bias))
            pooled_only = maps_BDH[:, :, fed:] if self.split_half else maps_BDH
            return pooled_only.sum(dim=1), maps_BDH[:, :, :fed]
        fed_BDK = maps_BDG
        if fed:
            fed_BDK = _maps(embeddings_BFD, maps_BDG, layer.weight[:fed], layer.bias[:fed])
            if not self.split_half:
                return fed_BDK.sum(dim=1), fed_BDK
        # Maps which nothing else reads: Σ_d Σ_ij W_ij x_id X_jd = Σ_ij W_ij <x_i, X_j>.
        weight_QI, bias_Q = layer.weight[fed:], self.embedding_dim * layer.bias[fed:]
        if first:
            return functional.linear(self.pairs(embeddings_BFD), self._fold(weight_QI), bias_Q), fed_BDK
        products_BFG = torch.bmm(embeddings_BFD, maps_BDG)
        return functional.linear(products_BFG.flatten(1), weight_QI, bias_Q), fed_BDK

    def _fold(self, weight_QI: Tensor) -> Tensor:
        """`W_ij + W_ji` for i < j and `W_ii`: the weights (Q, P) of a symmetric matrix's upper triangle."""
        fields, upper_P = self.num_fields, self.pairs.upper_P
        first_P, second_P = upper_P // fields, upper_P % fields
        mirrored_QP = weight_QI.index_select(1, second_P * fields + first_P)
        return weight_QI.index_select(1, upper_P) + mirrored_QP * (first_P != second_P)


def _maps(embeddings_BFD: Tensor, maps_BDG: Tensor, weight_HI: Tensor, bias_H: Tensor) -> Tensor:
    """`Σ_ij W_hij x_id X_jd + b_h` (B, D, H), building F * min(G, H) values a row and d in place of F * G."""
    rows, fields, dim = embeddings_BFD.shape
    previous, width = maps_BDG.shape[2], weight_HI.shape[0]
    embeddings_BDF = embeddings_BFD.transpose(1, 2)
    if width > previous:
        products_BDI = (embeddings_BDF.unsqueeze(3) * maps_BDG.unsqueeze(2)).flatten(2)
        return functional.linear(products_BDI, weight_HI, bias_H)
    contracted = functional.linear(maps_BDG, weight_HI.reshape(width * fields, previous))
    summed = torch.bmm(contracted.view(rows * dim, width, fields), embeddings_BDF.reshape(rows * dim, fields, 1))
    return summed.view(rows, dim, width) + bias_H
