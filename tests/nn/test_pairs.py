"""Which pairs of experts are de-correlated, at which levels, and within domains."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmoe.config.run import load_config
from dmoe.decorrelation import BarlowTwinsLoss, CorrLoss, CovLoss, VICRegLoss
from dmoe.decorrelation.domains import centred_in_domains
from dmoe.errors import ConfigError
from dmoe.nn.build import build_model, build_terms
from dmoe.nn.objective import DecorrelationTerm
from dmoe.schema import CategoricalField, Domain, Schema, Task

SCHEMA = Schema(
    label="click",
    fields=tuple(CategoricalField(name=name, vocabulary_size=6) for name in ("a", "tab", "b")),
    labels=(Task(name="click"), Task(name="like")),
    domain=Domain(field="tab", names=("x", "y"), of_id=(0, 1, 0, 1, 0, 0)),
)
SMALL = ["model.expert_units=4", "model.tower_units=[3]", "model.embedding_dim=3"]
ALL_LOSSES = [CorrLoss(), CorrLoss(norm="spectral"), CovLoss("l1"), CovLoss("l2"), BarlowTwinsLoss()]


def outputs_of(rows: int, widths: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(rows, width, dtype=torch.float64, requires_grad=True) for width in widths]


@pytest.mark.parametrize("rows", [4, 200], ids=["by rows", "by columns"])
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=repr)
def test_a_loss_of_pairs_is_the_sum_of_its_pairs(loss: Any, rows: int) -> None:
    outputs = outputs_of(rows, (3, 5, 4, 2))
    pairs = [(0, 1), (0, 3), (2, 3)]
    found = loss(outputs, pairs)
    expected = sum(loss([outputs[p], outputs[q]]) for p, q in pairs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(one, outputs, retain_graph=True) for one in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10)
    assert loss(outputs, pairs[::-1] + pairs).equal(found)  # each pair once
    assert loss(outputs, list(combinations(range(4), 2))).equal(loss(outputs))


def test_many_narrow_experts_have_the_gradient_of_their_pairs() -> None:
    outputs, loss = outputs_of(64, (2,) * 6), CorrLoss()
    pairs = [(0, 5), (1, 2), (3, 4)]
    every = sum(loss([outputs[p], outputs[q]]) for p, q in pairs)
    torch.testing.assert_close(
        torch.autograd.grad(loss(outputs, pairs), outputs), torch.autograd.grad(every, outputs), rtol=1e-9, atol=1e-12
    )


def test_no_pair_is_a_loss_of_zero_with_a_graph() -> None:
    outputs = outputs_of(9, (2, 2))
    loss = VICRegLoss()(outputs, [])
    assert loss == 0
    loss.backward()
    assert not outputs[0].grad.any()
    with pytest.raises(ValueError, match="numbers of two of 2 outputs, the smaller first"):
        CorrLoss()(outputs, [(1, 0)])


PRESETS = {
    "d-moe-tasks": [None],
    "mmoe": [None],
    "stem": [None],
    "ple": [None, frozenset(combinations(range(4), 2)) - {(2, 3)}],
}


@pytest.mark.parametrize(("preset", "pairs"), PRESETS.items(), ids=PRESETS)
def test_pairs_are_those_that_some_gate_mixes(preset: str, pairs: list[Any]) -> None:
    assert build_model(load_config(preset, SMALL).model, SCHEMA, seed=0).gated_pairs() == pairs


def made(preset: str, term: str, *overrides: str) -> tuple[Any, DecorrelationTerm]:
    config = load_config(preset, [*SMALL, f"decorrelation=[{term}]", *overrides])
    model = build_model(config.model, SCHEMA, seed=0)
    (found,) = build_terms(config.decorrelation, model)
    return model, found


def rows(count: int = 40) -> Tensor:
    return torch.randint(0, 6, (count, 3), generator=torch.Generator().manual_seed(1))


def test_gated_leaves_out_owned_experts_of_two_tasks_and_all_takes_them() -> None:
    gated = made("ple", "{loss: corr}")
    every = made("ple", "{loss: corr, pairs: all}")
    output = gated[0](rows())
    experts, loss = output.expert_outputs, CorrLoss()
    apart = loss([experts[2], experts[3]]) / 39
    torch.testing.assert_close(every[1](output, 0) - gated[1](output, 0), apart, rtol=1e-4, atol=1e-7)
    (reached,) = torch.autograd.grad(every[1](output, 0), experts[2:3], retain_graph=True)
    assert reached.any()


def test_levels_adds_up_each_level_with_its_own_pairs() -> None:
    model, term = made("ple", "{loss: cov, norm: l2, location: levels, alpha: 3}")
    output, loss = model(rows()), CovLoss("l2")
    first = loss(output.levels[0])
    last = loss(output.levels[1], sorted(model.gated_pairs()[1]))
    torch.testing.assert_close(term(output, 0), 3 * (first + last) / 39)


def test_a_stop_does_not_change_the_loss_of_pairs_nor_its_gradient() -> None:
    values = []
    for foreign in ("stopped", "open"):
        model, term = made("stem", "{loss: corr}", f"model.foreign={foreign}")
        output = model(rows())
        values.append([term(output, 0), *torch.autograd.grad(term(output, 0), list(model.experts.parameters()))])
    assert all(one.equal(other) for one, other in zip(*values, strict=True))


def test_within_domain_correlates_what_is_left_of_each_domains_mean() -> None:
    model, term = made("mmoe", "{loss: corr, within: domain}")
    model = model.double()
    output = model(rows())
    domains = output.domain.numpy()
    assert set(domains) == {0, 1}
    columns = []
    for one in output.expert_outputs:
        column = one.detach().numpy().copy()
        for domain in (0, 1):
            column[domains == domain] -= column[domains == domain].mean(0)
        columns.append(torch.from_numpy(column))
    torch.testing.assert_close(term(output, 0), CorrLoss()(columns) / 39, rtol=1e-9, atol=1e-12)


def test_the_gradient_of_centring_is_right() -> None:
    domain = torch.tensor([0, 1, 1, 0, 2, 1, 0])
    columns = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)

    def centred(x: Tensor) -> Tensor:
        return centred_in_domains([x], domain, 4)[0]  # a domain without rows

    assert torch.autograd.gradcheck(centred, (columns,))
    expected = columns.detach().numpy().copy()
    for number in range(3):
        expected[domain == number] -= expected[domain == number].mean(0)
    np.testing.assert_allclose(centred(columns).detach().numpy(), expected, atol=1e-12)


def test_one_domain_changes_nothing_and_a_constant_in_each_domain_is_dead() -> None:
    outputs = outputs_of(50, (3, 2))
    one = centred_in_domains(outputs, torch.zeros(50, dtype=torch.int64), 1)
    torch.testing.assert_close(CorrLoss()(one), CorrLoss()(outputs), rtol=1e-12, atol=1e-12)
    domain = torch.arange(50) % 3
    constant = torch.tensor([5.1, 7.3, 0.1])[domain].unsqueeze(1).repeat(1, 2)
    (flat,) = centred_in_domains([constant], domain, 3)
    assert not flat.any()


@pytest.mark.parametrize(
    ("preset", "term", "message"),
    [
        ("esmm", "{loss: corr}", "no gate mixes two experts, so there is nothing to de-correlate; set pairs: all"),
        ("shared-bottom", "{loss: corr, pairs: all, alpha: 0}", None),
        ("esmm", "{loss: corr, pairs: all}", None),
        ("ple", "{loss: corr, location: input}", "of a model with levels take 'levels'"),
        ("mmoe", "{loss: corr, pairs: some}", r"decorrelation\[0\].pairs"),
    ],
)
def test_terms_that_cannot_act_are_named(preset: str, term: str, message: str | None) -> None:
    def build() -> None:
        config = load_config(preset, [*SMALL, f"decorrelation=[{term}]"])
        build_terms(config.decorrelation, build_model(config.model, SCHEMA, seed=0))

    if message is None:
        build()
        return
    with pytest.raises(ConfigError, match=message):
        build()


def test_domains_must_be_known() -> None:
    config = load_config("mmoe", [*SMALL, "decorrelation=[{loss: corr, within: domain}]"])
    plain = SCHEMA.model_copy(update={"domain": None})
    with pytest.raises(ConfigError, match="within: domain needs data whose domains are known"):
        build_terms(config.decorrelation, build_model(config.model, plain, seed=0))


def test_crocodiles_loss_is_cov_with_alpha_times_the_rows_less_one() -> None:
    """(1/d²) Σ_{p<q} ‖(O_p − Ō_p)ᵀ(O_q − Ō_q)‖₁, entry by entry (arXiv 2405.12706)."""
    outputs = [one.detach() for one in outputs_of(7, (3, 3, 3))]
    total = 0.0
    for p, q in combinations(range(3), 2):
        for i in range(3):
            for j in range(3):
                x, y = outputs[p][:, i].numpy(), outputs[q][:, j].numpy()
                total += abs(sum((a - x.mean()) * (b - y.mean()) for a, b in zip(x, y, strict=True))) / 9
    assert float(CovLoss("l1")(outputs)) == pytest.approx(total, rel=1e-12)
