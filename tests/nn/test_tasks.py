"""Models of several tasks and domains against the equations, and how their gradients part."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dmoe import DMoE
from dmoe.config.tasks import Owner
from dmoe.nn.experts import DNN

VOCABULARY = [5, 4, 3]
FIELDS, DIM = len(VOCABULARY), 2
DOMAIN = (1, [0, 2, 1, 0])  # the column, and the domain of each of its ids
TASK_0, TASK_1 = Owner("task", 0), Owner("task", 1)


def build(experts: int = 3, seed: int = 0, **options: Any) -> DMoE:
    torch.manual_seed(seed)
    options = {"tables": "shared", "expert_units": 4, "gate_units": 3, "tower_units": [3], "num_tasks": 2, **options}
    kinds = [DNN(FIELDS, DIM, hidden_units=[3]) for _ in range(experts)]
    model = DMoE(VOCABULARY, 0, DIM, experts=kinds, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.7)
    return model


def rows(count: int = 9, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, size, (count,), generator=generator) for size in VOCABULARY], 1)


def logits_of(model: DMoE, ids: Tensor) -> list[Tensor]:
    return [task.logit for task in model(ids).tasks]


def dense(module: Any, x: Tensor) -> Tensor:
    for linear in module.linears:
        x = (x @ linear.weight.T + linear.bias).clamp(min=0)
    return x


def by_equations(model: DMoE, ids: Tensor, mixes: Sequence[dict[int, bool]]) -> list[Tensor]:
    """Each head's logit; `mixes` has for each head the experts of its gate and whether their gradient is stopped."""
    tables = model.embedding(ids)
    outputs = []
    for expert, table in zip(model.experts, model.table_of_expert, strict=True):
        hidden = dense(expert.interaction.mlp, tables[table].flatten(1))
        outputs.append((hidden @ expert.align.weight.T + expert.align.bias).clamp(min=0))
    logits = []
    for number, mixed in enumerate(mixes):
        weights = torch.ones(len(ids), 1, dtype=torch.float64)
        if len(mixed) > 1:
            gate = model.gates[str(model.gate_of[number])]
            read = sum(tables[table].flatten(1) for table in model.gate_reads[number])
            scores = (dense(gate.hidden, read) @ gate.output.weight.T + gate.output.bias).exp()
            weights = scores / scores.sum(1, keepdim=True)
        mixture = torch.zeros(len(ids), 4, dtype=torch.float64)
        for place, (expert, stopped) in enumerate(mixed.items()):
            mixture = mixture + weights[:, [place]] * (outputs[expert].detach() if stopped else outputs[expert])
        logits.append(model.outputs[number](dense(model.towers[number], mixture)).squeeze(1))
    return logits


