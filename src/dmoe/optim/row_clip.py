"""CowClip: the gradient of each row bounded by the row's own norm (Zheng et al., AAAI 2023, arXiv 2204.06240).

Shape suffixes: V table rows, S summed width of all tables, T tables side by side, D width of one, U rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dmoe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RowClip:
    """G ← min(1, cnt · max(r ‖w‖, ζ) / ‖G‖) · G for each row w of each table.

    G is the gradient of the whole objective, the row's L2 included, as in the authors' code; cnt is how often the batch
    holds the row. A row that it does not hold has cnt 1 and the gradient λ w, which no λ ≤ r clips.

    Args:
        r, zeta: as above.
        widths: of the tables side by side in a row, each with a bound of its own: every expert's table is an embedding
            of its own, and what one learns should not move the bound of another. By default one for the whole row.
        clipped: for each of them, whether it is clipped; by default all.

    Raises: ConfigError if r or ζ is not above 0.
    """

    r: float = 1.0
    zeta: float = 1e-5
    widths: Sequence[int] | None = None
    clipped: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        for name, value in (("r", self.r), ("zeta", self.zeta)):
            if not value > 0:
                raise ConfigError(f"embedding_clip.{name} must be > 0, got {value}")

    def check(self, width: int, largest_l2: float) -> None:
        """Raises: ConfigError for a table of another width, or if L2 alone would be clipped in rows not read."""
        if self.widths is not None and sum(self.widths) != width:
            raise ConfigError(f"widths {list(self.widths)} do not sum to the table width {width}")
        if largest_l2 > self.r:
            raise ConfigError(
                f"embedding_l2 {largest_l2:g} above embedding_clip.r {self.r:g} would be clipped in every row at every "
                "step; lower embedding_l2 or raise r"
            )

    def __call__(self, gradient_US: Tensor, weight_US: Tensor, l2_U1: Tensor | float, counts_U: Tensor) -> Tensor:
        """The gradient of the loss to hand on, so that with l2 · weight added it is clipped."""
        widths = [gradient_US.shape[1]] if self.widths is None else list(self.widths)
        clipped = [True] * len(widths) if self.clipped is None else self.clipped
        found_US = gradient_US.clone()
        for first, width, wanted in zip(accumulate(widths, initial=0), widths, clipped, strict=False):
            if not wanted:
                continue
            columns = slice(first, first + width)
            weight_UD = weight_US[:, columns]
            own_UD = l2_U1 * weight_UD
            whole_UD = gradient_US[:, columns] + own_UD
            bound_U = counts_U * (self.r * torch.linalg.vector_norm(weight_UD, dim=1)).clamp(min=self.zeta)
            norm_U = torch.linalg.vector_norm(whole_UD, dim=1)
            exceeds_U1 = (norm_U > bound_U).unsqueeze(1)
            factor_U1 = (bound_U / norm_U.clamp(min=torch.finfo(norm_U.dtype).tiny)).unsqueeze(1)
            # Rows within their bound keep their gradient to the bit.
            found_US[:, columns] = torch.where(exceeds_U1, factor_U1 * whole_UD - own_UD, gradient_US[:, columns])
        return found_US
