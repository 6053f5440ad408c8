"""Scalar arithmetic that the naive forms share: a row is a list of F lists of D scalars."""

import torch
from torch import Tensor, nn

from dmoe.nn.mlp import MLP

Row = list[list[Tensor]]
Scalars = list[Tensor]
Answer = tuple[Scalars, list[Scalars]]  # the output and the intermediates of one row


def naive_affine(weight: Tensor, bias: Tensor | None, values: Scalars) -> Scalars:
    outputs = []
    for h in range(weight.shape[0]):
        total = bias[h] if bias is not None else torch.zeros((), dtype=weight.dtype)
        for i, value in enumerate(values):
            total = total + weight[h, i] * value
        outputs.append(total)
    return outputs


def naive_mlp(mlp: MLP, values: Scalars) -> Answer:
    layers = []
    for linear in mlp.linears:
        assert isinstance(linear, nn.Linear)
        values = [v if v > 0 else v * 0 for v in naive_affine(linear.weight, linear.bias, values)]
        layers.append(values)
    return values, layers


def flat(row: Row) -> Scalars:
    return [value for field in row for value in field]


def dot(left: Scalars, right: Scalars) -> Tensor:
    total = left[0] * right[0]
    for a, b in zip(left[1:], right[1:], strict=True):
        total = total + a * b
    return total


def total(values: Scalars) -> Tensor:
    return sum(values[1:], values[0])


def relu(values: Scalars) -> Scalars:
    return [value if value > 0 else value * 0 for value in values]


def pairs_of(row: Row) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(row)) for j in range(i + 1, len(row))]