OWNERS = [None, TASK_0, TASK_1]
EVERY = {0: False, 1: False, 2: False}
CASES = {
    "mmoe": ({}, [EVERY, EVERY]),
    "one gate": ({"gates": "one", "gate_table": 0}, [EVERY, EVERY]),
    "linear gate": ({"gate_units": 0, "gate_table": 0}, [EVERY, EVERY]),
    "deep gate": ({"gate_units": [3, 2]}, [EVERY, EVERY]),
    "cgc": (
        {"owners": OWNERS, "gate_units": 0, "gate_table": 0},
        [{0: False, 1: False}, {0: False, 2: False}],
    ),
    "stem": (
        {"owners": OWNERS, "foreign": "stopped", "tables": [0, 1, 2], "gate_table": "owner+shared"},
        [{0: False, 1: False, 2: True}, {0: False, 1: True, 2: False}],
    ),
    "open": (
        {"owners": OWNERS, "foreign": "open", "tables": [0, 1, 2], "gate_table": "owner"},
        [EVERY, EVERY],
    ),
    "one expert each": ({"owners": [TASK_1, TASK_0, TASK_0], "tables": [0, 1, 1]}, [{1: False, 2: False}, {0: False}]),
    "domains": ({"heads": "domain", "num_tasks": 1, "domain": DOMAIN}, [EVERY] * 3),
    "tasks and domains": (
        {
            "heads": "task-and-domain",
            "domain": DOMAIN,
            "owners": [None, TASK_0, Owner("domain", 2)],
        },
        [
            {0: False, 1: False}, {0: False, 1: False}, EVERY, {0: False}, {0: False}, {0: False, 2: False},
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "mixes"), CASES.values(), ids=CASES)
def test_logits_and_gradients_equal_the_equations(options: dict[str, Any], mixes: list[dict[int, bool]]) -> None:
    model, ids = build(**options), rows()
    heads = by_equations(model, ids, mixes)
    domains = torch.tensor(DOMAIN[1])[ids[:, 1]]
    found = logits_of(model, ids)
    per_task = len(heads) // len(found)
    expected = [
        torch.stack([heads[task * per_task + (int(d) if per_task > 1 else 0)][row] for row, d in enumerate(domains)])
        for task in range(len(found))
    ]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(len(found), len(ids), dtype=torch.float64)

    def gradients(logits: list[Tensor]) -> list[Tensor]:
        loss = sum((logit * weight).sum() for logit, weight in zip(logits, weights, strict=True))
        every = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
        return [torch.zeros(()) if one is None else one for one in every]

    torch.testing.assert_close(gradients(found), gradients(expected), rtol=1e-10, atol=1e-12, check_dtype=False)


@pytest.mark.parametrize(("options", "mixes"), CASES.values(), ids=CASES)
def test_weights_are_over_all_experts_and_sum_to_one(options: dict[str, Any], mixes: list[dict[int, bool]]) -> None:
    model, ids = build(**options), rows()
    output = model.eval()(ids)
    domains = torch.tensor(DOMAIN[1])[ids[:, 1]]
    per_task = len(mixes) // len(output.tasks)
    for number, task in enumerate(output.tasks):
        assert task.gate_weights.shape == (len(ids), 3)
        torch.testing.assert_close(task.gate_weights.sum(1), torch.ones(len(ids), dtype=torch.float64))
        for row, domain in enumerate(domains):
            mixed = mixes[number * per_task + (int(domain) if per_task > 1 else 0)]
            assert {m for m in range(3) if task.gate_weights[row, m] > 0} == set(mixed)
    assert output.logit is output.tasks[0].logit
    assert output.gate_weights is output.tasks[0].gate_weights


def test_units_of_hidden_experts_weigh_nothing() -> None:
    model = build(owners=OWNERS, gate_options={"kind": "per-unit", "expert_units": 4}, gate_units=0).eval()
    first, second = model(rows()).tasks
    for task, hidden in ((first, 2), (second, 1)):
        assert not task.unit_weights[:, hidden].any()
        torch.testing.assert_close(task.unit_weights.sum(1), torch.ones(9, 4, dtype=torch.float64))
        torch.testing.assert_close(task.unit_weights.mean(2), task.gate_weights)


def test_one_task_has_the_names_and_draws_of_a_plain_model() -> None:
    def made(**options: Any) -> dict[str, Tensor]:
        torch.manual_seed(3)
        experts = [DNN(FIELDS, DIM, hidden_units=[3]) for _ in range(3)]
        return DMoE(VOCABULARY, 0, DIM, experts=experts, expert_units=4, tower_units=[3], **options).state_dict()

    plain = made()
    for options in (
        {"gates": "one"},
        {"owners": [TASK_0] * 3},
        {"owners": [None, TASK_0, None], "foreign": "stopped"},
        {"domain": (1, [0, 0, 0, 0]), "heads": "domain"},
        {"domain": DOMAIN},
    ):
        other = made(**options)
        assert list(plain) == list(other)
        assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_swapping_tasks_swaps_outputs_and_gradients() -> None:
    model, ids = build(owners=[None, TASK_0, TASK_1], tables=[0, 1, 2], gate_table="owner+shared"), rows()
    swapped = build(owners=[None, TASK_1, TASK_0], tables=[0, 1, 2], gate_table="owner+shared")
    state = model.state_dict()
    other = {"0": "1", "1": "0"}
    for name, value in list(state.items()):
        part, _, rest = name.partition(".")
        if part in ("gates", "towers", "outputs"):
            number, _, rest = rest.partition(".")
            swapped.state_dict()[f"{part}.{other[number]}.{rest}"].copy_(value)
        else:
            swapped.state_dict()[name].copy_(value)
    first, second = logits_of(model, ids)
    assert logits_of(swapped, ids)[0].equal(second)
    assert logits_of(swapped, ids)[1].equal(first)
    first.sum().backward()
    logits_of(swapped, ids)[1].sum().backward()
    assert model.embedding.banks[0].tables.weight.grad.equal(swapped.embedding.banks[0].tables.weight.grad)
    assert model.gates["0"].output.weight.grad.equal(swapped.gates["1"].output.weight.grad)


def test_equal_tasks_stay_equal() -> None:
    model, ids = build(), rows(50)
    labels = torch.randint(0, 2, (50,)).double()
    for part in (model.gates, model.towers, model.outputs):
        modules = list(part.values()) if isinstance(part, torch.nn.ModuleDict) else list(part)
        modules[1].load_state_dict(modules[0].state_dict())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(5):
        optimiser.zero_grad()
        sum(functional.binary_cross_entropy_with_logits(one, labels) for one in logits_of(model, ids)).backward()
        optimiser.step()
    first, second = logits_of(model, ids)
    assert first.equal(second)


@pytest.mark.parametrize("options", [options for options, _ in CASES.values()], ids=CASES)
def test_the_gradient_of_a_sum_is_the_sum_of_the_tasks_gradients(options: dict[str, Any]) -> None:
    model, ids = build(**options), rows()
    parts = list(model.parameters())

    def gradient(loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, parts, allow_unused=True)
        return [torch.zeros_like(part) if one is None else one for part, one in zip(parts, found, strict=True)]

    alone = [gradient(logits_of(model, ids)[task].square().sum()) for task in range(model.num_tasks)]
    together = gradient(sum(logit.square().sum() for logit in logits_of(model, ids)))
    for whole, *each in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, sum(each), rtol=1e-12, atol=1e-12)


