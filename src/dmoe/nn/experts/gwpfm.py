"""Group-weighted part-aware factorisation machine.

Shape suffixes: B rows, F fields, D embedding width, G groups, K width of one of a feature's vectors.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmoe.kernels.row_parallel import compiled_loops_serve, map_chunks
from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.experts.gwpfm_kernels import group_sums, group_sums_gradient

_ROWS_PER_CHUNK = 64


@register("gwpfm")
class GwPFM(Expert):
    """`Σ_{i<j} r_{g(i),g(j)} (e_{i,g(j)} * e_{j,g(i)})`, g the group of a field (Pan et al., arXiv 2403.00793).

    Args:
        groups: number of groups of neighbouring fields of about equal size, or for each field the number of its
            group.

    Every feature has one vector for each group: the table's width D is split into G vectors of width K. The
    weights r are symmetric and start at 1. Computed over groups rather than pairs, with `S_pq = Σ_{i in p} e_{i,q}`
    and `Q_p = Σ_{i in p} e_{i,p}²`, as `½ (Σ_pq r_pq S_pq * S_qp - Σ_p r_pp Q_p)`.

    Shape: (B, F, D) to (B, K).
    Raises: ValueError naming the argument; fewer than two fields make no pair.
    """

    first_order = True
    mirror_GG: Tensor
    group_F: Tensor
    member_GF: Tensor
    own_F: Tensor

    def __init__(self, num_fields: int, embedding_dim: int, *, groups: int | Sequence[int] = 2) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields, minimum=2)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        group_of_field = _groups(groups, num_fields)
        self.num_groups = max(group_of_field) + 1
        self.width = arguments.multiple("embedding_dim", embedding_dim, self.num_groups, "one vector for each group")
        self.out_features = self.summed_features = self.width
        self.weight = nn.Parameter(torch.ones(self.num_groups * (self.num_groups + 1) // 2))
        group_F = torch.tensor(group_of_field)
        upper = torch.triu_indices(self.num_groups, self.num_groups)
        mirror_GG = torch.zeros(self.num_groups, self.num_groups, dtype=torch.long)
        mirror_GG[upper[0], upper[1]] = mirror_GG[upper[1], upper[0]] = torch.arange(upper.shape[1])
        self.register_buffer("mirror_GG", mirror_GG, persistent=False)
        self.register_buffer("group_F", group_F, persistent=False)
        member_GF = nn.functional.one_hot(group_F, self.num_groups).t().to(self.weight.dtype)
        self.register_buffer("member_GF", member_GF, persistent=False)
        self.register_buffer("own_F", torch.arange(num_fields) * self.num_groups + group_F, persistent=False)

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        groups, width = self.num_groups, self.width
        weight_GG = self.weight[self.mirror_GG]
        sums_BGD, squares_BGK = self._sums(embeddings_BFD)
        sums_BGGK = sums_BGD.view(-1, groups, groups, width)
        crossed_BK = (sums_BGGK * sums_BGGK.transpose(1, 2) * weight_GG.unsqueeze(2)).sum(dim=(1, 2))
        itself_BK = (squares_BGK * weight_GG.diagonal().unsqueeze(1)).sum(dim=1)
        output_BK: Tensor = 0.5 * (crossed_BK - itself_BK)
        return output_BK

    def _sums(self, embeddings_BFD: Tensor) -> tuple[Tensor, Tensor]:
        """S (B, G, D), all vectors of each group's fields summed, and Q (B, G, K), the squares of those for itself."""
        if compiled_loops_serve(embeddings_BFD):
            found: tuple[Tensor, Tensor] = _GroupSums.apply(  # type: ignore[no-untyped-call]
                embeddings_BFD, self.group_F, self.num_groups
            )
            return found
        member_GF = self.member_GF.to(embeddings_BFD.dtype)
        own_BFK = embeddings_BFD.reshape(-1, self.num_fields * self.num_groups, self.width).index_select(1, self.own_F)
        return torch.matmul(member_GF, embeddings_BFD), torch.matmul(member_GF, own_BFK.square())


class _GroupSums(torch.autograd.Function):
    """`GwPFM._sums` on the CPU, reading the embeddings once and writing their gradient once."""

    @staticmethod
    def forward(ctx: Any, embeddings_BFD: Tensor, group_F: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(embeddings_BFD, group_F)
        rows, _, dim = embeddings_BFD.shape
        sums_BGD = embeddings_BFD.new_zeros(rows, num_groups, dim)
        squares_BGK = embeddings_BFD.new_zeros(rows, num_groups, dim // num_groups)
        arrays = embeddings_BFD.numpy(), group_F.numpy(), sums_BGD.numpy(), squares_BGK.numpy()
        map_chunks(rows, _ROWS_PER_CHUNK, lambda start, stop: group_sums(start, stop, *arrays))
        return sums_BGD, squares_BGK

    @staticmethod
    def backward(ctx: Any, sums_BGD: Tensor, squares_BGK: Tensor) -> tuple[Tensor, None, None]:
        embeddings_BFD, group_F = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative was asked for
            groups, width = squares_BGK.shape[1:]
            itself_GG = torch.eye(groups, dtype=squares_BGK.dtype)
            own_BGD = (itself_GG[:, :, None] * squares_BGK[:, :, None]).reshape(-1, groups, groups * width)
            return sums_BGD[:, group_F] + 2 * embeddings_BFD * own_BGD[:, group_F], None, None
        gradient_BFD = torch.empty_like(embeddings_BFD, memory_format=torch.contiguous_format)
        arrays = (
            *(tensor.numpy() for tensor in (embeddings_BFD, group_F)),
            *(tensor.contiguous().numpy() for tensor in (sums_BGD, squares_BGK)),
            gradient_BFD.numpy(),
        )
        map_chunks(len(gradient_BFD), _ROWS_PER_CHUNK, lambda start, stop: group_sums_gradient(start, stop, *arrays))
        return gradient_BFD, None, None


def _groups(groups: object, num_fields: int) -> list[int]:
    """The group of each field."""
    if isinstance(groups, Sequence) and not isinstance(groups, str):
        numbers = [arguments.integer(f"groups[{index}]", number, minimum=0) for index, number in enumerate(groups)]
        if len(numbers) != num_fields:
            raise ValueError(f"groups must list one group for each of the {num_fields} fields, got {len(numbers)}")
        if sorted(set(numbers)) != list(range(len(set(numbers)))):
            raise ValueError(f"groups must number the groups 0, 1, 2, …, got {numbers}")
        return numbers
    count = arguments.integer("groups", groups)
    if count > num_fields:
        raise ValueError(f"groups must be at most the number of fields, {num_fields}, got {count}")
    return [field * count // num_fields for field in range(num_fields)]
