"""One batch of encoded rows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows scored at once, the same wherever rows are scored: a matrix product may round differently for another
# number of rows, and predictions on raw rows are to equal those on encoded rows to the bit.
SCORING_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of C categorical and N numeric fields with T labels.

    `ids_BC` int32 (B, C), each column within its own field's vocabulary; `numeric_BN` float32 (B, N); `labels_BT`
    float32 (B, T) of 0 and 1, 0 where unknown; `known_BT` bool (B, T), None where all are known; `weights_B` float32
    (B,), None where all rows weigh 1. Of a share of a batch that several processes have
    together, `places_B` int64 are the places of its rows in the whole.
    """

    ids_BC: Tensor
    numeric_BN: Tensor
    labels_BT: Tensor
    known_BT: Tensor | None = None
    weights_B: Tensor | None = None
    places_B: Tensor | None = None

    def __len__(self) -> int:
        return int(self.ids_BC.shape[0])

    @property
    def labels_B(self) -> Tensor:
        """Those of the main label."""
        return self.labels_BT[:, 0]

    def known(self) -> Tensor:
        """Which labels are known, bool (B, T)."""
        return torch.ones_like(self.labels_BT, dtype=torch.bool) if self.known_BT is None else self.known_BT

    def tensors(self) -> list[Tensor]:
        every = (self.ids_BC, self.numeric_BN, self.labels_BT, self.known_BT, self.weights_B)
        return [one for one in every if one is not None]

    def pinned(self) -> "Batch":
        """In memory that a device can copy from by itself."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        known, weights = self.known_BT, self.weights_B
        return Batch(
            change(self.ids_BC),
            change(self.numeric_BN),
            change(self.labels_BT),
            None if known is None else change(known),
            None if weights is None else change(weights),
            self.places_B,
        )
