"""Levels of experts: against the equations of CGC and STEM as loops over numpy rows, values and gradients.

In the loops a stopped output is a number that was computed before: central differences then see no change of it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dmoe import DMoE
from dmoe.config.tasks import Owner
from dmoe.nn.experts import DNN
from dmoe.nn.levels import LevelPlan

Array = NDArray[np.float64]
Outputs = list[list[list[Array]]]  # by row, level and expert

VOCABULARY = [3, 2]
FIELDS, DIM, UNITS = len(VOCABULARY), 2, 3
OWNERS = [None, Owner("task", 0), Owner("task", 1)]
IDS = np.array([[0, 1], [2, 0], [1, 1], [2, 1]])


def build(levels: int, foreign: str, *, stem: bool, owners: Any = OWNERS, **options: Any) -> DMoE:
    torch.manual_seed(5)
    model = DMoE(
        VOCABULARY,
        0,
        DIM,
        experts=[DNN(FIELDS, DIM, hidden_units=[3]) for _ in owners],
        expert_units=UNITS,
        gate_units=[2] if stem else 0,
        gate_table="owner+shared" if stem else 0,
        tables=[0, 1, 2] if stem else "shared",
        tower_units=[2],
        num_tasks=2,
        owners=owners,
        foreign=foreign,
        levels=[
            LevelPlan([DNN(1, UNITS, hidden_units=[2]) for _ in owners], owners, UNITS, [2] if stem else 0)
            for _ in range(levels - 1)
        ],
        **options,
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.7)
    return model


def dense(weights: Mapping[str, Array], prefix: str, x: Array) -> Array:
    for layer in range(9):
        if f"{prefix}.linears.{layer}.weight" not in weights:
            break
        x = np.maximum(weights[f"{prefix}.linears.{layer}.weight"] @ x + weights[f"{prefix}.linears.{layer}.bias"], 0)
    return x


def affine(weights: Mapping[str, Array], prefix: str, x: Array) -> Array:
    return weights[f"{prefix}.weight"] @ x + weights[f"{prefix}.bias"]


def mixture(weights: Mapping[str, Array], prefix: str, read: Array, outputs: list[Array]) -> Array:
    if len(outputs) == 1:
        return outputs[0]
    scores = np.exp(affine(weights, f"{prefix}.output", dense(weights, f"{prefix}.hidden", read)))
    return sum(score / scores.sum() * output for score, output in zip(scores, outputs, strict=True))


def loop(
    weights: Mapping[str, Array],
    levels: int,
    foreign: str,
    *,
    stem: bool,
    frozen: list[list[list[Array]]] | None = None,
) -> tuple[Array, list[list[list[Array]]]]:
    """Logits (rows, tasks), and every expert's output by row and level; `frozen` has those that a stop holds."""
    logits, kept = [], []
    for row, ids in enumerate(IDS):
        table = weights["embedding.banks.0.tables.weight"]
        embedded = np.concatenate([table[ids[0]][None], table[VOCABULARY[0] + ids[1]][None]])
        parts = [embedded[:, DIM * t : DIM * (t + 1)].ravel() for t in range(3 if stem else 1)]
        shared, own = (parts[0], parts[1:]) if stem else (parts[0], [parts[0]] * 2)
        streams = [*own, shared]
        row_outputs = []
        for level in range(levels):
            name = "" if level == 0 else f"levels.{level - 1}."
            outputs = []
            for number, read in enumerate([streams[2], streams[0], streams[1]]):
                hidden = dense(weights, f"{name}experts.{number}.interaction.mlp", read)
                outputs.append(np.maximum(affine(weights, f"{name}experts.{number}.align", hidden), 0))
            row_outputs.append(outputs)
            held = outputs if frozen is None else frozen[row][level]
            above = []
            for task in range(2):
                if foreign == "hidden":
                    mixed = [outputs[0], outputs[1 + task]]
                else:
                    mixed = [outputs[m] if m in (0, 1 + task) or foreign == "open" else held[m] for m in range(3)]
                read = streams[task] + streams[2] if stem else streams[task]
                above.append(mixture(weights, f"{name}gates.{task}", read, mixed))
            if level + 1 < levels:
                above.append(mixture(weights, f"{name}gates.2", streams[2], outputs))
            streams = above
        kept.append(row_outputs)
        logits.append([affine(weights, f"outputs.{t}", dense(weights, f"towers.{t}", streams[t]))[0] for t in range(2)])
    return np.array(logits), kept


