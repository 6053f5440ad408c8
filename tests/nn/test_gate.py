"""Every kind of gate and loss of balance against loops over rows and experts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dmoe.config.model import GateConfig, ModelConfig
from dmoe.decorrelation import CorrLoss
from dmoe.errors import ConfigError
from dmoe.nn.build import build_model
from dmoe.nn.experts import expert_class
from dmoe.nn.gate import Gate
from dmoe.nn.mixture import mix, mix_units
from dmoe.nn.model import DMoE
from dmoe.nn.objective import DecorrelationTerm, Objective
from dmoe.nn.task_losses import RowLabels
from dmoe.schema import CategoricalField, NumericField, Schema

FIELDS, DIM, EXPERTS = 3, 2, 4
KINDS: list[dict[str, Any]] = [
    {"kind": "softmax"},
    {"kind": "top-k", "k": 1, "balance": "switch"},
    {"kind": "top-k", "k": 3},
    {"kind": "noisy-top-k", "k": 2},
    {"kind": "per-unit", "expert_units": 5},
]
IDS = lambda options: "-".join(str(value) for value in options.values())  # noqa: E731


def gate_of(**options: Any) -> Gate:
    gate = Gate(FIELDS, DIM, EXPERTS, 6, **options).double()
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return gate


def rows(count: int = 7) -> Tensor:
    return torch.randn(count, FIELDS, DIM, dtype=torch.float64, requires_grad=True)


def logits_of(gate: Gate, embeddings: Tensor) -> list[Tensor]:
    """One list of logits a row, before noise."""
    hidden = [torch.relu(gate.hidden.linears[0](row.flatten())) for row in embeddings]
    return [gate.output(one) for one in hidden]


def softmax(values: list[Tensor]) -> list[Tensor]:
    powers = [torch.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def naive_weights(logits: Tensor, k: int | None) -> list[Tensor]:
    if k is None:
        return softmax(list(logits))
    kept = sorted(range(len(logits)), key=lambda m: -logits[m].item())[:k]
    shares = dict(zip(kept, softmax([logits[m] for m in kept]), strict=True))
    return [shares.get(m, torch.zeros((), dtype=logits.dtype)) for m in range(len(logits))]


@pytest.mark.parametrize("options", KINDS[:4], ids=IDS)
def test_weights_equal_loops(options: dict[str, Any]) -> None:
    gate, embeddings = gate_of(**options).eval(), rows()
    found = gate(embeddings)
    expected = torch.stack([torch.stack(naive_weights(row, gate.k)) for row in logits_of(gate, embeddings)])
    torch.testing.assert_close(found.weights_BM, expected)
    assert found.unit_weights_BMH is None
    assert found.loss is None
    aim = torch.randn(7, EXPERTS, dtype=torch.float64)
    leaves = [embeddings, gate.output.weight]
    ours, theirs = (torch.autograd.grad((w * aim).sum(), leaves) for w in (found.weights_BM, expected))
    torch.testing.assert_close(ours, theirs)
    assert bool((ours[1] != 0).any()) == (gate.k != 1)


def test_each_unit_has_a_softmax_over_the_experts() -> None:
    gate, embeddings = gate_of(kind="per-unit", expert_units=5), rows()
    outputs = [torch.randn(7, 5, dtype=torch.float64) for _ in range(EXPERTS)]
    found = gate(embeddings)
    assert found.unit_weights_BMH is not None
    mixed = mix_units(outputs, found.unit_weights_BMH)
    for b, logits in enumerate(logits_of(gate, embeddings)):
        for h in range(5):
            weights = softmax([logits[m * 5 + h] for m in range(EXPERTS)])
            torch.testing.assert_close(mixed[b, h], sum(w * outputs[m][b, h] for m, w in enumerate(weights)))
            torch.testing.assert_close(found.unit_weights_BMH[b, :, h], torch.stack(weights))
    torch.testing.assert_close(found.weights_BM, found.unit_weights_BMH.mean(2))
    torch.testing.assert_close(found.weights_BM.sum(1), torch.ones(7, dtype=torch.float64))


def test_equal_weights_of_all_units_are_the_plain_mixture() -> None:
    outputs, weights = [torch.randn(6, 5) for _ in range(3)], torch.rand(6, 3)
    torch.testing.assert_close(mix_units(outputs, weights.unsqueeze(2).expand(6, 3, 5)), mix(outputs, weights))


def cdf(value: float) -> float:
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


def squared_variation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values) / mean**2


@pytest.mark.parametrize("balance", ["importance", "importance-load", "switch"])
def test_balance_of_a_noisy_gate_equals_loops(balance: str) -> None:
    gate, embeddings = gate_of(kind="noisy-top-k", k=2, balance=balance, balance_weight=0.3), rows()
    torch.manual_seed(3)
    found = gate(embeddings)
    torch.manual_seed(3)
    noise = torch.randn(7, EXPERTS, dtype=torch.float64)
    plain, noisy, deviation, weights = [], [], [], []
    for b, logits in enumerate(logits_of(gate, embeddings)):
        logits = logits.detach()
        hidden = torch.relu(gate.hidden.linears[0](embeddings[b].flatten())).detach()
        deviation.append([math.log1p(math.exp(float(gate.noise.weight[m].detach() @ hidden))) for m in range(EXPERTS)])
        plain.append([float(logits[m]) for m in range(EXPERTS)])
        noisy.append([plain[b][m] + float(noise[b, m]) * deviation[b][m] for m in range(EXPERTS)])
        weights.append([float(w) for w in naive_weights(torch.tensor(noisy[b], dtype=torch.float64), 2)])
    torch.testing.assert_close(found.weights_BM, torch.tensor(weights, dtype=torch.float64))

    if balance == "switch":
        share = [sum(row[m] > 0 for row in weights) / 14 for m in range(EXPERTS)]
        powers = [[math.exp(value) for value in row] for row in plain]
        mean = [sum(row[m] / sum(row) for row in powers) / 7 for m in range(EXPERTS)]
        expected = EXPERTS * sum(f * p for f, p in zip(share, mean, strict=True))
    else:
        expected = squared_variation([sum(row[m] for row in weights) for m in range(EXPERTS)])
    if balance == "importance-load":
        loads = []
        for m in range(EXPERTS):
            load = 0.0
            for b in range(7):
                others = sorted((noisy[b][n] for n in range(EXPERTS) if n != m), reverse=True)
                load += cdf((plain[b][m] - others[1]) / deviation[b][m])
            loads.append(load)
        expected += squared_variation(loads)
    assert found.loss is not None
    assert found.loss.item() == pytest.approx(0.3 * expected, rel=1e-5)
    assert torch.autograd.grad(found.loss, gate.output.weight)[0].abs().max() > 0


def test_switch_loss_is_one_at_balance() -> None:
    gate = gate_of(kind="top-k", k=1, balance="switch", balance_weight=1.0)
    torch.nn.init.zeros_(gate.output.weight)
    gate.output.bias.data = torch.zeros_like(gate.output.bias)
    assert gate(rows()).loss.item() == pytest.approx(1.0)


def test_importance_is_zero_for_equal_sums() -> None:
    gate = gate_of(balance="importance", balance_weight=1.0)
    torch.nn.init.zeros_(gate.output.weight)
    torch.nn.init.zeros_(gate.output.bias)
    assert gate(rows()).loss.item() == pytest.approx(0.0, abs=1e-12)


def test_noise_is_drawn_while_training_only() -> None:
    gate, embeddings = gate_of(kind="noisy-top-k", k=3), rows()
    assert not torch.equal(gate(embeddings).weights_BM, gate(embeddings).weights_BM)
    gate.eval()
    assert torch.equal(gate(embeddings).weights_BM, gate(embeddings).weights_BM)


@pytest.mark.parametrize("options", KINDS, ids=IDS)
def test_dropped_experts_get_nothing_and_the_others_all(options: dict[str, Any]) -> None:
    gate, embeddings = gate_of(**options, dropout=0.6), rows(400)
    found = gate(embeddings)
    torch.testing.assert_close(found.weights_BM.sum(1), torch.ones(400, dtype=torch.float64))
    zero = (found.weights_BM == 0).double().mean()
    if options["kind"] in ("softmax", "per-unit"):
        # 0.6 of all, but for the rows that would have lost all four.
        assert abs(float(zero) - (0.6 - 0.6**4)) < 0.05
    gate.eval()
    steady = gate(embeddings).weights_BM
    if options["kind"] == "softmax":
        kept = found.weights_BM > 0
        expected = torch.where(kept, steady, 0.0)
        torch.testing.assert_close(found.weights_BM, expected / expected.sum(1, keepdim=True))


def test_a_gate_reads_the_named_fields_alone() -> None:
    schema = Schema(
        label="click",
        fields=(
            CategoricalField(name="site", vocabulary_size=5),
            CategoricalField(name="user", vocabulary_size=6),
            NumericField(name="price"),
        ),
    )
    experts = [{"kind": "crossnet", "layers": 1}, {"kind": "dnn", "hidden_units": [4]}]
    config = ModelConfig(embedding_dim=4, experts=experts, gate=GateConfig(fields=["price", "site"]))
    model = build_model(config, schema, seed=1).eval()
    assert model.gate is not None
    # Its own table holds these alone.
    assert model.embedding.fields_of_table[-1] == (0, 2)
    for table in model.embedding.parameters():
        torch.nn.init.normal_(table)
    ids, price = torch.tensor([[1, 2], [1, 3], [4, 3]]), torch.tensor([[0.5], [0.5], [0.5]])
    weights = model(ids, price).gate_weights.detach()
    torch.testing.assert_close(weights[0], weights[1])
    assert (weights[0] - weights[2]).abs().max().item() > 1e-3
    unknown = ModelConfig(embedding_dim=4, experts=experts, gate=GateConfig(fields=["sites"]))
    with pytest.raises(
        ConfigError, match=r"model.gate.fields: no field or group 'sites' in the data; did you mean 'site'"
    ):
        build_model(unknown, schema, seed=1)


@pytest.mark.parametrize("options", KINDS, ids=IDS)
def test_the_losses_see_every_kind(options: dict[str, Any]) -> None:
    torch.manual_seed(2)
    if "k" in options:
        options = {**options, "balance": "switch", "balance_weight": 1.0}
    model = DMoE(
        [5, 6],
        experts=[expert_class("dnn")(2, 16, hidden_units=[6]) for _ in range(4)],
        expert_units=5,
        gate_options=options,
    )
    for table in model.embedding.parameters():
        torch.nn.init.normal_(table)
    output = model(torch.randint(0, 5, (9, 2)))
    labels = torch.randint(0, 2, (9,)).float()
    term = DecorrelationTerm(CorrLoss(), "output", 2.0)
    found = Objective([term])(output, RowLabels(labels[:, None]))
    total, logloss, decorrelation = found.total, found.logloss, found.decorrelation
    torch.testing.assert_close(decorrelation, CorrLoss()(output.expert_outputs) * 2 / 8)
    torch.testing.assert_close(logloss, functional.binary_cross_entropy_with_logits(output.logit, labels))
    added = 0.0 if output.gate_loss is None else output.gate_loss
    assert (output.gate_loss is not None) == ("balance" in options)
    torch.testing.assert_close(total, logloss + decorrelation + added)
    assert output.gate_weights.shape == (9, 4)
    assert (output.unit_weights is not None) == (options["kind"] == "per-unit")
    total.backward()
    assert model.gate is not None
    assert float(model.gate.output.weight.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "topk"}, r"kind must be one of .*did you mean 'top-k'"),
        ({"kind": "top-k"}, r"a top-k gate needs k"),
        ({"k": 2}, r"a softmax gate has no k"),
        ({"kind": "top-k", "k": 1}, r"k 1 gives every row the weight 1, so nothing would train the gate"),
        ({"kind": "noisy-top-k", "k": 1, "balance": "importance"}, r"nothing would train the gate"),
        ({"kind": "top-k", "k": 5}, r"k must be from 1 to 4 of 4 experts, got 5"),
        ({"kind": "noisy-top-k", "k": 4, "balance": "importance-load"}, r"k must be from 1 to 3 of 4"),
        ({"balance": "switch"}, r"balance of a softmax gate must be importance, got 'switch'"),
        ({"kind": "per-unit", "expert_units": 5, "balance": "importance"}, r"per-unit gate must be left out"),
        ({"kind": "per-unit"}, r"expert_units is for a per-unit gate, which needs it"),
        ({"dropout": 1.0}, r"dropout must be a number of at least 0 and below 1"),
        ({"fields": [0, 3]}, r"fields must hold different numbers from 0 to 2, got \[0, 3\]"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gate(FIELDS, DIM, EXPERTS, **options)
