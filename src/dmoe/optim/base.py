"""What every embedding optimiser offers, and the choice of one by name.

An embedding optimiser owns the update of one wide table `weight` (V, S) of which a batch touches few rows.
Shape suffixes: V table rows, S summed width of all tables, U distinct rows of a batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dmoe.errors import ConfigError, DataError
from dmoe.kernels.row_access import rows_of
from dmoe.kernels.row_parallel import HALF_DTYPES, map_chunks, sum_kernel
from dmoe.optim.row_clip import RowClip
from dmoe.optim.row_storage import Numbering


class EmbeddingOptimiser(ABC):
    """Owns the rows of one wide table while it is trained: reads them for a batch, and writes what the batch says.

    The objective is the loss that the gradients belong to plus (l2/2)·‖weight‖² over the whole table.

    Args:
        weight: the table (V, S).
        lr: learning rate; may be changed between steps with `set_lr`.
        betas, eps: as in Adam (Kingma and Ba 2015, algorithm 1).
        l2: the factor λ above, at least 0.
        l2_scale_V: a factor of λ for each row, above 0; by default 1: the objective then has (λ/2) Σ_v scale_v ‖w_v‖².
        clip: a bound on the gradient of each row (`RowClip`), by default none.
        numbering: where several processes hold parts of the table, the numbers of the rows of this part.

    A training step, with the distinct rows U of its batch in ascending order: `read` them, run the model on these
    values and backpropagate to them, `clipped`, optionally `grad_norm_squared`, `write`. All get the same rows. On a
    CUDA device they may end in spare places, -1 (`dmoe.kernels.row_access`): zeros are read there, nothing is written.

    Raises: ConfigError if a setting is out of range.
    """

    kind: ClassVar[str]
    # Tensors of the state whose last dimension has no length of its own.
    growing: ClassVar[frozenset[str]] = frozenset()
    # Those that have an entry a row, and those that are sums over rows, -1 where they are to be made anew.
    by_row: ClassVar[frozenset[str]] = frozenset({"first_moment", "second_moment"})
    over_rows: ClassVar[frozenset[str]] = frozenset()

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
    ) -> None:
        if not lr >= 0:
            raise ConfigError(f"lr must be >= 0, got {lr}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas must be in [0, 1), got {betas}")
        if not eps > 0:
            raise ConfigError(f"eps must be > 0, got {eps}")
        if not l2 >= 0:
            raise ConfigError(f"embedding_l2 must be >= 0, got {l2}")
        if l2_scale_V is not None:
            if l2_scale_V.shape != (len(weight),):
                raise ConfigError(f"l2_scale_V must be ({len(weight)},), got {tuple(l2_scale_V.shape)}")
            if not bool((torch.isfinite(l2_scale_V) & (l2_scale_V > 0)).all()):
                raise ConfigError("l2_scale_V must be finite and above 0")
        if clip is not None:
            clip.check(weight.shape[1], l2 * (1.0 if l2_scale_V is None else float(l2_scale_V.max())))
        self.weight = weight
        self.clip = clip
        self.numbering = numbering
        self.l2_scale_V = None if l2_scale_V is None else l2_scale_V.to(weight.device)
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.l2 = l2
        self.step_count = 0
        self._begin()

    def _begin(self) -> None:  # noqa: B027 (nothing to do without further settings and state)
        """Checks what this kind alone asks of the settings, and makes its state.

        Raises: ConfigError if they are not for it.
        """

    def set_lr(self, lr: float) -> None:
        """The learning rate of the steps to come; steps already taken keep theirs."""
        self.lr = lr

    @torch.no_grad()
    def read(self, rows_U: Tensor) -> Tensor:
        """A copy (U, S) of these rows with all steps taken, float32 of a table in 16 bits."""
        self.catch_up(rows_U)
        values_US = rows_of(self.weight.detach(), rows_U)
        return values_US.float() if values_US.dtype in HALF_DTYPES else values_US

    def catch_up(self, rows_U: Tensor) -> None:  # noqa: B027 (nothing to do unless updates are held back)
        """Brings these rows up to date with all steps taken."""

    def flush(self) -> None:  # noqa: B027
        """Brings every row up to date with all steps taken."""

    @torch.no_grad()
    def clipped(self, rows_U: Tensor, gradient_US: Tensor, counts_U: Tensor) -> Tensor:
        """The gradient with its norm, that of L2 included, within each row's bound; itself if there is no `clip`.

        `counts_U`: how often the batch holds each row.
        """
        if self.clip is None:
            return gradient_US
        self.catch_up(rows_U)
        l2_U1: Tensor | float = self.l2
        if self.l2_scale_V is not None:
            l2_U1 = (self.l2 * self.l2_scale_V[rows_U]).to(gradient_US.dtype).unsqueeze(1)
        weight_US = rows_of(self.weight.detach(), rows_U).to(gradient_US.dtype)
        return self.clip(gradient_US, weight_US, l2_U1, counts_U.to(gradient_US.dtype).clamp(min=1))

    @abstractmethod
    def write(self, rows_U: Tensor, gradient_US: Tensor, grad_scale: float | Tensor = 1.0) -> None:
        """One step from the gradient of the loss at these rows.

        `grad_scale`: the factor of gradient clipping; it scales the whole gradient, λ·weight included. Pass it
        here instead of scaling `gradient_US`.
        """

    def weight_norm_squared(self) -> float | Tensor:
        """What `grad_norm_squared` goes by to tell whether L2 of rows outside the batch matters; 0 if by nothing.

        Off the CPU it may be a tensor.
        """
        return 0.0

    @abstractmethod
    def grad_norm_squared(
        self, rows_U: Tensor, gradient_US: Tensor, clip_norm: float | None = None, elsewhere: float | Tensor = 0.0
    ) -> float | Tensor:
        """The squared norm of the whole gradient, λ·weight of all rows that the step moves included.

        `clip_norm`: the threshold that the norm is compared with, if that is all it is for. `elsewhere`: the sum of
        `weight_norm_squared` of the other parts of the table, so that all processes tell alike. Off the CPU the result
        is a tensor, which nobody has to wait for.
        """

    def state_dict(self, *, flush: bool = True) -> dict[str, Tensor]:
        """All state as named tensors on the CPU or the weight's device, up to date; `weight` is not in it.

        Without `flush` it holds what the moves held back are made of, and belongs to `weight` as it now is.
        """
        if flush:
            self.flush()
        return self._state()

    @abstractmethod
    def _state(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state_dict` gave; `weight` must be loaded as it was at that moment.

        Raises: DataError if a tensor is missing, unknown or of another shape or type.
        """
        own = self._state()
        if set(own) != set(state):
            raise DataError(
                f"optimiser state '{self.kind}' has tensors {sorted(own)}, the saved one has {sorted(state)}; "
                "resume with the optimiser that the checkpoint was made with"
            )
        for name, tensor in own.items():
            shapes = tensor.shape, state[name].shape
            if name in self.growing:
                shapes = shapes[0][:-1], shapes[1][:-1]
            if shapes[0] != shapes[1]:
                raise DataError(
                    f"optimiser state '{name}' has shape {tuple(tensor.shape)}, "
                    f"the saved one {tuple(state[name].shape)}; the model or its vocabularies differ"
                )
            if tensor.dtype != state[name].dtype:
                raise DataError(f"optimiser state '{name}' is of {tensor.dtype}, the saved one of {state[name].dtype}")
        self._load(state)

    @abstractmethod
    def _load(self, state: Mapping[str, Tensor]) -> None: ...


def sum_of_squares(values: Tensor) -> float | Tensor:
    """Σ x² in float64; on the CPU a number, in an order that does not depend on the number of threads."""
    if values.device.type != "cpu":
        norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
        return norm.square()
    flat = values.float().numpy().reshape(-1) if values.dtype.itemsize < 4 else values.numpy().reshape(-1)
    return math.fsum(map_chunks(len(flat), 1 << 20, lambda start, stop: _sum_of_squares(start, stop, flat)))


@sum_kernel
def _sum_of_squares(start: int, stop: int, values: Any) -> float:
    total = 0.0
    for index in range(start, stop):
        value = np.float64(values[index])
        total += value * value
    return total
