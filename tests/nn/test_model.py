"""D-MoE against the paper's equations, written again as loops over rows, fields, units and experts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmoe import CorrLoss, DMoE
from dmoe.nn.experts import DNN, FM, CrossNet
from dmoe.nn.experts.base import Expert
from dmoe.nn.objective import DecorrelationTerm, Objective
from dmoe.nn.task_losses import RowLabels

VOCABULARY = [5, 3]


def build(tables="per-expert", experts=2, gate_table="own", numeric=1, dim=2) -> DMoE:
    fields = len(VOCABULARY) + numeric
    kinds: list[Expert] = [
        CrossNet(fields, dim, layers=2),
        DNN(fields, dim, hidden_units=[3]),
        FM(fields, dim),
    ]
    model = DMoE(
        VOCABULARY,
        numeric,
        dim,
        experts=kinds[:experts],
        tables=tables,
        expert_units=4,
        gate_units=3,
        gate_table=gate_table,
        tower_units=[3],
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.7)
    return model


def rows(count: int, numeric: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.stack([torch.randint(0, size, (count,)) for size in VOCABULARY], 1)
    return ids, torch.randn(count, numeric, dtype=torch.float64), torch.randint(0, 2, (count,)).double()


def table_shape(model: DMoE) -> torch.Size:
    (tables,) = model.embedding.row_tables()
    return tables.weight.shape


def linear(weight: Tensor, bias: Tensor, x: list[Tensor]) -> list[Tensor]:
    return [sum((w * v for w, v in zip(row, x, strict=True)), start=b) for row, b in zip(weight, bias, strict=True)]


def relu(x: list[Tensor]) -> list[Tensor]:
    return [value if value > 0 else value * 0 for value in x]


def linears(module: torch.nn.Module) -> list[torch.nn.Linear]:
    return [one for one in module.modules() if isinstance(one, torch.nn.Linear)]


def naive_embedding(model: DMoE, table: int, ids: Tensor, numeric: Tensor) -> list[list[Tensor]]:
    """Eq. 1, 6: a list of F vectors, categorical fields first."""
    widths = model.embedding.widths
    (tables,) = model.embedding.row_tables()
    start = sum(widths[:table])
    columns = range(start, start + widths[table])
    offset, vectors = 0, []
    for size, value in zip(VOCABULARY, ids.tolist(), strict=True):
        vectors.append([tables.weight[offset + value, column] for column in columns])
        offset += size
    for index, value in enumerate(numeric):
        vectors.append([value * tables.numeric_weight[index, column] for column in columns])
    return vectors


def naive_logit(model: DMoE, ids: Tensor, numeric: Tensor) -> tuple[Tensor, list[list[Tensor]], list[Tensor]]:
    """Eq. 6, 7, 9, 10, 11 for one row; the interactions themselves have their own parity tests."""
    outputs = []
    for expert, table in zip(model.experts, model.table_of_expert, strict=True):
        vectors = naive_embedding(model, table, ids, numeric)
        stacked = torch.stack([torch.stack(vector) for vector in vectors])[None]
        raw = list(expert.interaction(stacked)[0])
        outputs.append(relu(linear(expert.align.weight, expert.align.bias, raw)))
    if model.gate is None:
        gate = [torch.ones((), dtype=torch.float64)]
    else:
        flat = [value for vector in naive_embedding(model, model.gate_reads[0][0], ids, numeric) for value in vector]
        hidden, out = linears(model.gate)
        scores = linear(out.weight, out.bias, relu(linear(hidden.weight, hidden.bias, flat)))
        total = sum(score.exp() for score in scores)
        gate = [score.exp() / total for score in scores]
    mixed = [sum(g * output[unit] for g, output in zip(gate, outputs, strict=True)) for unit in range(4)]
    (layer,) = linears(model.tower)
    tower = relu(linear(layer.weight, layer.bias, mixed))
    return linear(model.head.weight, model.head.bias, tower)[0], outputs, gate


def naive_loss(model: DMoE, ids: Tensor, numeric: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Eq. 12 with eq. 8 (Frobenius) for every pair, over scalar entries."""
    found = [naive_logit(model, one, numbers) for one, numbers in zip(ids, numeric, strict=True)]
    count = len(found)
    bce = (
        sum(
            -(label * torch.log(1 / (1 + torch.exp(-logit))) + (1 - label) * torch.log(1 - 1 / (1 + torch.exp(-logit))))
            for (logit, _, _), label in zip(found, labels, strict=True)
        )
        / count
    )
    columns = [
        [[output[expert][unit] for _, output, _ in found] for unit in range(4)] for expert in range(model.num_experts)
    ]

    def standardise(column: list[Tensor]) -> list[Tensor]:
        mean = sum(column) / count
        sigma = (sum((value - mean) ** 2 for value in column) / (count - 1)).sqrt()
        return [(value - mean) / sigma for value in column]

    standard = [[standardise(column) for column in expert] for expert in columns]
    corr = torch.zeros((), dtype=torch.float64)
    for first in range(model.num_experts):
        for second in range(first + 1, model.num_experts):
            squares = sum(
                sum(a * b for a, b in zip(x, y, strict=True)) ** 2 for x in standard[first] for y in standard[second]
            )
            corr = corr + squares.sqrt() / 4**2
    return bce + alpha / (count - 1) * corr


