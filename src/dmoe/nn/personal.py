"""Scales that a row's own fields set on embeddings and towers (PEPNet), and towers that domains share (STAR).

Each is neutral at first: a model starts as it would without it.

Shape suffixes: B rows, F fields of a table, D embedding width, P fields of the prior, H width of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmoe.nn.mlp import MLP, initialise_linear
from dmoe.nn.tables.fields import FieldEmbedding


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """What a scale is built from: the numbers of the fields that set it, and the units of its hidden layer."""

    fields: Sequence[int]
    units: int = 64


class Scale(nn.Module):
    """PEPNet's gate unit: `2 σ(W2 ReLU(W1 [prior ; sg(x)] + b1) + b2)`, W2 and b2 at first 0 (Chang et al., KDD 2023).

    Args:
        places: where the prior's fields stand among the F of the table.
        widths: of the layers to scale.

    Shape: ``embeddings_BFD`` to one (B, H) for each of `widths`.
    """

    def __init__(self, places: Sequence[int], num_fields: int, embedding_dim: int, units: int, widths: Sequence[int]):
        super().__init__()
        self.widths = list(widths)
        self.register_buffer("places_P", torch.tensor(list(places)), persistent=False)
        self.hidden = nn.Linear((len(places) + num_fields) * embedding_dim, units)
        initialise_linear(self.hidden)
        self.output = nn.Linear(units, sum(widths))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    places_P: Tensor

    def forward(self, embeddings_BFD: Tensor) -> tuple[Tensor, ...]:
        prior_BPD = embeddings_BFD.index_select(1, self.places_P)
        read = torch.cat([prior_BPD.flatten(1), embeddings_BFD.detach().flatten(1)], dim=1)
        scales = 2 * torch.sigmoid(self.output(functional.relu(self.hidden(read))))
        return torch.split(scales, self.widths, dim=1)


def scaled(tower: nn.Module, input_BH: Tensor, scales: Sequence[Tensor]) -> Tensor:
    """What a tower makes of its input, with the input and each hidden layer times its scale (PPNet)."""
    output_BH = input_BH * scales[0]
    for linear, scale_BH in zip(tower.linears, scales[1:], strict=True):  # type: ignore[arg-type]
        output_BH = tower.dropout(functional.relu(linear(output_BH))) * scale_BH  # type: ignore[operator]
    return output_BH


class StarLinear(nn.Module):
    """`(W_p ⊙ W) x + b_p + b` (STAR, Sheng et al., CIKM 2021): W and b of all domains, W_p at first 1, b_p at first 0.

    Args:
        shared: the layer of all domains, which the model holds.
    """

    def __init__(self, shared: nn.Linear) -> None:
        super().__init__()
        self._shared = [shared]  # not a part of this module
        self.weight = nn.Parameter(torch.ones_like(shared.weight))
        self.bias = nn.Parameter(torch.zeros_like(shared.bias))

    def forward(self, input_BI: Tensor) -> Tensor:
        shared = self._shared[0]
        return functional.linear(input_BI, self.weight * shared.weight, self.bias + shared.bias)


class StarTower(nn.Module):
    """A tower of one domain: `StarLinear`, ReLU, dropout for each layer of the tower of all."""

    def __init__(self, shared: MLP) -> None:
        super().__init__()
        self.out_features = shared.out_features
        layers: list[nn.Linear] = list(shared.linears)  # type: ignore[arg-type]
        self.linears = nn.ModuleList(StarLinear(layer) for layer in layers)
        self.dropout = nn.Dropout(shared.dropout.p)

    def forward(self, input_BI: Tensor) -> Tensor:
        for linear in self.linears:
            input_BI = self.dropout(functional.relu(linear(input_BI)))
        return input_BI


def _scale(plan: ScalePlan, embedding: FieldEmbedding, table: int, widths: Sequence[int]) -> Scale:
    held = embedding.fields_of_table[table]
    lacking = [field for field in plan.fields if field not in held]
    if lacking:
        raise ValueError(f"a scale is to read field {lacking[0]}, which table {table} does not hold")
    places = [held.index(field) for field in plan.fields]
    return Scale(places, len(held), embedding.widths[table], plan.units, widths)


def scales_of_tables(plan: ScalePlan, embedding: FieldEmbedding, tables: Sequence[int]) -> nn.ModuleDict:
    """For each table a scale of all its embeddings (EPNet).

    Raises: ValueError if one does not hold the fields that set it.
    """
    sizes = {table: len(embedding.fields_of_table[table]) * embedding.widths[table] for table in tables}
    return nn.ModuleDict({str(table): _scale(plan, embedding, table, [size]) for table, size in sizes.items()})


def scale_tables(scales: nn.ModuleDict, embeddings: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The embeddings (B, F, D) of each table, those of tables that have a scale times it."""
    found = []
    for table, embeddings_BFD in enumerate(embeddings):
        if str(table) in scales:
            (scale_BH,) = scales[str(table)](embeddings_BFD)
            embeddings_BFD = embeddings_BFD * scale_BH.view(embeddings_BFD.shape)
        found.append(embeddings_BFD)
    return tuple(found)


def scales_of_towers(
    plan: ScalePlan, embedding: FieldEmbedding, tables: Sequence[int], towers: Sequence[nn.Module], width: int
) -> nn.ModuleList:
    """For each tower a scale of its input, `width` wide, and of its hidden layers (PPNet), read off its table.

    Raises: ValueError if that does not hold the fields that set it.
    """
    return nn.ModuleList(
        _scale(plan, embedding, table, [width, *(len(layer.weight) for layer in tower.linears)])  # type: ignore[union-attr]
        for table, tower in zip(tables, towers, strict=True)
    )
