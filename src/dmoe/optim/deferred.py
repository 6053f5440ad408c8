"""Deferred exact Adam: the model of dense Adam at nearly the cost of a sparse update.

Dense Adam moves every row of the table at every step, by the momentum of earlier gradients and by the L2 term,
although the batch holds a tiny part of the rows. These moves need nothing but the row itself and a few numbers
of each step, so they can wait until the row is read. Algebra, bounds and costs: docs/optimisers.md.

Shape suffixes: V table rows, S table width, U distinct rows of a batch.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmoe.errors import ConfigError
from dmoe.kernels.row_parallel import HALF_DTYPES, empty_table, map_chunks
from dmoe.optim import deferred_kernels
from dmoe.optim.base import EmbeddingOptimiser
from dmoe.optim.row_storage import row_storage

Array = npt.NDArray[Any]

_ROWS_PER_CHUNK = 512
_FLUSH_ROWS_PER_CHUNK = 8192


class DeferredAdam(EmbeddingOptimiser):
    """Adam on the loss plus (l2/2)·‖weight‖² over the whole table, with the moves of unread rows held back.

    After `flush` the weights equal those of `DenseAdam` up to floating-point rounding. Splitting the work
    differently (more flushes, a save and load in between) changes no bit.

    A table in bfloat16 or float16 is rounded stochastically (`row_storage`) whenever rows of it are written, so
    there a flush rounds once more; arithmetic and moments are float32. A save and load changes no bit there either.

    Memory beside the weights: both moments and one int32 a row.

    Raises: ConfigError if the table is not a float table on the CPU, or β1 ≥ √β2.
    """

    kind: ClassVar[str] = "deferred"
    growing = frozenset({"history"})
    by_row = frozenset({"first_moment", "second_moment", "last_step"})
    over_rows = frozenset({"norm_squared"})

    def _begin(self) -> None:
        weight = self.weight
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64, *HALF_DTYPES):
            raise ConfigError(
                f"'deferred' needs a table of floats on the CPU, got {weight.dtype} on {weight.device}; "
                "use embedding: dense, which is the same model"
            )
        check_betas(self.betas)
        self._storage = row_storage(weight, self.numbering)
        self._dtype = self._storage.dtype
        moment_dtype = torch.float32 if weight.dtype in HALF_DTYPES else weight.dtype
        self._first_moment = empty_table(len(weight), weight.shape[1], moment_dtype).zero_()
        self._second_moment = empty_table(len(weight), weight.shape[1], moment_dtype).zero_()
        # With L2: the step that the row is at. Without: the step that its moments are at; its weights are at
        # that step or at the last flush, whichever is later.
        self._last_step = torch.zeros(len(weight), dtype=torch.int32)
        self._flushed = 0
        scale_V = torch.ones(1) if self.l2_scale_V is None else self.l2_scale_V
        self._scales = scale_V.numpy().astype(self._dtype)
        self._history = self._new_history()
        self._powers1, self._roots2 = _powers(self.betas, self._dtype)
        self._norm_squared: float | None = None

    @torch.no_grad()
    def catch_up(self, rows_U: Tensor) -> None:
        behind_U = self._last_step[rows_U] != self.step_count
        if not behind_U.any():
            return
        rows = rows_U[behind_U].numpy()
        before = self._rows_norm_squared(rows)
        map_chunks(len(rows), _ROWS_PER_CHUNK, lambda start, stop: self._replay(rows, start, stop, True))
        self._add_to_norm(rows, before)

    @torch.no_grad()
    def flush(self) -> None:
        if self._flushed == self.step_count:
            return

        def replay(start: int, stop: int) -> None:
            self._replay(np.arange(start, stop), 0, stop - start, settle=False)

        map_chunks(len(self.weight), _FLUSH_ROWS_PER_CHUNK, replay)
        self._flushed = self.step_count
        self._history = self._new_history()
        self._norm_squared = None

    @torch.no_grad()
    def write(self, rows_U: Tensor, gradient_US: Tensor, grad_scale: float | Tensor = 1.0) -> None:
        grad_scale = float(grad_scale)
        self.catch_up(rows_U)
        self.step_count += 1
        beta1, beta2 = self.betas
        correction1 = 1 / (1 - beta1**self.step_count)
        inverse_root = 1 / math.sqrt(1 - beta2**self.step_count)
        self._history.append(self.lr, correction1, inverse_root, grad_scale * self.l2)
        rows, gradient = rows_U.numpy(), gradient_US.contiguous().numpy()
        before = self._rows_norm_squared(rows)
        scalar = self._dtype.type
        moments = self._first_moment.numpy(), self._second_moment.numpy(), self._last_step.numpy()
        numbers = (
            *(scalar(x) for x in (self.lr * correction1, inverse_root, grad_scale, self.l2)),
            self._scales,
            *self._beta_scalars(),
            scalar(self.eps),
        )

        def apply(start: int, stop: int) -> None:
            chunk = rows[start:stop]
            weight, places = self._storage.read(chunk)
            deferred_kernels.apply_gradient(
                start, stop, rows, gradient, weight, places, *moments, self.step_count, *numbers
            )
            self._storage.write(weight, chunk, self.step_count)

        map_chunks(len(rows), _ROWS_PER_CHUNK, apply)
        self._add_to_norm(rows, before)

    def weight_norm_squared(self) -> float:
        return self._weight_norm_squared() if self.l2 > 0 else 0.0

    @torch.no_grad()
    def grad_norm_squared(
        self, rows_U: Tensor, gradient_US: Tensor, clip_norm: float | None = None, elsewhere: float | Tensor = 0.0
    ) -> float:
        """See the base class. Exact without `clip_norm`, at the cost of a flush if there is L2.

        With `clip_norm`: while λ²‖weight‖² is below 2⁻²⁶·clip_norm², the L2 gradient of rows outside the batch
        is left out, which changes a clip factor by less than one rounding of float32; above it, exact.
        """
        rows, gradient = rows_U.numpy(), gradient_US.contiguous().numpy()
        rest = 0.0
        if self.l2 > 0:
            negligible = 2.0**-26 * clip_norm**2 if clip_norm is not None else -1.0
            if self.l2**2 * (self._weight_norm_squared() + float(elsewhere)) > negligible:
                self.flush()
                rest = max(0.0, self._weight_norm_squared() - self._rows_norm_squared(rows))
            else:
                self.catch_up(rows_U)
        l2 = self._dtype.type(self.l2)

        def add(start: int, stop: int) -> float:
            weight, places = self._storage.read(rows[start:stop])
            return deferred_kernels.gradient_norm_squared(start, stop, rows, gradient, weight, places, l2, self._scales)

        return math.fsum(map_chunks(len(rows), _ROWS_PER_CHUNK, add)) + self.l2**2 * rest

    def _state(self) -> dict[str, Tensor]:
        return {
            "step_count": torch.tensor(self.step_count),
            "flushed": torch.tensor(self._flushed),
            "first_moment": self._first_moment,
            "second_moment": self._second_moment,
            "last_step": self._last_step,
            "history": torch.from_numpy(self._history.numbers),
            "largest_lr": torch.tensor(self._history.largest_lr, dtype=torch.float64),
            # -1 while nobody has asked for it.
            "norm_squared": torch.tensor(
                -1.0 if self._norm_squared is None else self._norm_squared, dtype=torch.float64
            ),
        }

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self.step_count, self._flushed = int(state["step_count"]), int(state["flushed"])
        self._first_moment.copy_(state["first_moment"])
        self._second_moment.copy_(state["second_moment"])
        self._last_step.copy_(state["last_step"])
        self._history = self._new_history()
        self._history.load(state["history"].numpy(), float(state["largest_lr"]))
        norm_squared = float(state["norm_squared"])
        self._norm_squared = norm_squared if norm_squared >= 0 else None

    def _replay(self, rows: Array, start: int, stop: int, settle: bool) -> None:
        """The missed steps of rows[start:stop]."""
        history = self._history
        scalar = self._dtype.type
        chunk = rows[start:stop]
        weight, places = self._storage.read(chunk)
        arguments: tuple[Any, ...] = (
            rows,
            weight,
            places,
            self._first_moment.numpy(),
            self._second_moment.numpy(),
            self._last_step.numpy(),
        )
        if self.l2 > 0:
            arguments += (
                self.step_count,
                self._flushed,
                history.step_sizes,
                history.inverse_roots,
                history.decays,
                self._scales,
                history.dead_weights,
                history.dead_moments,
                *self._beta_scalars(),
                scalar(self.eps),
            )
            deferred_kernels.replay_with_l2(start, stop, *arguments)
        else:
            arguments += (
                self._flushed,
                self.step_count,
                self._flushed,
                history.step_sizes,
                history.inverse_roots,
                history.bounds,
                self._powers1,
                self._roots2,
                scalar(self.eps),
                self.betas[1],
                settle,
            )
            deferred_kernels.replay_momentum(start, stop, *arguments)
        self._storage.write(weight, chunk, self.step_count)

    def _new_history(self) -> "_History":
        return _History(self._dtype, self.betas[0], self.eps, float(self._scales.max()))

    def _beta_scalars(self) -> tuple[Any, ...]:
        beta1, beta2 = self.betas
        return tuple(self._dtype.type(x) for x in (beta1, 1 - beta1, beta2, 1 - beta2))

    def _weight_norm_squared(self) -> float:
        """‖scale · weight‖² with every row as it was when last brought up to date."""
        if self._norm_squared is None:
            self._norm_squared = self._rows_norm_squared(np.arange(len(self.weight)), always=True)
        return self._norm_squared

    def _rows_norm_squared(self, rows: Array, always: bool = False) -> float:
        if self._norm_squared is None and not always:
            return 0.0

        def add(start: int, stop: int) -> float:
            weight, places = self._storage.read(rows[start:stop])
            return deferred_kernels.sum_of_squares(start, stop, rows, weight, places, self._scales)

        return math.fsum(map_chunks(len(rows), _FLUSH_ROWS_PER_CHUNK, add))

    def _add_to_norm(self, rows: Array, before: float) -> None:
        if self._norm_squared is not None:
            self._norm_squared += self._rows_norm_squared(rows) - before


def check_betas(betas: tuple[float, float]) -> None:
    """That the moves held back die out. Raises: ConfigError."""
    if betas[0] >= math.sqrt(betas[1]):
        raise ConfigError(f"'deferred' needs beta1 < sqrt(beta2), got {betas}; use embedding: dense")


class _History:
    """The numbers of every step since the last flush, in the dtype of the table.

    `step_sizes` lr/(1−β1^t); `inverse_roots` 1/√(1−β2^t); `decays` clip factor × λ; `bounds` no less than the
    step size of this and any later step. A row whose weights are below `dead_weights` and first moments below
    `dead_moments` counts as zero: far below what a float of 1e-20 would notice, far above the denormal numbers
    in which it would otherwise creep on. Both are 0, which no row is below, unless w ← w − gain·m is well
    inside its stable range 0 < gain < 2(1+β1)/(1−β1): then a change of that size dies out by itself.
    """

    def __init__(self, dtype: np.dtype[Any], beta1: float, eps: float, largest_scale: float) -> None:
        self._numbers = np.empty((6, 1024), dtype)
        self._length = 0
        self.largest_lr = 0.0
        self._eps = eps
        self._largest_scale = largest_scale
        self._stable_gain = (1 + beta1) / (1 - beta1)
        self._dead_weight = float(np.finfo(dtype).tiny) * 2.0**30

    def append(self, lr: float, correction1: float, inverse_root: float, decay: float) -> None:
        if self._length == self._numbers.shape[1]:
            self._numbers = np.concatenate(
                [self._numbers, np.empty((6, 1024 + self._length), self._numbers.dtype)], axis=1
            )
        if lr > self.largest_lr:
            # 1/(1−β1^t) falls, so the largest lr times the correction of a step bounds all later step sizes.
            self.bounds[:] = np.inf if self.largest_lr == 0 else self.bounds * (lr / self.largest_lr)
            self.largest_lr = lr
        step_size = lr * correction1
        alive = step_size == 0 or step_size * decay * self._largest_scale / self._eps >= self._stable_gain
        dead_weight = 0.0 if alive else self._dead_weight
        dead_moment = 0.0 if alive else dead_weight * min(1.0, self._eps / step_size)
        bound = self.largest_lr * correction1
        self._numbers[:, self._length] = step_size, inverse_root, decay, bound, dead_weight, dead_moment
        self._length += 1

    def load(self, numbers: Array, largest_lr: float) -> None:
        """Takes over `numbers` and `largest_lr` of another history."""
        self._numbers, self._length = numbers.copy(), numbers.shape[1]
        self.largest_lr = largest_lr

    @property
    def numbers(self) -> Array:
        return self._numbers[:, : self._length]

    @property
    def step_sizes(self) -> Array:
        return self._numbers[0, : self._length]

    @property
    def inverse_roots(self) -> Array:
        return self._numbers[1, : self._length]

    @property
    def decays(self) -> Array:
        return self._numbers[2, : self._length]

    @property
    def bounds(self) -> Array:
        return self._numbers[3, : self._length]

    @property
    def dead_weights(self) -> Array:
        return self._numbers[4, : self._length]

    @property
    def dead_moments(self) -> Array:
        return self._numbers[5, : self._length]


def _powers(betas: tuple[float, float], dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """β1^k and β2^(k/2), for as many steps k as a first moment can still matter.

    |m|/√v falls at least like (β1/√β2)^k, so the table ends where that is below the smallest normal number.
    """
    beta1, beta2 = betas
    tiny = float(np.finfo(dtype).tiny)
    ratio = beta1 / math.sqrt(beta2) if beta1 else 0.0
    length = 2 if ratio == 0 else math.ceil(math.log(tiny) / math.log(ratio)) + 1
    exponents = np.arange(length, dtype=np.float64)
    powers1 = beta1**exponents
    powers1[powers1 < tiny] = 0
    return powers1.astype(dtype), (beta2 ** (exponents / 2)).astype(dtype)