@pytest.mark.parametrize(
    ("tables", "experts", "gate_table"),
    [
        ("per-expert", 2, "own"),
        ("shared", 2, "own"),
        ([0, 1, 0], 3, "own"),
        ("per-expert", 2, 1),
        ("shared", 1, "own"),
    ],
)
def test_logit_outputs_and_gate_equal_the_loops(tables, experts, gate_table):
    model = build(tables, experts, gate_table)
    ids, numeric, _ = rows(5)
    output = model(ids, numeric)
    for index in range(5):
        logit, outputs, gate = naive_logit(model, ids[index], numeric[index])
        torch.testing.assert_close(output.logit[index], logit, rtol=1e-10, atol=1e-10)
        for expert in range(experts):
            expected = torch.stack(outputs[expert])
            torch.testing.assert_close(output.expert_outputs[expert][index], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(output.gate_weights[index], torch.stack(gate), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_every_gradient_equal_the_loops(dtype):
    model = build("per-expert", 3)
    ids, numeric, labels = rows(12)
    # Every unit alive with some spread: eq. 8 is undefined for a constant column, which the loops have no word for.
    with torch.no_grad():
        for expert in model.experts:
            expert.align.bias.fill_(4.0)
    want = naive_loss(model, ids, numeric, labels, alpha=3.0)
    expected = torch.autograd.grad(want, list(model.parameters()))
    model = model.to(dtype)
    term = DecorrelationTerm(CorrLoss(eps=0.0), "output", alpha=3.0)
    total = Objective([term])(model(ids, numeric.to(dtype)), RowLabels(labels.to(dtype)[:, None])).total
    found = torch.autograd.grad(total, list(model.parameters()))
    tolerance = 1e-10 if dtype is torch.float64 else 2e-5
    torch.testing.assert_close(total.double(), want, rtol=tolerance, atol=tolerance)
    for got, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), reference, rtol=tolerance, atol=tolerance)


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 2), st.integers(0, 10_000))
def test_permuting_rows_permutes_outputs_and_the_gate_sums_to_one(experts, count, numeric, seed):
    torch.manual_seed(seed)
    model = build("per-expert", experts, numeric=numeric)
    ids, numbers, _ = rows(count, numeric)
    order = torch.randperm(count)
    output, permuted = model(ids, numbers), model(ids[order], numbers[order])
    torch.testing.assert_close(output.logit[order], permuted.logit)
    torch.testing.assert_close(output.gate_weights.sum(1), torch.ones(count, dtype=torch.float64))


def test_equal_experts_score_as_one_of_them():
    model = build("shared", 2)
    twin = DMoE(
        VOCABULARY,
        1,
        2,
        experts=[CrossNet(3, 2, layers=2), CrossNet(3, 2, layers=2)],
        tables="shared",
        expert_units=4,
        gate_units=3,
        tower_units=[3],
    ).double()
    twin.experts[0].load_state_dict(model.experts[0].state_dict())
    twin.experts[1].load_state_dict(model.experts[0].state_dict())
    ids, numeric, _ = rows(6)
    output = twin(ids, numeric)
    torch.testing.assert_close(output.logit, twin.heads()[0].predict(output.expert_outputs[0]))


def test_one_expert_has_neither_gate_nor_gating_table():
    model = build("shared", 1)
    assert model.gate is None
    assert table_shape(model) == (sum(VOCABULARY), 2)
    assert not [name for name, _ in model.named_parameters() if name.startswith("gate")]


def test_tables_set_the_width_of_the_one_wide_parameter():
    assert table_shape(build("shared", 2))[1] == 2 * 2
    assert table_shape(build("per-expert", 2))[1] == 3 * 2
    assert table_shape(build("per-expert", 2, gate_table=0))[1] == 2 * 2
    assert table_shape(build([0, 1, 0], 3))[1] == 3 * 2


def test_intermediate_layers_are_paired_by_depth():
    model = DMoE(
        VOCABULARY,
        1,
        2,
        experts=[CrossNet(3, 2, layers=3), CrossNet(3, 2, layers=2)],
        expert_units=4,
        tower_units=[3],
    )
    output = model(*rows(4)[:1], torch.randn(4, 1))
    assert [len(group) for group in output.layers("intermediate")] == [2, 2]
    torch.testing.assert_close(output.layers("intermediate")[1][1], output.intermediates[1][1])
    assert output.layers("input")[0][1].shape == (4, 6)


def test_warm_up_grows_linearly_and_one_row_contributes_nothing():
    model = build()
    ids, numeric, _ = rows(8)
    output = model(ids, numeric)
    full = DecorrelationTerm(CorrLoss(), "output", alpha=2.0)(output, step=0)
    ramped = DecorrelationTerm(CorrLoss(), "output", alpha=2.0, warmup_steps=4)
    late = DecorrelationTerm(CorrLoss(), "output", alpha=2.0, start_step=10, warmup_steps=4)
    assert [late.alpha_at(step) for step in (0, 9, 10, 11, 13, 99)] == [0.0, 0.0, 0.5, 1.0, 2.0, 2.0]
    assert late(output, step=9) == 0
    torch.testing.assert_close(ramped(output, step=0), full / 4)
    torch.testing.assert_close(ramped(output, step=9), full)
    assert ramped(model(ids[:1], numeric[:1]), step=9) == 0
    assert math.isclose(full.item(), 2.0 / 7 * CorrLoss()(output.expert_outputs).item(), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experts": []}, "at least one expert"),
        ({"experts": [FM(3, 2)], "tables": [1]}, "number the tables"),
        ({"experts": [FM(3, 2)], "tables": [0, 1]}, "2 tables for 1 experts"),
        ({"experts": [FM(4, 2)]}, "num_fields=4, but the model gives it num_fields=3"),
        ({"experts": [FM(3, 5)]}, "embedding_dim=5, but the model gives it embedding_dim=2"),
        ({"experts": [FM(3, 2), FM(3, 2)], "gate_table": 2}, "gate_table"),
    ],
)
def test_parts_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DMoE(VOCABULARY, 1, 2, **arguments)
