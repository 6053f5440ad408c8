"""Deferred exact Adam on a CUDA device: the same recursions as `deferred_kernels`, one group of rows a program.

The algebra is in docs/optimisers.md. Nothing waits for the device: the step, the learning rate and the factor of
gradient clipping are tensors there. No two programs share a row, so equal input gives equal bits.

Without a device the kernels run in Triton's interpreter, see `dmoe.kernels.row_triton`.

Shape suffixes: V table rows, S table width, U capacity for distinct rows (-1 for none), J steps since the last flush.
"""

import math

import torch
import triton
from torch import Tensor

from dmoe.kernels.row_parallel import numpy_dtype
from dmoe.kernels.row_triton import options, tile
from dmoe.optim import deferred_triton_kernels as kernels
from dmoe.optim.deferred import _powers
from dmoe.optim.row_storage import Numbering

HISTORY_FIELDS = 6

# Elements of a program of a replay: few, as its rows run until the last of them is done.
REPLAY_TILE = 128
# Enough to fill a device, few enough to start in no time.
CONDITIONAL_PROGRAMS = 2048


class DeferredRows:
    """The rows of one table with both moments and what is held back of them, on one device.

    Args:
        weight_VS: float32, float64, bfloat16 or float16; changed in place.
        betas, eps, l2: as in `DeferredAdam`.
        l2_scale_V: a factor of λ for each row, by default 1.
        history_length: steps that there is room for at first.
        numbering: where several processes hold parts of a table, the numbers of the rows of this part.

    `step_count` counts here what `clock` [steps taken, step of the last flush] counts on the device; `flushed` is not
    above what stands there.
    """

    def __init__(
        self,
        weight_VS: Tensor,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        l2: float,
        l2_scale_V: Tensor | None = None,
        history_length: int = 1024,
        numbering: Numbering = Numbering(),  # noqa: B008 (it is immutable)
    ) -> None:
        device = weight_VS.device
        self.dtype = torch.float64 if weight_VS.dtype == torch.float64 else torch.float32
        self.weight_VS = weight_VS
        self.storage = _STORAGE[weight_VS.dtype]
        self.has_l2 = l2 > 0
        self.first_VS, self.second_VS = (
            torch.zeros(weight_VS.shape, dtype=self.dtype, device=device) for _ in range(2)
        )
        self.last_V = torch.zeros(len(weight_VS), dtype=torch.int32, device=device)
        self.scales_V = (torch.ones(1) if l2_scale_V is None else l2_scale_V).to(device, self.dtype)
        powers1_K, roots2_K = _powers(betas, numpy_dtype(self.dtype))
        self.powers1_K, self.roots2_K = torch.from_numpy(powers1_K).to(device), torch.from_numpy(roots2_K).to(device)
        dead_weight = float(torch.finfo(self.dtype).tiny) * 2.0**30
        stable_gain = (1 + betas[0]) / (1 - betas[0])
        logs = (math.log(beta) if beta else -math.inf for beta in betas)
        numbers = (*betas, eps, l2, *logs, stable_gain, dead_weight, float(self.scales_V.max()), *numbering)
        self.numbers = torch.tensor(numbers, dtype=torch.float64, device=device)
        # lr now, and the largest since the last flush.
        self.rates = torch.tensor([lr, 0.0], dtype=torch.float64, device=device)
        self.clock = torch.zeros(2, dtype=torch.int64, device=device)
        self.history_6J = torch.zeros(HISTORY_FIELDS, history_length, dtype=self.dtype, device=device)
        self.step_count = self.flushed = 0

    def set_lr(self, lr: float) -> None:
        """The learning rate of the steps to come."""
        self.rates[:1].fill_(lr)

    @torch.no_grad()
    def read(self, rows_U: Tensor) -> Tensor:
        """These rows (U, S), ascending and each once, with all steps taken; zeros where `rows_U` is -1."""
        values_US = torch.empty(len(rows_U), self.weight_VS.shape[1], dtype=self.dtype, device=rows_U.device)
        self._replay(rows_U, values_US)
        return values_US

    @torch.no_grad()
    def catch_up(self, rows_U: Tensor) -> None:
        """Brings these rows up to date with all steps taken."""
        self._replay(rows_U, None)

    @torch.no_grad()
    def flush(self) -> None:
        """Brings every row up to date with all steps taken."""
        if self.flushed == self.step_count:
            return
        self._replay(None, None)
        self.clock[1:].copy_(self.clock[:1])
        self.rates[1:].zero_()
        self.flushed = self.step_count

    @torch.no_grad()
    def write(self, rows_U: Tensor, gradient_US: Tensor, grad_scale: Tensor) -> None:
        """One step from the gradient of the loss at these rows; `grad_scale` (1,) float64 scales the whole gradient."""
        self.catch_up(rows_U)
        taken = self.step_count - self.flushed
        if taken == self.history_6J.shape[1]:
            self.history_6J = torch.cat([self.history_6J, torch.zeros_like(self.history_6J)], dim=1)
        kernels.take_step[(1,)](
            self.clock, self.rates, grad_scale, self.numbers, self.history_6J, self.history_6J.stride(0), **options()
        )
        self.step_count += 1
        if len(rows_U):
            columns, group = tile(self.weight_VS.shape[1])
            kernels.apply[(triton.cdiv(len(rows_U), group),)](
                rows_U, gradient_US.contiguous(), *self._table(), self.clock, self.history_6J,
                self.history_6J.stride(0), self.numbers, grad_scale, self.scales_V, len(rows_U),
                self.weight_VS.shape[1], len(self.scales_V) > 1, self.storage, group, columns, **options(),
            )  # fmt: skip

    @torch.no_grad()
    def grad_norm_squared(self, rows_U: Tensor, gradient_US: Tensor) -> Tensor:
        """Σ (gradient + λ·scale·w)² over these rows as they are, float64 ()."""
        return self._norm(rows_U, gradient_US, None)

    @torch.no_grad()
    def weight_norm_squared(self, rows_U: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Σ (scale·w)² of these or of all rows as they are, float64 (); 0 if `condition` (1,) is."""
        return self._norm(rows_U, None, condition)

    @torch.no_grad()
    def flush_if(self, condition: Tensor) -> None:
        """`flush`, with L2, if `condition` (1,) is not 0, which the host need not know."""
        self._replay(None, None, condition)
        self.clock[1:].copy_(torch.where(condition != 0, self.clock[:1], self.clock[1:]))
        self.rates[1:].mul_(condition == 0)

    def load(
        self,
        step_count: int,
        flushed: int,
        largest_lr: float,
        history_6J: Tensor,
        first_VS: Tensor,
        second_VS: Tensor,
        last_V: Tensor,
    ) -> None:
        """Takes over the state of another table of these rows; its weights must be here already."""
        self.first_VS.copy_(first_VS)
        self.second_VS.copy_(second_VS)
        self.last_V.copy_(last_V)
        self.clock.copy_(torch.tensor([step_count, flushed]))
        self.rates[1:].fill_(largest_lr)
        self.step_count, self.flushed = step_count, flushed
        length = history_6J.shape[1]
        if length > self.history_6J.shape[1]:
            self.history_6J = self.history_6J.new_zeros(HISTORY_FIELDS, 2 * length)
        self.history_6J[:, :length] = history_6J

    def _norm(self, rows_U: Tensor | None, gradient_US: Tensor | None, condition: Tensor | None) -> Tensor:
        total = len(self.weight_VS) if rows_U is None else len(rows_U)
        columns, group = tile(self.weight_VS.shape[1])
        blocks = triton.cdiv(total, group)
        sums = torch.zeros(max(1, blocks), dtype=torch.float64, device=self.weight_VS.device)
        if total:
            kernels.squares[(self._programs(blocks, condition),)](
                self.last_V if rows_U is None else rows_U,
                self.first_VS if gradient_US is None else gradient_US.contiguous(), self._bits(), self.numbers,
                self.scales_V, sums, self.clock if condition is None else condition, total, self.weight_VS.shape[1],
                rows_U is None, gradient_US is not None, condition is not None, len(self.scales_V) > 1, self.storage,
                group, columns, **options(),
            )  # fmt: skip
        return sums.sum()

    def _replay(self, rows_U: Tensor | None, values_US: Tensor | None, condition: Tensor | None = None) -> None:
        """The missed steps of these or of all rows; `values_US` receives the rows."""
        total = len(self.weight_VS) if rows_U is None else len(rows_U)
        if total == 0:
            return
        width = self.weight_VS.shape[1]
        columns, group = tile(width, REPLAY_TILE)
        common = (
            self.last_V if rows_U is None else rows_U,
            *self._table(),
            self.last_V if values_US is None else values_US,
            self.clock,
            self.history_6J,
            self.history_6J.stride(0),
            self.numbers,
        )
        switches = (rows_U is None, values_US is not None)
        blocks = triton.cdiv(total, group)
        if self.has_l2:
            kernels.replay_with_l2[(self._programs(blocks, condition),)](
                *common, self.scales_V, self.clock if condition is None else condition, total, width, *switches,
                condition is not None, len(self.scales_V) > 1, self.storage, group, columns, **options(),
            )  # fmt: skip
        else:
            kernels.replay_momentum[(blocks,)](
                *common, self.powers1_K, self.roots2_K, len(self.powers1_K), total, width, *switches, self.storage,
                group, columns, **options(),
            )  # fmt: skip

    @staticmethod
    def _programs(blocks: int, condition: Tensor | None) -> int:
        """A program a block; where most likely nothing is to be done, a few for all."""
        return blocks if condition is None else min(blocks, CONDITIONAL_PROGRAMS)

    def _table(self) -> tuple[Tensor, ...]:
        return self._bits(), self.first_VS, self.second_VS, self.last_V

    def _bits(self) -> Tensor:
        return self.weight_VS.view(torch.int16) if self.storage else self.weight_VS


_STORAGE = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2}
