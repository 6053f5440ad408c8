"""The mixture of eq. 3 and 10.

Shape suffixes: B rows, M experts, H units.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def mix(expert_outputs: Sequence[Tensor], gate_BM: Tensor) -> Tensor:
    """`h_BH = Σ_m g^(m) · o^(m)` from M outputs (B, H) and the gate's weights."""
    # Autocast gives outputs and gate different dtypes, which autograd sorts out by itself.
    if torch.is_grad_enabled() and not torch.is_autocast_enabled(gate_BM.device.type):
        mixed_BH: Tensor = _Mixture.apply(gate_BM, *expert_outputs)  # type: ignore[no-untyped-call]
        return mixed_BH
    return _mix(expert_outputs, gate_BM)


def mix_units(expert_outputs: Sequence[Tensor], unit_weights_BMH: Tensor) -> Tensor:
    """`h_BH = Σ_m g^(m) * o^(m)` elementwise, from M outputs (B, H) and weights of their own for each unit."""
    mixed_BH = expert_outputs[0] * unit_weights_BMH[:, 0]
    for index, output_BH in enumerate(expert_outputs[1:], start=1):
        mixed_BH = torch.addcmul(mixed_BH, output_BH, unit_weights_BMH[:, index])
    return mixed_BH


def _mix(expert_outputs: Sequence[Tensor], gate_BM: Tensor) -> Tensor:
    mixed_BH = expert_outputs[0] * gate_BM[:, :1]
    for index, output_BH in enumerate(expert_outputs[1:], start=1):
        mixed_BH = torch.addcmul(mixed_BH, output_BH, gate_BM[:, index : index + 1])
    return mixed_BH


class _Mixture(torch.autograd.Function):
    """Takes `∂g^(m) = <∂h, o^(m)>` as one product a row; autograd would write all of ∂h * o^(m), then sum it."""

    @staticmethod
    def forward(ctx: Any, gate_BM: Tensor, *expert_outputs: Tensor) -> Tensor:
        ctx.save_for_backward(gate_BM, *expert_outputs)
        return _mix(expert_outputs, gate_BM)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BH: Tensor) -> tuple[Tensor, ...]:
        gate_BM, *expert_outputs = ctx.saved_tensors
        rows_B1H = gradient_BH.unsqueeze(1)
        gate_gradient_BM = torch.cat(
            [torch.bmm(rows_B1H, output_BH.unsqueeze(2)).squeeze(2) for output_BH in expert_outputs], dim=1
        )
        return gate_gradient_BM, *(gradient_BH * gate_BM[:, index, None] for index in range(len(expert_outputs)))
