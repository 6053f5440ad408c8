"""Optimisers that move only the rows of the batch. They train another model than dense Adam does.

Shape suffixes: V table rows, S table width, T tables side by side, U distinct rows of a batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dmoe.errors import ConfigError
from dmoe.kernels.row_access import add_to_rows, rows_of, set_rows
from dmoe.optim.base import EmbeddingOptimiser, sum_of_squares
from dmoe.optim.row_clip import RowClip
from dmoe.optim.row_storage import Numbering


class _BatchRowsOptimiser(EmbeddingOptimiser):
    """Base of the optimisers whose step is a function of the rows of the batch alone."""

    def _begin(self) -> None:
        if self.l2 > 0:
            raise ConfigError(
                f"embedding_l2 acts on every row at every step, which '{self.kind}' does not do; "
                "use 'deferred' or embedding_l2: 0"
            )

    @torch.no_grad()
    def grad_norm_squared(
        self,
        rows_U: Tensor,  # noqa: ARG002
        gradient_US: Tensor,
        clip_norm: float | None = None,  # noqa: ARG002 (always exact)
        elsewhere: float | Tensor = 0.0,  # noqa: ARG002
    ) -> float | Tensor:
        return sum_of_squares(gradient_US)


class LazyAdam(_BatchRowsOptimiser):
    """torch.optim.SparseAdam: moments and weights of a row move only when the batch holds the row.

    m ← β1 m + (1−β1) g, v ← β2 v + (1−β2) g², w ← w − lr √(1−β2^t)/(1−β1^t) · m/(√v + eps) with the global
    step t: rare rows lose no momentum while they wait, and go on with none in between.
    """

    kind: ClassVar[str] = "lazy"

    def _begin(self) -> None:
        super()._begin()
        self._first_moment = torch.zeros_like(self.weight, requires_grad=False)
        self._second_moment = torch.zeros_like(self.weight, requires_grad=False)

    @torch.no_grad()
    def write(self, rows_U: Tensor, gradient_US: Tensor, grad_scale: float | Tensor = 1.0) -> None:
        if isinstance(grad_scale, Tensor) or grad_scale != 1.0:
            gradient_US = gradient_US * grad_scale
        self.step_count += 1
        beta1, beta2 = self.betas
        first_US = rows_of(self._first_moment, rows_U).lerp_(gradient_US, 1 - beta1)
        second_US = rows_of(self._second_moment, rows_U).mul_(beta2)
        second_US.addcmul_(gradient_US, gradient_US, value=1 - beta2)
        set_rows(self._first_moment, rows_U, first_US)
        set_rows(self._second_moment, rows_U, second_US)
        root = math.sqrt(1 - beta2**self.step_count)
        step_size = self.lr * root / (1 - beta1**self.step_count)
        update_US = first_US.div_(second_US.sqrt_().add_(self.eps))
        add_to_rows(self.weight.detach(), rows_U, update_US, -step_size)

    def _state(self) -> dict[str, Tensor]:
        return {
            "step_count": torch.tensor(self.step_count),
            "first_moment": self._first_moment,
            "second_moment": self._second_moment,
        }

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self.step_count = int(state["step_count"])
        self._first_moment.copy_(state["first_moment"])
        self._second_moment.copy_(state["second_moment"])


class RowwiseAdagrad(_BatchRowsOptimiser):
    """Adagrad (Duchi et al. 2011) with one accumulator for a whole row, as in large recommendation systems.

    a ← a + mean(g²) over the row, w ← w − lr · g/(√a + eps). `betas` is not used.

    Args:
        widths: widths of the tables side by side in `weight`; each row then has one accumulator a table, as if
            the tables were separate. By default one accumulator for the whole row.
    """

    kind: ClassVar[str] = "rowwise-adagrad"
    by_row = frozenset({"accumulator"})

    def __init__(
        self,
        weight: Tensor,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        l2: float = 0.0,
        l2_scale_V: Tensor | None = None,
        clip: RowClip | None = None,
        numbering: Numbering = Numbering(),  # noqa: B008 (it is immutable)
        *,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__(weight, lr, betas, eps, l2, l2_scale_V, clip, numbering)
        self.widths = list(widths) if widths is not None else [weight.shape[1]]
        if sum(self.widths) != weight.shape[1]:
            raise ConfigError(f"widths {self.widths} do not sum to the table width {weight.shape[1]}")
        tables_S = [table for table, width in enumerate(self.widths) for _ in range(width)]
        self._table_of_column_S = torch.tensor(tables_S, device=weight.device)
        self._accumulator_VT = weight.new_zeros(len(weight), len(self.widths), requires_grad=False)

    @torch.no_grad()
    def write(self, rows_U: Tensor, gradient_US: Tensor, grad_scale: float | Tensor = 1.0) -> None:
        if isinstance(grad_scale, Tensor) or grad_scale != 1.0:
            gradient_US = gradient_US * grad_scale
        self.step_count += 1
        parts = torch.split(gradient_US, self.widths, dim=1)
        squares_UT = torch.stack([part.square().mean(dim=1) for part in parts], dim=1)
        accumulator_UT = rows_of(self._accumulator_VT, rows_U) + squares_UT
        set_rows(self._accumulator_VT, rows_U, accumulator_UT)
        scale_UT = accumulator_UT.sqrt_().add_(self.eps)
        update_US = gradient_US / scale_UT.index_select(1, self._table_of_column_S)
        add_to_rows(self.weight.detach(), rows_U, update_US, -self.lr)

    def _state(self) -> dict[str, Tensor]:
        return {"step_count": torch.tensor(self.step_count), "accumulator": self._accumulator_VT}

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self.step_count = int(state["step_count"])
        self._accumulator_VT.copy_(state["accumulator"])
