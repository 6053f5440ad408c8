"""One batch of encoded rows."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of C categorical and N numeric fields.

    `ids_BC` int32 (B, C), each column within its own field's vocabulary; `numeric_BN` float32 (B, N);
    `labels_B` float32 (B,) of 0 and 1.
    """

    ids_BC: Tensor
    numeric_BN: Tensor
    labels_B: Tensor

    def __len__(self) -> int:
        return int(self.ids_BC.shape[0])

    def pinned(self) -> "Batch":
        """In memory that a device can copy from by itself."""
        return Batch(self.ids_BC.pin_memory(), self.numeric_BN.pin_memory(), self.labels_B.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.ids_BC.to(device, non_blocking=True),
            self.numeric_BN.to(device, non_blocking=True),
            self.labels_B.to(device, non_blocking=True),
        )