def test_a_task_of_weight_zero_leaves_the_gradients_of_the_other_alone() -> None:
    both, ids = build(owners=OWNERS, foreign="open"), rows()
    alone = copy.deepcopy(both)
    first, second = logits_of(both, ids)
    (first.square().sum() + 0 * second.square().sum()).backward()
    logits_of(alone, ids)[0].square().sum().backward()
    for (name, one), other in zip(both.named_parameters(), alone.parameters(), strict=True):
        if name.startswith(("gates.1", "towers.1", "outputs.1")):
            assert not one.grad.any()
            assert other.grad is None
        else:
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 2])
def test_a_stop_changes_no_logit_and_keeps_a_task_off_the_others_parts(count: int) -> None:
    owners = [*[None] * count, *[TASK_0] * count, *[TASK_1] * count]
    tables = [0] * count + [1] * count + [2] * count
    shape = {"experts": 3 * count, "owners": owners, "tables": tables, "gate_table": "owner+shared"}
    stopped, free = build(**shape, foreign="stopped"), build(**shape, foreign="open")
    ids = rows()
    assert all(a.equal(b) for a, b in zip(logits_of(stopped, ids), logits_of(free, ids), strict=True))
    logits_of(stopped, ids)[0].square().sum().backward()
    logits_of(free, ids)[0].square().sum().backward()
    foreign = [f"experts.{number}." for number in range(2 * count, 3 * count)]
    foreign += ["gates.1.", "towers.1.", "outputs.1."]
    for name, parameter in stopped.named_parameters():
        if name.startswith(tuple(foreign)):
            assert parameter.grad is None or not parameter.grad.any(), name
    tables_of = slice(2 * DIM, 3 * DIM)
    assert not stopped.embedding.banks[0].tables.weight.grad[:, tables_of].any()
    assert free.embedding.banks[0].tables.weight.grad[:, tables_of].any()
    assert stopped.embedding.banks[0].tables.weight.grad[:, : 2 * DIM].any()


def test_rows_of_a_domain_leave_the_heads_of_others_alone() -> None:
    model, ids = build(heads="task-and-domain", domain=DOMAIN), rows()
    ids[:, 1] = 1  # domain 2
    sum(logit.sum() for logit in logits_of(model, ids)).backward()
    for part in (model.gates, model.towers, model.outputs):
        for name, parameter in part.named_parameters():
            used = int(name.split(".")[0]) % 3 == 2
            assert bool(parameter.grad.any()) is used, name


def test_every_head_of_a_task_starts_at_its_rate() -> None:
    model, ids = build(heads="task-and-domain", domain=DOMAIN), rows()
    with torch.no_grad():
        for output in model.outputs:
            output.weight.zero_()
    model.start_at(0.2, 0.01)
    for task, rate in zip(model(ids).tasks, (0.2, 0.01), strict=True):
        torch.testing.assert_close(torch.sigmoid(task.logit), torch.full((9,), rate, dtype=torch.float64))
    with pytest.raises(ValueError, match="a rate for each of 2 tasks, got 1"):
        model.start_at(0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": "domain", "domain": DOMAIN}, "are for one task; for 2 take 'task-and-domain'"),
        ({"owners": [TASK_0] * 3}, "a head of task 1, domain None has no expert"),
        ({"owners": OWNERS, "gate_table": "owner"}, None),
        ({"gate_table": "owner"}, "one table of each head's owner, got 0"),
        ({"owners": [TASK_0, TASK_0, TASK_1], "gate_table": "owner+shared"}, "needs an expert without an owner"),
        (
            {"owners": OWNERS, "tables": [0, 1, 2], "embedding_dim": [2, 3, 2], "gate_table": "owner+shared"},
            "must hold the same fields at one width",
        ),
        ({"owners": OWNERS[:2]}, "owners lists 2 entries for 3 experts"),
        ({"owners": OWNERS, "gates": "one"}, "gates 'one' needs every expert in every gate"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], message: str | None) -> None:
    options = {"tables": "shared", "num_tasks": 2, **options}
    widths = options.pop("embedding_dim", DIM)
    dims = [DIM] * 3 if isinstance(widths, int) else widths

    def made() -> DMoE:
        return DMoE(VOCABULARY, 0, widths, experts=[DNN(FIELDS, dim, hidden_units=[3]) for dim in dims], **options)

    if message is None:
        made()
        return
    with pytest.raises(ValueError, match=message):
        made()


def test_a_linear_gate_of_units_that_reads_the_same_of_all_rows_weighs_them_alike() -> None:
    """The gate of Crocodile (arXiv 2405.12706): softmax over experts of r W for each unit, no hidden layer."""
    model = build(gate_options={"kind": "per-unit", "expert_units": 4}, gate_units=0, gate_table="own").eval()
    gate = model.gates["0"]
    assert [name for name, _ in gate.named_parameters()] == ["output.weight", "output.bias"]
    units = model(rows()[:1].repeat(5, 1)).tasks[0].unit_weights
    torch.testing.assert_close(units, units[:1].expand_as(units), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(units.sum(1), torch.ones(5, 4, dtype=torch.float64))
