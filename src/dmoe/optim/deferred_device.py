"""`deferred` for a table on a CUDA device: `DeferredRows` behind the interface of the embedding optimisers.

Shape suffixes: V table rows, S table width, U places for distinct rows of a batch, J steps since the last flush.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dmoe.optim.base import EmbeddingOptimiser
from dmoe.optim.deferred import DeferredAdam, check_betas
from dmoe.optim.deferred_triton import DeferredRows

# Steps between two looks at the norm of a whole table.
NORM_STEPS = 32


class DeferredAdamOnDevice(EmbeddingOptimiser):
    """Adam on the loss plus (l2/2)·‖weight‖² over the whole table, with the moves of unread rows held back.

    The model of `DeferredAdam`, whose guarantees, memory and state these are too; the state of one loads into the
    other. Nothing waits for the device.

    Raises: ConfigError if β1 ≥ √β2.
    """

    kind: ClassVar[str] = DeferredAdam.kind
    growing = DeferredAdam.growing
    by_row = DeferredAdam.by_row
    over_rows = DeferredAdam.over_rows

    def _begin(self) -> None:
        check_betas(self.betas)
        weight = self.weight
        self.rows = DeferredRows(
            weight.detach(), self.lr, self.betas, self.eps, self.l2, self.l2_scale_V, numbering=self.numbering
        )
        # ‖scale · weight‖² when it was last looked at, -1 before.
        self._norm_squared = torch.full((), -1.0, dtype=torch.float64, device=weight.device)
        self._looked = False

    def set_lr(self, lr: float) -> None:
        super().set_lr(lr)
        self.rows.set_lr(lr)

    def read(self, rows_U: Tensor) -> Tensor:
        return self.rows.read(rows_U)

    def catch_up(self, rows_U: Tensor) -> None:
        self.rows.catch_up(rows_U)

    def flush(self) -> None:
        self.rows.flush()
        self._norm_squared.fill_(-1.0)
        self._looked = False

    @torch.no_grad()
    def write(self, rows_U: Tensor, gradient_US: Tensor, grad_scale: float | Tensor = 1.0) -> None:
        if isinstance(grad_scale, Tensor):
            scale_1 = grad_scale.detach().reshape(1).to(torch.float64)
        else:
            scale_1 = torch.full((1,), grad_scale, dtype=torch.float64, device=self.weight.device)
        self.rows.write(rows_U, gradient_US, scale_1)
        self.step_count = self.rows.step_count

    @torch.no_grad()
    def weight_norm_squared(self) -> float | Tensor:
        """As it was when it was last looked at, at most 32 steps ago."""
        if self.l2 == 0:
            return 0.0
        self._look()
        return self._norm_squared.clone()

    def _look(self) -> None:
        if not self._looked or self.step_count % NORM_STEPS == 0:
            self._norm_squared.copy_(self.rows.weight_norm_squared())
            self._looked = True

    @torch.no_grad()
    def grad_norm_squared(
        self,
        rows_U: Tensor,
        gradient_US: Tensor,
        clip_norm: float | None = None,
        elsewhere: float | Tensor = 0.0,
    ) -> Tensor:
        """See the base class. Exact without `clip_norm`, at the cost of a flush if there is L2.

        With `clip_norm` the L2 gradient of rows outside the batch is left out while λ²‖weight‖² was below
        2⁻²⁸·clip_norm² when it was last looked at, at most 32 steps ago: half a rounding of float32 in a clip factor as
        long as the norm of the table does not double meanwhile. Above it, exact: each step flushes.
        """
        if self.l2 == 0:
            return self.rows.grad_norm_squared(rows_U, gradient_US)
        if clip_norm is None:
            self.flush()
            rest = self.rows.weight_norm_squared() - self.rows.weight_norm_squared(rows_U)
            return self.rows.grad_norm_squared(rows_U, gradient_US) + self.l2**2 * rest.clamp(min=0)
        self._look()
        counts_1 = (self.l2**2 * (self._norm_squared + elsewhere) > 2.0**-28 * clip_norm**2).reshape(1).to(torch.int32)
        self.rows.flush_if(counts_1)
        counts = counts_1[0] != 0
        fresh = self.rows.weight_norm_squared(condition=counts_1)
        self._norm_squared.copy_(torch.where(counts, fresh, self._norm_squared))
        self.rows.catch_up(rows_U)
        rest = (self._norm_squared - self.rows.weight_norm_squared(rows_U)).clamp(min=0)
        rest = torch.where(counts, rest, 0.0)
        return self.rows.grad_norm_squared(rows_U, gradient_US) + self.l2**2 * rest

    def _state(self) -> dict[str, Tensor]:
        steps, flushed = self.rows.clock.tolist()
        return {
            "step_count": torch.tensor(steps),
            "flushed": torch.tensor(flushed),
            "first_moment": self.rows.first_VS,
            "second_moment": self.rows.second_VS,
            "last_step": self.rows.last_V,
            "history": self.rows.history_6J[:, : steps - flushed].contiguous(),
            "largest_lr": self.rows.rates[1].clone(),
            "norm_squared": self._norm_squared.clone(),
        }

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self.rows.load(
            int(state["step_count"]), int(state["flushed"]), float(state["largest_lr"]), state["history"],
            state["first_moment"], state["second_moment"], state["last_step"],
        )  # fmt: skip
        self.step_count = self.rows.step_count
        self._norm_squared.copy_(state["norm_squared"])
        self._looked = float(state["norm_squared"]) >= 0
