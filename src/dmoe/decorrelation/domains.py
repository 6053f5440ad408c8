"""Columns centred within each domain, so that what is left to correlate is no difference between domains.

Shape suffixes: B rows, D the width of one expert, S domains.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmoe.decorrelation.checks import ProcessGroup, resolve


def centred_in_domains(
    outputs: Sequence[Tensor], domain_B: Tensor, num_domains: int, process_group: ProcessGroup = None
) -> list[Tensor]:
    """Each of the (B, D) outputs less the mean of its column over the rows of the same domain, float32 or better.

    A column that does not vary within any domain becomes 0 throughout. `process_group`: as for `CorrLoss`.
    """
    group = resolve(process_group)
    with torch.autocast(domain_B.device.type, enabled=False):
        domains_BS = membership(domain_B, num_domains)
        return [
            cast(
                Tensor,
                _Centred.apply(output_BD.to(dtype), domains_BS.to(dtype), group),  # type: ignore[no-untyped-call]
            )
            for output_BD in outputs
            for dtype in [torch.promote_types(torch.float32, output_BD.dtype)]
        ]


def membership(domain_B: Tensor, num_domains: int) -> Tensor:
    """(B, S) bool: which domain each row is of."""
    return domain_B.unsqueeze(1) == torch.arange(num_domains, device=domain_B.device)


class _Centred(torch.autograd.Function):
    """A projection, whose gradient is the same projection of the gradient."""

    @staticmethod
    def forward(ctx: Any, columns_BD: Tensor, domains_BS: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        counts_S = _over_ranks(domains_BS.sum(0), group).clamp(min=1)
        means_SD = _over_ranks(domains_BS.T @ columns_BD, group) / counts_S.unsqueeze(1)
        centred_BD = columns_BD - domains_BS @ means_SD
        # What the rounding of means leaves of a constant would pass for a column.
        rounding_D = 32 * torch.finfo(columns_BD.dtype).eps * means_SD.abs().amax(0)
        squares_D = _over_ranks(centred_BD.square().sum(0), group)
        alive_D = (squares_D > rounding_D.square() * counts_S.sum()).to(columns_BD.dtype)
        ctx.group = group
        ctx.save_for_backward(domains_BS, counts_S, alive_D)
        return centred_BD * alive_D

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BD: Tensor) -> tuple[Tensor | None, ...]:
        domains_BS, counts_S, alive_D = ctx.saved_tensors
        gradient_BD = gradient_BD * alive_D
        sums_SD = _over_ranks(domains_BS.T @ gradient_BD, ctx.group)
        return gradient_BD - domains_BS @ (sums_SD / counts_S.unsqueeze(1)), None, None


def _over_ranks(sums: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        sums = sums.contiguous()
        dist.all_reduce(sums, group=group)
    return sums
