"""A monotone map from a model's logit to a calibrated one, as part of the model.

Shape suffixes: B rows of a batch, K knots.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

KNOTS = 32


class LogitMap(nn.Module):
    """z' = bias + slope · z + Σ_k bend_k · max(0, z - knot_k), a straight line with bends; at first z' = z.

    A temperature T is the slope 1/T, Platt's scaling a slope and a bias; isotonic regression has bends too. The map
    rises strictly, so the order of rows stays. Worked out in float64: rounding to float32 happens once.

    `offset` is what scoring adds beyond the map where training saw only a share w of the rows without a click: log w
    (He et al., ADKDD 2014, section 6.3). The map itself leaves it out: held-out rows were sampled alike.

    **Shape**: ``logit_B`` and the result are ``(B,)``, of one floating dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("line", torch.tensor([0.0, 1.0], dtype=torch.float64))
        self.register_buffer("knots_K", torch.zeros(KNOTS, dtype=torch.float64))
        self.register_buffer("bends_K", torch.zeros(KNOTS, dtype=torch.float64))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))

    line: Tensor
    knots_K: Tensor
    bends_K: Tensor
    offset: Tensor

    def set(self, bias: float, slope: float, knots: Sequence[float] = (), bends: Sequence[float] = ()) -> None:
        """Raises: ValueError for more than `KNOTS` knots, knots and bends of different number, or a map that falls."""
        if len(knots) > KNOTS or len(knots) != len(bends):
            raise ValueError(f"LogitMap takes up to {KNOTS} knots, each with a bend; got {len(knots)} and {len(bends)}")
        slopes = [slope]
        for _, bend in sorted(zip(knots, bends, strict=True)):
            slopes.append(slopes[-1] + bend)
        if min(slopes) <= 0:
            raise ValueError(f"LogitMap must rise, got a slope of {min(slopes):g}")
        unused = [0.0] * (KNOTS - len(knots))
        for buffer, values in ((self.line, [bias, slope]), (self.knots_K, knots), (self.bends_K, bends)):
            padded = list(values) if buffer is self.line else [*values, *unused]
            buffer.copy_(torch.tensor(padded, dtype=torch.float64))

    def served(self, logit_B: Tensor) -> Tensor:
        """A mapped logit as scoring gives it."""
        return (logit_B.double() + self.offset).to(logit_B.dtype)

    def forward(self, logit_B: Tensor) -> Tensor:
        wide_B = logit_B.double()
        above_BK = torch.relu(wide_B.unsqueeze(1) - self.knots_K)
        mapped_B = self.line[0] + self.line[1] * wide_B + (above_BK * self.bends_K).sum(1)
        return mapped_B.to(logit_B.dtype)
