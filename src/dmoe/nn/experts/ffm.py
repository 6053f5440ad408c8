"""Field-aware factorisation machine.

Shape suffixes: B rows, F fields, D embedding width, P = F(F-1)/2 pairs, K width of one of a feature's vectors.
"""

import torch
from torch import Tensor, nn

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.experts.fwfm import PAIR_OUTPUTS, PairOutput


class FieldAwarePairs(nn.Module):
    """`v_{i,j} * v_{j,i}` for all i < j: the vector that i has for j with the one that j has for i.

    Args:
        own: whether a feature has a vector for its own field as well, so F vectors rather than F - 1.

    Shape: ``vectors_BCK`` (B, F * F or F * (F-1), K), a field's vectors side by side, to (B, P, K).
    """

    first_P: Tensor
    second_P: Tensor

    def __init__(self, num_fields: int, *, own: bool) -> None:
        super().__init__()
        first_P, second_P = torch.triu_indices(num_fields, num_fields, offset=1)
        # Without a vector for the own field, those for the fields after it move down by one.
        stride, shift = (num_fields, 0) if own else (num_fields - 1, 1)
        self.register_buffer("first_P", first_P * stride + second_P - shift, persistent=False)
        self.register_buffer("second_P", second_P * stride + first_P, persistent=False)

    def forward(self, vectors_BCK: Tensor) -> Tensor:
        return vectors_BCK.index_select(1, self.first_P) * vectors_BCK.index_select(1, self.second_P)


@register("ffm")
class FFM(Expert):
    """`<v_{i,j}, v_{j,i}>` for all i < j: each feature has one vector for every other field (Juan et al., RecSys 2016).

    Args:
        output: "pairs", every product in lexicographic order, or "bi-interaction", the vector
            `Σ_{i<j} v_{i,j} * v_{j,i}`.

    The table's width D is split into F - 1 vectors of width K, in the order of the other fields.

    Shape: (B, F, D) to (B, P), or (B, K).
    Raises: ValueError naming the argument; fewer than two fields make no pair.
    """

    first_order = True

    def __init__(self, num_fields: int, embedding_dim: int, *, output: PairOutput = "pairs") -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields, minimum=2)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        partners = num_fields - 1
        self.width = arguments.multiple("embedding_dim", embedding_dim, partners, "one vector for each other field")
        self.output = arguments.choice("output", output, PAIR_OUTPUTS)
        self.pairs = FieldAwarePairs(num_fields, own=False)
        self.out_features = num_fields * (num_fields - 1) // 2 if output == "pairs" else self.width
        self.summed_features = self.out_features

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        vectors_BCK = embeddings_BFD.reshape(-1, self.num_fields * (self.num_fields - 1), self.width)
        products_BPK: Tensor = self.pairs(vectors_BCK)
        return products_BPK.sum(dim=2 if self.output == "pairs" else 1)
