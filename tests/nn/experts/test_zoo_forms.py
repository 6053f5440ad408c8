"""Fast forms against plain ones over generated shapes, and what one expert becomes when it is another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmoe.nn.experts import FFM, FM, CrossNetMix, CrossNetV1, Expert, FmFM, FwFM, GwPFM, expert_class
from dmoe.nn.experts.pairs import Sides
from dmoe.nn.experts.wukong import WukongLayer
from tests.nn.experts.naive import assert_close, randomise

seeds = st.integers(0, 2**32 - 1)


def assert_same(expert: nn.Module, ours: Tensor, plain: Tensor, embeddings: Tensor) -> None:
    weights = torch.randn_like(ours)
    leaves = [embeddings, *expert.parameters()]
    found, wanted = ([t, *torch.autograd.grad((t * weights).sum(), leaves)] for t in (ours, plain))
    assert_close([t.detach() for t in found], [t.detach() for t in wanted], 1e-9)


def leaf(rows: int, fields: int, dim: int) -> Tensor:
    return torch.randn(rows, fields, dim, dtype=torch.float64, requires_grad=True)


@settings(max_examples=60)
@given(groups=st.lists(st.integers(0, 3), min_size=2, max_size=7), dim=st.integers(1, 3), seed=seeds)
def test_gwpfm_over_groups_equals_the_sum_over_pairs(groups: list[int], dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    known = sorted(set(groups))
    groups = [known.index(group) for group in groups]
    fields, count = len(groups), len(known)
    expert = GwPFM(fields, dim * count, groups=groups).double()
    randomise(expert)
    embeddings = leaf(4, fields, dim * count)
    parts = embeddings.view(4, fields, count, dim)
    weight = expert.weight[expert.mirror_GG]
    plain = sum(
        (
            weight[groups[i], groups[j]] * parts[:, i, groups[j]] * parts[:, j, groups[i]]
            for i in range(fields)
            for j in range(i + 1, fields)
        ),
        torch.zeros(4, dim, dtype=torch.float64),
    )
    assert_same(expert, expert(embeddings), plain, embeddings)


@settings(max_examples=60)
@given(fields=st.integers(1, 5), dim=st.integers(1, 4), layers=st.integers(1, 5), seed=seeds)
def test_crossnet_v1_in_closed_form_equals_the_recurrence(fields: int, dim: int, layers: int, seed: int) -> None:
    torch.manual_seed(seed)
    expert = CrossNetV1(fields, dim, layers=layers).double()
    randomise(expert)
    embeddings = leaf(3, fields, dim)
    x0 = x = embeddings.flatten(1)
    for weight, bias in zip(expert.weight, expert.bias, strict=True):
        x = x0 * (x @ weight).unsqueeze(1) + bias + x
    assert_same(expert, expert(embeddings), x, embeddings)


@settings(max_examples=60)
@given(vectors=st.integers(2, 9), dim=st.integers(3, 6), rank=st.integers(1, 9), seed=seeds)
def test_wukong_takes_the_cheaper_of_two_equal_ways(vectors: int, dim: int, rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = WukongLayer(vectors, dim, 2, 1, rank, [4]).double()
    x = leaf(3, vectors, dim)
    low_rank, gram = 4 * vectors * dim * rank, 2 * vectors**2 * (dim + rank)
    assert layer.gram_is_cheaper == (gram < low_rank)
    chosen = layer(x)
    layer.gram_is_cheaper = not layer.gram_is_cheaper
    torch.testing.assert_close(layer(x), chosen)


@settings(max_examples=40)
@given(fields=st.integers(2, 7), dim=st.integers(1, 4), seed=seeds)
def test_weights_of_one_give_the_factorisation_machine(fields: int, dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    embeddings = torch.randn(5, fields, dim, dtype=torch.float64)
    pairs = FM(fields, dim, output="pairs")(embeddings)
    vector = FM(fields, dim)(embeddings)
    found: list[tuple[Expert, Tensor]] = [
        (FwFM(fields, dim), pairs),
        (FwFM(fields, dim, output="bi-interaction"), vector),
        (FmFM(fields, dim), pairs),
        (FmFM(fields, dim, weights="vector", output="bi-interaction"), vector),
        (GwPFM(fields, dim, groups=1), vector),
    ]
    for expert, expected in found:
        for parameter in expert.double().parameters():
            square = parameter.dim() == 3
            parameter.data = (torch.eye(dim) if square else torch.ones(())).double().expand(parameter.shape).clone()
        torch.testing.assert_close(expert(embeddings), expected)
    copies = embeddings.repeat(1, 1, fields - 1)
    torch.testing.assert_close(FFM(fields, dim * (fields - 1))(copies), pairs)


def test_crossnet_mix_of_equal_experts_is_one_expert() -> None:
    one = CrossNetMix(3, 4, layers=2, low_rank=3, experts=1)
    three = CrossNetMix(3, 4, layers=2, low_rank=3, experts=3)
    randomise(one)
    for name in ("down", "inner", "up"):
        for target, source in zip(getattr(three, name), getattr(one, name), strict=True):
            target.data = source.data.repeat(3, 1, 1)
    for target, source in zip(three.bias, one.bias, strict=True):
        target.data = source.data
    embeddings = torch.randn(5, 3, 4)
    torch.testing.assert_close(three(embeddings), one(embeddings))


def test_output_of_crossnet_v1_is_a_multiple_of_its_input_without_biases() -> None:
    embeddings = torch.randn(6, 4, 3)
    output = CrossNetV1(4, 3, layers=3)(embeddings)
    ratio = output / embeddings.flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)


def test_gates_of_finalnet_and_finalmlp_start_neutral() -> None:
    embeddings = torch.randn(5, 4, 3)
    gated = expert_class("finalmlp")(4, 3, gate_units=[])
    # The context starts at 0 and so does every bias: 2 sigmoid(0) = 1.
    torch.testing.assert_close(gated.gates[0](embeddings).expand(5, 12), embeddings.flatten(1))
    final = expert_class("finalnet")(4, 3, field_gate=True)
    assert final.gate is not None
    torch.testing.assert_close(final.gate(embeddings.transpose(1, 2)), torch.ones(5, 3, 4))


@pytest.mark.parametrize(
    ("groups", "expected"), [(1, [0] * 7), (3, [0, 0, 0, 1, 1, 2, 2]), ([1, 0, 0, 1, 1, 0, 2], [1, 0, 0, 1, 1, 0, 2])]
)
def test_groups_are_neighbours_or_as_listed(groups: int | list[int], expected: list[int]) -> None:
    assert GwPFM(7, 6, groups=groups).group_F.tolist() == expected


@pytest.mark.parametrize("fields", [2, 3, 7])
def test_both_forms_of_picking_sides_have_the_same_values_and_gradients(
    fields: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of devices, where picking by index adds up gradients in no order, and of the CPU."""
    sides = Sides(fields)
    found = []
    for on_device in (False, True):
        monkeypatch.setattr("dmoe.nn.experts.pairs.adds_in_no_order", lambda _, now=on_device: now)
        x_BFD = torch.linspace(-1, 2, 4 * fields * 5, dtype=torch.float64).view(4, fields, 5).requires_grad_()
        first_BPD, second_BPD = sides.first(x_BFD[:, :-1]), sides.second(x_BFD)
        (first_BPD.sin() * second_BPD.square()).sum().backward()
        found.append((first_BPD, second_BPD, x_BFD.grad))
    pairs = [(first, second) for first in range(fields) for second in range(first + 1, fields)]
    assert torch.equal(found[0][0], x_BFD[:, [first for first, _ in pairs]])
    assert torch.equal(found[0][1], x_BFD[:, [second for _, second in pairs]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)
