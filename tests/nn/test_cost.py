"""Counted operations against those of the equations."""

from itertools import pairwise
from typing import Any

import pytest

from dmoe.nn.cost import cost_of
from dmoe.nn.experts import expert_class

F, D = 24, 16
N, P = F * D, F * (F - 1) // 2


def dnn(*widths: int) -> int:
    """Products, bias and ReLU of hidden layers."""
    return sum(2 * a * b + 2 * b for a, b in pairwise(widths))


@pytest.mark.parametrize(
    ("kind", "options", "parameters", "flops"),
    [
        # Sum, square of it, squares, their sum, difference and half.
        ("fm", {}, 0, 3 * N + 3 * D),
        ("fm", {"output": "pairs"}, 0, 2 * F * F * D),
        ("lr", {}, 0, N),
        ("dnn", {}, N * 500 + 500 + 2 * (500 * 500 + 500), dnn(N, 500, 500, 500)),
        ("crossnet", {}, 3 * (N * N + N), 3 * (2 * N * N + 3 * N)),
        ("crossnet", {"layers": 1, "low_rank": 8}, 2 * 8 * N + N, 4 * 8 * N + 3 * N),
        ("gdcn", {"structure": "cross", "layers": 2}, 2 * (2 * N * N + N), 2 * (4 * N * N + N + N + N + 2 * N)),
        ("fwfm", {}, P, 2 * F * F * D + P),
        ("fmfm", {"weights": "vector"}, P * D, 3 * P * D),
        ("fmfm", {}, P * D * D, P * (2 * D * D + 2 * D)),
        ("ffm", {}, 0, 2 * P * D),
        ("ipnn", {"output": "raw"}, 0, 2 * F * F * D),
    ],
)
def test_cost_is_that_of_the_equation(kind: str, options: dict[str, Any], parameters: int, flops: int) -> None:
    dim = D * (F - 1) if kind == "ffm" else D
    cost = cost_of(expert_class(kind)(F, dim, **options), F, dim)
    assert cost == (parameters, flops)


def test_cin_counts_products_of_pairs_once() -> None:
    cost = cost_of(expert_class("cin")(F, D), F, D)
    pairs = F * (F + 1) // 2
    # The Gram matrix, then 276 maps of its upper triangle with their bias.
    assert cost.flops == 2 * F * F * D + 2 * pairs * 276 + 276
    assert cost.parameters == F * F * 276 + 276
