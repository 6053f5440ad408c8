"""Adam over the whole table at every step: the reference that the deferred optimiser equals."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dmoe.kernels.row_access import set_rows
from dmoe.optim.base import EmbeddingOptimiser, sum_of_squares


class DenseAdam(EmbeddingOptimiser):
    """torch.optim.Adam (fused) on the whole table. Every step reads and writes the table and both moments."""

    kind: ClassVar[str] = "dense"

    def _begin(self) -> None:
        weight, scale_V = self.weight, self.l2_scale_V
        self._scale_V1 = None if scale_V is None else scale_V.to(weight).unsqueeze(1)
        self._adam = torch.optim.Adam([weight], lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
        # What `weight.grad` was made of.
        self._made_of: Tensor | None = None

    @torch.no_grad()
    def write(self, rows_U: Tensor, gradient_US: Tensor, grad_scale: float | Tensor = 1.0) -> None:
        gradient_VS = self._whole_gradient(rows_U, gradient_US)
        if isinstance(grad_scale, Tensor) or grad_scale != 1.0:
            gradient_VS.mul_(grad_scale)
        self._adam.param_groups[0]["lr"] = self.lr
        self._adam.step()
        self.step_count += 1
        self.weight.grad = self._made_of = None

    @torch.no_grad()
    def grad_norm_squared(
        self,
        rows_U: Tensor,
        gradient_US: Tensor,
        clip_norm: float | None = None,  # noqa: ARG002 (always exact)
        elsewhere: float | Tensor = 0.0,  # noqa: ARG002
    ) -> float | Tensor:
        return sum_of_squares(self._whole_gradient(rows_U, gradient_US))

    def _whole_gradient(self, rows_U: Tensor, gradient_US: Tensor) -> Tensor:
        """Of the whole table with λ·weight added, made once a step."""
        if self.weight.grad is not None and self._made_of is gradient_US:
            return self.weight.grad
        gradient_VS = torch.zeros_like(self.weight)
        set_rows(gradient_VS, rows_U, gradient_US)
        if self.l2:
            own = self.weight if self._scale_V1 is None else self._scale_V1 * self.weight
            gradient_VS.add_(own, alpha=self.l2)
        self.weight.grad, self._made_of = gradient_VS, gradient_US
        return gradient_VS

    def _state(self) -> dict[str, Tensor]:
        state = self._adam.state.get(self.weight, {})
        zeros = torch.zeros_like(self.weight) if not state else None
        return {
            "step_count": torch.tensor(self.step_count),
            "first_moment": zeros if zeros is not None else state["exp_avg"],
            "second_moment": zeros if zeros is not None else state["exp_avg_sq"],
        }

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self.step_count = int(state["step_count"])
        self._adam.state[self.weight] = {
            "step": torch.tensor(float(self.step_count), device=self.weight.device),
            "exp_avg": state["first_moment"].to(self.weight).clone(),
            "exp_avg_sq": state["second_moment"].to(self.weight).clone(),
        }
