"""What is read of a training step: its losses, and what processes ask of each other after it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmoe.errors import NonFiniteLossError
from dmoe.nn.tables.fields import FieldEmbedding


@dataclass(frozen=True, slots=True)
class StepLoss:
    """Losses of one batch: the total of eq. 12, its mean logloss and its weighted de-correlation."""

    total: float
    logloss: float
    decorrelation: float
    gradient_norm: float = 0.0  # 0 where nobody asked for it
    bad_row: float = -1.0  # of the batch, the column, and the id: the first one outside its vocabulary
    bad_column: float = -1.0
    bad_id: float = -1.0

    @classmethod
    def read(cls, values: Sequence[Tensor]) -> "list[StepLoss]":
        """What `Engine.step` gave for several batches; waits once for the device."""
        return [cls(*found) for found in torch.stack(list(values)).tolist()] if values else []

    def check(self, embedding: FieldEmbedding) -> None:
        """Raises: NonFiniteLossError if the loss or the gradient is not finite, DataError for ids out of range."""
        if self.bad_row >= 0:
            raise embedding.bad_id(int(self.bad_row), int(self.bad_column), int(self.bad_id))
        self.check_numbers()

    def check_numbers(self) -> None:
        """Raises: NonFiniteLossError if the loss or the gradient is not finite."""
        if not math.isfinite(self.total):
            raise NonFiniteLossError(
                f"the loss is {self.total} (logloss {self.logloss}, de-correlation {self.decorrelation})"
            )
        if not math.isfinite(self.gradient_norm):
            raise NonFiniteLossError(f"the norm of the gradient is {self.gradient_norm}")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a process asks all to do after a step: to stop, to save the state."""

    stop: bool = False
    save: bool = False

    def numbers(self) -> list[float]:
        return [float(self.stop), float(self.save)]

    @classmethod
    def read(cls, numbers: Sequence[float]) -> "Asked":
        """Of the sums over processes."""
        return cls(*(number > 0 for number in numbers))
