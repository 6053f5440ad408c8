"""Several values of a field as one vector.

Shape suffixes: B rows, L values, D width, H hidden units.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmoe.nn.mlp import initialise_linear


class Pooling(nn.Module):
    """Shape: ``values_BLD``, ``present_BL`` (False where there is no value) and for some ``target_BD`` to (B, D).

    A row without values gives zeros.
    """

    def forward(self, values_BLD: Tensor, present_BL: Tensor, target_BD: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class SumPooling(Pooling):
    """`Σ_l e_l`."""

    def __init__(self, width: int) -> None:  # noqa: ARG002 (the poolings' common signature)
        super().__init__()

    def forward(self, values_BLD: Tensor, present_BL: Tensor, target_BD: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return (values_BLD * present_BL.unsqueeze(-1)).sum(1)


class MeanPooling(SumPooling):
    """`Σ_l e_l / L`, L the values that there are."""

    def forward(self, values_BLD: Tensor, present_BL: Tensor, target_BD: Tensor | None = None) -> Tensor:
        summed_BD = super().forward(values_BLD, present_BL, target_BD)
        return summed_BD / present_BL.sum(1, keepdim=True).clamp(min=1)


class AttentionPooling(Pooling):
    """`Σ_l a_l e_l` with `a = softmax_l(qᵀ tanh(W e_l + b))` over the values that there are.

    Additive attention with one learned query (Yang et al., NAACL 2016, eq. 5-7).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.query = nn.Linear(width, 1, bias=False)
        initialise_linear(self.hidden)
        initialise_linear(self.query)

    def forward(self, values_BLD: Tensor, present_BL: Tensor, target_BD: Tensor | None = None) -> Tensor:  # noqa: ARG002
        scores_BL: Tensor = self.query(torch.tanh(self.hidden(values_BLD))).squeeze(-1)
        scores_BL = scores_BL.masked_fill(~present_BL, torch.finfo(scores_BL.dtype).min)
        weights_BL = torch.softmax(scores_BL, dim=1) * present_BL
        return (values_BLD * weights_BL.unsqueeze(-1)).sum(1)


class TargetPooling(Pooling):
    """`Σ_l a(e_l, t) e_l`, t the embedding of the field that is asked about (DIN, Zhou et al., KDD 2018, eq. 3).

    `a` is a network of `units` hidden units on `[e_l ; t ; e_l − t ; e_l * t]`, with PReLU between; as there, its
    values are not made to sum to 1, so that many values that matter weigh more than few.
    """

    def __init__(self, width: int, units: int = 36) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * width, units)
        self.activation = nn.PReLU()
        self.output = nn.Linear(units, 1)
        initialise_linear(self.hidden)
        initialise_linear(self.output)

    def forward(self, values_BLD: Tensor, present_BL: Tensor, target_BD: Tensor | None = None) -> Tensor:
        if target_BD is None:
            raise ValueError("TargetPooling needs a target")
        # W [e ; t ; e − t ; e * t] = (W_1 + W_3) e + (W_2 − W_3) t + W_4 (e * t): t enters once for all values.
        of_value_HD, of_target_HD, of_difference_HD, of_product_HD = self.hidden.weight.chunk(4, dim=1)
        target_BH = functional.linear(target_BD, of_target_HD - of_difference_HD, self.hidden.bias)
        hidden_BLH = (
            functional.linear(values_BLD, of_value_HD + of_difference_HD)
            + functional.linear(values_BLD * target_BD.unsqueeze(1), of_product_HD)
            + target_BH.unsqueeze(1)
        )
        weights_BL: Tensor = self.output(self.activation(hidden_BLH)).squeeze(-1) * present_BL
        return (values_BLD * weights_BL.unsqueeze(-1)).sum(1)


POOLINGS: dict[str, Callable[[int], Pooling]] = {
    "sum": SumPooling,
    "mean": MeanPooling,
    "attention": AttentionPooling,
    "target": TargetPooling,
}
