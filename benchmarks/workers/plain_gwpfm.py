"""GwPFM in plain torch, for libraries that do not have it.

Shape suffixes: B rows, F fields, D embedding width, G groups, K = D / G.
"""

import torch
from torch import Tensor, nn


class PlainGwPFM(nn.Module):
    """`Σ_{i<j} r_{g(i),g(j)} (e_{i,g(j)} * e_{j,g(i)})`, (B, F, D) to (B, K), over groups rather than pairs.

    Half the square of the sums less the squares, as everyone writes a factorisation machine: the 131,328 pairs of
    513 fields one by one would take 8 GiB a batch.
    """

    def __init__(self, num_fields: int, embedding_dim: int, groups: int) -> None:
        super().__init__()
        self.groups, self.width = groups, embedding_dim // groups
        group_F = torch.arange(num_fields) * groups // num_fields
        self.upper = nn.Parameter(torch.ones(groups * (groups + 1) // 2))
        row, column = torch.triu_indices(groups, groups)
        places_GG = torch.zeros(groups, groups, dtype=torch.long)
        places_GG[row, column] = places_GG[column, row] = torch.arange(len(row))
        self.register_buffer("places_GG", places_GG)
        self.register_buffer("group_F", group_F)
        self.register_buffer("members_GF", nn.functional.one_hot(group_F, groups).t().float())

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        weight_GG = self.upper[self.places_GG]
        parts_BFGK = embeddings_BFD.unflatten(2, (self.groups, self.width))
        sums_BGGK = torch.einsum("gf,bfhk->bghk", self.members_GF.to(embeddings_BFD.dtype), parts_BFGK)
        crossed_BK = torch.einsum("gh,bghk,bhgk->bk", weight_GG, sums_BGGK, sums_BGGK)
        own_BFK = parts_BFGK[:, torch.arange(len(self.group_F)), self.group_F]
        itself_BK = torch.einsum("f,bfk->bk", weight_GG.diagonal()[self.group_F], own_BFK**2)
        return 0.5 * (crossed_BK - itself_BK)
