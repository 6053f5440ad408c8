"""Scales of embeddings and towers (PEPNet) and towers that domains share (STAR), against their equations."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dmoe.config.run import load_config
from dmoe.errors import ConfigError
from dmoe.nn.build import build_model
from dmoe.nn.model import DMoE
from dmoe.schema import CategoricalField, Domain, NumericField, Schema, Task

SCHEMA = Schema(
    label="click",
    fields=(
        *(CategoricalField(name=name, vocabulary_size=5) for name in ("user", "tab", "item")),
        NumericField(name="n"),
    ),
    labels=(Task(name="click"), Task(name="like")),
    domain=Domain(field="tab", names=("x", "y"), of_id=(0, 1, 0, 1, 0)),
)
ONE = SCHEMA.model_copy(update={"labels": (), "domain": None})
SMALL = ["model.expert_units=4", "model.tower_units=[3, 2]", "model.embedding_dim=2"]
TWO_EXPERTS = "model.experts=[{kind: dnn, hidden_units: [3]}, {kind: crossnet, layers: 1}]"
TOWER = "model.tower_scale={fields: [user, tab], units: 3}"
EMBEDDING = "model.embedding_scale={fields: [tab], units: 3}"
STAR = "model.domain_towers=star"
DOMAINS = "model.heads=task-and-domain"


def made(*overrides: str, schema: Schema = SCHEMA, shared: bool = True) -> DMoE:
    tables = ["model.tables=shared", "model.gate.table=0"] if shared else []
    config = load_config(None, [*SMALL, TWO_EXPERTS, *tables, *overrides])
    return build_model(config.model, schema, seed=3)


def drawn(model: DMoE) -> DMoE:
    torch.manual_seed(4)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.7)
    return model


def rows(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 5, (count, 3), generator=generator), torch.randn(count, 1, generator=generator)


@pytest.mark.parametrize("schema", [SCHEMA, ONE], ids=["two tasks", "one task"])
@pytest.mark.parametrize("overrides", [[TOWER], [EMBEDDING], [TOWER, EMBEDDING]], ids=str)
def test_a_model_starts_as_it_would_without_scales(overrides: list[str], schema: Schema) -> None:
    plain, scaled = made(schema=schema), made(*overrides, schema=schema)
    states = plain.state_dict(), scaled.state_dict()
    assert all(states[1][name].equal(value) for name, value in states[0].items())
    assert len(states[1]) > len(states[0])
    for one, other in zip(plain(*rows()).tasks, scaled(*rows()).tasks, strict=True):
        assert one.logit.equal(other.logit)
    sum(task.logit.sum() for task in scaled(*rows()).tasks).backward()
    scales = [scaled.embedding_scales] if overrides == [EMBEDDING] else [scaled.tower_scales]
    assert all(parameter.grad is not None for part in scales for parameter in part.parameters())


def gate_unit(scale: Any, embeddings: Tensor, places: list[int]) -> Tensor:
    read = torch.cat([embeddings[:, places].flatten(1), embeddings.detach().flatten(1)], 1)
    hidden = (read @ scale.hidden.weight.T + scale.hidden.bias).clamp(min=0)
    return 2 / (1 + torch.exp(-(hidden @ scale.output.weight.T + scale.output.bias)))


@pytest.mark.parametrize("which", [[TOWER], [EMBEDDING], [TOWER, EMBEDDING]], ids=str)
def test_scales_equal_the_equations_with_their_gradients(which: list[str]) -> None:
    model, (ids, numbers) = drawn(made(*which)), rows()
    numbers = numbers.double()
    (embedded,) = model.embedding(ids, numbers)
    if EMBEDDING in which:
        embedded = embedded * gate_unit(model.embedding_scales["0"], embedded, [1]).view_as(embedded)
    outputs = [expert(embedded)[0] for expert in model.experts]
    expected = []
    for task in range(2):
        weights = model.gates[str(task)](embedded).weights_BM
        hidden = weights[:, :1] * outputs[0] + weights[:, 1:] * outputs[1]
        scale = torch.ones(8, 9, dtype=torch.float64)
        if TOWER in which:
            scale = gate_unit(model.tower_scales[task], embedded, [0, 1])
        hidden = hidden * scale[:, :4]
        for linear, own in zip(model.towers[task].linears, (scale[:, 4:7], scale[:, 7:]), strict=True):
            hidden = (hidden @ linear.weight.T + linear.bias).clamp(min=0) * own
        expected.append(model.outputs[task](hidden).squeeze(1))
    found = [task.logit for task in model(ids, numbers).tasks]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parts = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [
        torch.autograd.grad(sum(logit.square().sum() for logit in logits), parts, allow_unused=True)
        for logits in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_star_towers_are_products_with_what_all_domains_of_a_task_share() -> None:
    model, (ids, numbers) = drawn(made(STAR, DOMAINS)), rows()
    output = model(ids, numbers.double())
    assert len(model.shared_towers) == 2
    assert len(model.towers) == 4
    domains = torch.tensor(SCHEMA.domain.of_id)[ids[:, 1]]
    for task in range(2):
        for row, domain in enumerate(domains):
            head = 2 * task + int(domain)
            weights = model.heads()[head].stream.weigh(model.trunk(ids, numbers.double())).weights_BM[row]
            hidden = sum(weight * one[row] for weight, one in zip(weights, output.expert_outputs, strict=True))
            for own, shared in zip(model.towers[head].linears, model.shared_towers[task].linears, strict=True):
                hidden = ((own.weight * shared.weight) @ hidden + own.bias + shared.bias).clamp(min=0)
            own, shared = model.outputs[head], model.shared_outputs[task]
            logit = (own.weight * shared.weight) @ hidden + own.bias + shared.bias
            torch.testing.assert_close(output.tasks[task].logit[row], logit[0], rtol=1e-11, atol=1e-12)


def test_star_towers_of_all_domains_start_as_one() -> None:
    model = made(STAR, DOMAINS)
    heads = model.heads()
    mixed = torch.randn(8, 4)
    assert heads[0].predict(mixed).equal(heads[1].predict(mixed))
    assert not heads[0].predict(mixed).equal(heads[2].predict(mixed))
    model.start_at(0.1, 0.4)
    with torch.no_grad():
        model.shared_outputs[0].weight.zero_()
    torch.testing.assert_close(torch.sigmoid(heads[1].predict(mixed)), torch.full((8,), 0.1))
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names))
    assert sum("shared_towers" in name for name in names) == 8


def test_one_domain_or_one_head_has_plain_towers() -> None:
    one = SCHEMA.model_copy(update={"domain": Domain(field="tab", names=("x",), of_id=(0,) * 5)})
    assert list(made(STAR, DOMAINS, schema=one).state_dict()) == list(made(DOMAINS, schema=one).state_dict())


def test_predict_takes_the_rows_own_scales_and_domains() -> None:
    model, (ids, numbers) = drawn(made(TOWER, STAR, DOMAINS)), rows()
    output = model(ids, numbers.double())
    weights = output.tasks[1].gate_weights
    mixed = sum(weights[:, [m]] * one for m, one in enumerate(output.expert_outputs))
    torch.testing.assert_close(model.predict(mixed, output, task=1), output.tasks[1].logit, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.tower_scale={fields: [usr]}"], "model.tower_scale.fields: no field or group 'usr'"),
        (["model.tower_scale={fields: []}"], "model.tower_scale.fields"),
        (["model.tower_scale={fields: [user], units: 0}"], "model.tower_scale.units"),
        ([STAR], "'domain_towers' star needs a head for each domain"),
        (
            [
                EMBEDDING,
                "model.tables=per-expert",
                "model.gate.table=own",
                "model.experts=[{kind: dnn, fields: [item]}]",
            ],
            "a scale is to read field 1, which table 0 does not hold",
        ),
        (["model.form=benchmark", "model.experts=[{kind: fm}]", TOWER], "has no use in form: benchmark"),
    ],
)
def test_what_does_not_fit_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(load_config(None, [*overrides]).model, SCHEMA, seed=0)
