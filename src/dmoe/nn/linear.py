"""A logistic regression beside the mixture, as part of the model.

Shape suffixes: B rows, C id columns, N numeric fields, F fields with ids, V entries of all vocabularies, E bounds.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from dmoe.nn.tables.bank import TokenField

# Inner bounds of a numeric field's bins, at most.
EDGES = 19


class LinearPart(nn.Module):
    """ℓ = bias + Σ_f w[id_f] + Σ_n (slope_n · sign(x_n) log(1 + |x_n|) + Σ_e step_ne · [x_n > edge_ne]).

    Of a multi-valued field the mean of its values' weights counts. `share` is how much of the model's logit is ℓ; at
    first it is 0, and so is ℓ. Nothing of it is trained with the mixture: `set` is given a regression fitted by
    itself, which a convex problem allows and one epoch of small steps does not reach. Worked out in float64.

    **Shape**: ``ids_BC`` (B, C) and ``numeric_BN`` (B, N) or None to (B,), float64.
    """

    weights_V: Tensor
    bias: Tensor
    share: Tensor
    edges_NE: Tensor
    steps_NE: Tensor
    slopes_N: Tensor
    first_rows_C: Tensor
    field_of_column_CF: Tensor
    plain_C: Tensor

    def __init__(self, fields: Sequence[TokenField], num_numeric: int) -> None:
        super().__init__()
        firsts = list(accumulate((field.rows for field in fields), initial=0))
        owners = [number for number, field in enumerate(fields) for _ in range(field.length)]
        several = [field.multi_valued for field in fields]
        self.several = any(several)
        for name, values in (
            ("weights_V", torch.zeros(firsts[-1])),
            ("bias", torch.zeros((), dtype=torch.float64)),
            ("share", torch.zeros((), dtype=torch.float64)),
            ("edges_NE", torch.full((num_numeric, EDGES), torch.inf)),
            ("steps_NE", torch.zeros(num_numeric, EDGES, dtype=torch.float64)),
            ("slopes_N", torch.zeros(num_numeric, dtype=torch.float64)),
        ):
            self.register_buffer(name, values)
        first_rows_C = torch.tensor([firsts[number] for number in owners], dtype=torch.int64)
        self.register_buffer("first_rows_C", first_rows_C, persistent=False)
        field_of_column_CF = torch.zeros(len(owners), len(fields), dtype=torch.float64)
        field_of_column_CF[range(len(owners)), owners] = 1.0
        self.register_buffer("field_of_column_CF", field_of_column_CF, persistent=False)
        plain_C = torch.tensor([not several[number] for number in owners], dtype=torch.bool)
        self.register_buffer("plain_C", plain_C, persistent=False)

    def set(
        self,
        weights_V: Tensor,
        bias: float,
        edges: Sequence[Sequence[float]] = (),
        steps: Sequence[Sequence[float]] = (),
        slopes: Sequence[float] = (),
        *,
        share: float,
    ) -> None:
        """Raises: ValueError for numbers that do not fit the fields, or a share that is not within 0 and 1."""
        sizes = [len(one) for one in edges]
        if weights_V.shape != self.weights_V.shape or not len(edges) == len(steps) == len(slopes) == len(self.slopes_N):
            raise ValueError("LinearPart needs a weight for each vocabulary entry, and edges for each numeric field")
        if sizes != [len(one) for one in steps] or max(sizes, default=0) > EDGES or not 0 <= share <= 1:
            raise ValueError(f"LinearPart takes up to {EDGES} edges, each with a step, and a share from 0 to 1")
        self.weights_V.copy_(weights_V)
        self.bias.fill_(bias)
        self.share.fill_(share)
        self.edges_NE.fill_(torch.inf)
        self.steps_NE.zero_()
        self.slopes_N.copy_(torch.tensor(list(slopes), dtype=torch.float64))
        for number, size in enumerate(sizes):
            self.edges_NE[number, :size] = torch.tensor(list(edges[number]))
            self.steps_NE[number, :size] = torch.tensor(list(steps[number]), dtype=torch.float64)

    def clear(self) -> None:
        """Back to no share and no weights."""
        self.share.zero_()
        self.weights_V.zero_()

    def mixed(self, logit_B: Tensor, linear_B: Tensor) -> Tensor:
        """(1 - share) of the mixture's logit and share of this one's."""
        return ((1 - self.share) * logit_B.double() + self.share * linear_B).to(logit_B.dtype)

    def forward(self, ids_BC: Tensor, numeric_BN: Tensor | None = None) -> Tensor:
        linear_B = self.bias + self._weights(ids_BC).sum(1)
        if len(self.slopes_N) and numeric_BN is not None:
            slopes_BN, steps_BNE = self._numbers(numeric_BN)
            linear_B = linear_B + slopes_BN.sum(1) + steps_BNE.sum((1, 2))
        return linear_B

    def by_field(self, ids_BC: Tensor, numeric_BN: Tensor) -> Tensor:
        """(B, F + N): what each field adds to ℓ, those with ids first."""
        slopes_BN, steps_BNE = self._numbers(numeric_BN)
        return torch.cat([self._weights(ids_BC) @ self.field_of_column_CF, slopes_BN + steps_BNE.sum(2)], dim=1)

    def _weights(self, ids_BC: Tensor) -> Tensor:
        """(B, C); several values of a field weigh one together."""
        weights_BC = (
            nn.functional.embedding(ids_BC + self.first_rows_C, self.weights_V.unsqueeze(1)).squeeze(2).double()
        )
        if self.several:
            there_BC = ((ids_BC != 0) | self.plain_C).double()
            number_BF = there_BC @ self.field_of_column_CF
            weights_BC = weights_BC * there_BC / (number_BF.clamp(min=1.0) @ self.field_of_column_CF.T)
        return weights_BC

    def _numbers(self, numeric_BN: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) of the slopes and (B, N, E) of the steps."""
        wide_BN = numeric_BN.double()
        tamed_BN = torch.sign(wide_BN) * torch.log(1 + wide_BN.abs())
        above_BNE = (numeric_BN.unsqueeze(2) > self.edges_NE).double()
        return tamed_BN * self.slopes_N, above_BNE * self.steps_NE
