"""Sums over processes that gradients go through."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def sum_over_ranks(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of `values` over the ranks of `group`, itself without one.

    The gradient is that of the sum of the ranks' losses, as in torch.distributed.nn. All ranks must call.
    """
    if group is None:
        return values
    return cast(Tensor, _Sum.apply(values, group))  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _summed(values, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


def _summed(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    found = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(found, group=group)
    return found