CASES = [
    (1, "hidden", False), (2, "hidden", False), (3, "hidden", False),
    (1, "stopped", True), (2, "stopped", True), (2, "open", True),
]  # fmt: skip


@pytest.mark.parametrize(("levels", "foreign", "stem"), CASES)
def test_logits_and_gradients_equal_the_loops(levels: int, foreign: str, stem: bool) -> None:
    model = build(levels, foreign, stem=stem)
    weights = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    logits, kept = loop(weights, levels, foreign, stem=stem)
    found = model(torch.from_numpy(IDS)).tasks
    for task in range(2):
        np.testing.assert_allclose(found[task].logit.detach().numpy(), logits[:, task], rtol=1e-12, atol=1e-12)
    wanted = np.random.default_rng(0).normal(size=logits.shape)
    sum((one.logit * torch.from_numpy(wanted[:, task])).sum() for task, one in enumerate(found)).backward()
    step = 1e-6
    for name, parameter in model.named_parameters():
        gradient = np.zeros_like(weights[name]) if parameter.grad is None else parameter.grad.numpy()
        for place in np.ndindex(weights[name].shape):
            sides = []
            for sign in (1, -1):
                moved = weights | {name: weights[name].copy()}
                moved[name][place] += sign * step
                sides.append((loop(moved, levels, foreign, stem=stem, frozen=kept)[0] * wanted).sum())
            slope = (sides[0] - sides[1]) / (2 * step)
            assert gradient[place] == pytest.approx(slope, rel=1e-5, abs=1e-7), f"{name}{place}"


def test_two_levels_reach_another_tasks_table_through_nobodys_stream_alone() -> None:
    model = build(2, "stopped", stem=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()  # so that no unit is dead
    ids = torch.from_numpy(IDS)
    table = model.embedding.banks[0].tables.weight
    (reached,) = torch.autograd.grad(model(ids).tasks[0].logit.square().sum(), table)
    assert reached[:, 2 * DIM :].any()
    with torch.no_grad():  # nobody's stream now mixes what task 1 owns with no weight
        model.gates["2"].output.weight.zero_()
        model.gates["2"].output.bias.copy_(torch.tensor([0.0, 0.0, -1e6]))
    (reached,) = torch.autograd.grad(model(ids).tasks[0].logit.square().sum(), table)
    assert not reached[:, 2 * DIM :].any()
    assert reached[:, DIM : 2 * DIM].any()


def test_the_last_level_has_no_stream_of_nobody_and_every_part_is_used() -> None:
    model = build(3, "hidden", stem=False)
    assert [sorted(one.gates) for one in (model, *model.levels)] == [["0", "1", "2"], ["0", "1", "2"], ["0", "1"]]
    sum(task.logit.sum() for task in model(torch.from_numpy(IDS)).tasks).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    owned = build(2, "hidden", stem=False, owners=[Owner("task", 0), Owner("task", 0), Owner("task", 1)])
    assert sorted(owned.gates) == ["0"]  # nobody reads a third stream, and task 1 has one expert


def test_one_task_can_have_levels() -> None:
    experts = [DNN(FIELDS, DIM, hidden_units=[3]) for _ in range(2)]
    plan = LevelPlan([DNN(1, UNITS, hidden_units=[2]) for _ in range(3)], [None] * 3, 4)
    model = DMoE(VOCABULARY, 0, DIM, experts=experts, expert_units=UNITS, tower_units=[2], levels=[plan])
    output = model(torch.from_numpy(IDS))
    assert output.gate_weights.shape == (4, 3)
    assert [len(level) for level in output.levels] == [2, 3]
    assert output.levels[1] is output.expert_outputs
    assert output.layers("levels") == [*output.levels]
    assert model.num_experts == 3


def test_an_owner_needs_one_stream() -> None:
    with pytest.raises(ValueError, match="task 0 owns needs one stream of it, got 2"):
        build(2, "open", stem=False, heads="task-and-domain", domain=(1, [0, 1]))
    plan = LevelPlan([DNN(1, UNITS + 1, hidden_units=[2])], [None], 4)
    with pytest.raises(ValueError, match="must read one field of width 3"):
        DMoE(VOCABULARY, 0, DIM, experts=[DNN(FIELDS, DIM)], expert_units=UNITS, levels=[plan])
