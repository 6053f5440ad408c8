"""Tokens taken for unseen while training: which, how many, and always the same ones."""

import numpy as np
import pytest
import torch

from dmoe.config.run import load_config
from dmoe.disk.files import read_json
from dmoe.errors import ConfigError
from dmoe.evaluation.evaluate import quick_metrics
from dmoe.nn.build import build_model
from dmoe.schema import CategoricalField, MultiValuedField, NumericField, Schema
from dmoe.shards.batch import Batch
from dmoe.shards.reader import SplitReader
from dmoe.training.log_facts import LogFacts, measure_log
from dmoe.training.loop import train
from dmoe.training.recipe import resolved
from dmoe.training.replacement import Replacement, replacement_probabilities
from tests.small_runs import small_config, write_data

SCHEMA = Schema(
    label="click",
    fields=(
        CategoricalField(name="item", vocabulary_size=5),
        MultiValuedField(name="history", vocabulary_size=5, max_length=3, shares="item"),
        CategoricalField(name="decile", vocabulary_size=4, edges=(1.0,)),
        NumericField(name="price"),
    ),
)
FACTS = LogFacts(
    SCHEMA,
    rows=100,
    labelled=[(100, 20)],
    counts=[np.array([5, 5, 50, 30, 10]), np.array([200, 0, 60, 30, 10]), np.array([0, 0, 50, 50])],
    unseen={"item": 0.2, "history": 0.1, "decile": 0.0},
)


def batch(rows: int) -> Batch:
    ids = np.array([[2, 3, 0, 4, 2], [3, 2, 2, 0, 3], [4, 0, 0, 0, 2]], np.int32)
    return Batch(torch.from_numpy(np.tile(ids, (rows // 3, 1))), torch.zeros(rows, 1), torch.zeros(rows, 1))


def test_the_share_of_each_field_is_its_rate_and_rare_tokens_go_more_often():
    replace = Replacement(SCHEMA, {"item": 0.2, "history": 0.1}, FACTS, seed=3)
    before = batch(300_000)
    after = replace(before, 0, 0)
    was, now = before.ids_BC.numpy(), after.ids_BC.numpy()
    replaced = was != now
    assert (now[replaced] == 1).all()
    assert not replaced[was < 2].any()
    assert not replaced[:, 4].any()
    # The expected share of each token is κ/(κ + n), n being its count in both fields that share the vocabulary.
    for columns, rate, own in ((slice(0, 1), 0.2, FACTS.counts[0]), (slice(1, 4), 0.1, FACTS.counts[1])):
        shared = FACTS.vocabulary_counts(0)
        found = [replaced[:, columns][was[:, columns] == token].mean() for token in (2, 3, 4)]
        assert found[0] < found[1] < found[2]
        assert np.average(found, weights=own[2:]) == pytest.approx(rate, abs=0.003)
        odds = [share / (1 - share) * shared[token] for share, token in zip(found, (2, 3, 4), strict=True)]
        assert odds == pytest.approx([odds[0]] * 3, rel=0.05)


def test_a_batch_is_replaced_in_the_same_way_whenever_it_comes():
    replace = Replacement(SCHEMA, {"item": 0.3}, FACTS, seed=3)
    first = [replace(batch(300), epoch, number).ids_BC for epoch in (0, 1) for number in (0, 1)]
    again = [replace(batch(300), epoch, number).ids_BC for epoch in (1, 0) for number in (1, 0)]
    assert all(torch.equal(one, other) for one, other in zip(first, reversed(again), strict=True))
    assert len({one.numpy().tobytes() for one in first}) == 4
    assert not torch.equal(Replacement(SCHEMA, {"item": 0.3}, FACTS, seed=4)(batch(300), 0, 0).ids_BC, first[0])


def test_the_batch_given_is_left_as_it_is():
    given = batch(300)
    ids = given.ids_BC.clone()
    Replacement(SCHEMA, {"item": 0.9}, FACTS, seed=0)(given, 0, 0)
    assert torch.equal(given.ids_BC, ids)


@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.5, 0.95])
def test_probabilities_have_the_rate_as_their_mean(rate):
    counts = np.array([1, 1, 2, 7, 100, 100_000])
    found = replacement_probabilities(counts, counts, rate)
    assert np.average(found, weights=counts) == pytest.approx(rate)
    assert (np.diff(found) <= 0).all()


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"itme": 0.1}, "no field with a vocabulary is called 'itme'; did you mean 'item'"),
        ({"price": 0.1}, "no field with a vocabulary is called 'price'"),
        ({"decile": 0.1}, "'decile' has quantile buckets"),
    ],
)
def test_a_rate_of_what_has_no_tokens_is_refused(rates, message):
    with pytest.raises(ConfigError, match=message):
        Replacement(SCHEMA, rates, FACTS, seed=0)


@pytest.mark.parametrize("given", ["{site: 1.0}", "{site: -0.1}", "0.2", "yes"])
def test_a_rate_out_of_range_is_refused(given):
    with pytest.raises(ConfigError, match=r"training\.unseen"):
        small_config(f"training.unseen={given}")


def test_auto_is_resolved_to_rates_and_written_into_the_run(small_data, tmp_path):
    config = small_config("training.unseen=auto", "training.epochs=1")
    run = train(config, small_data, tmp_path / "run")
    facts = measure_log(small_data, run.schema)
    rates = run.config.training.unseen_rates
    assert rates == {name: round(rate, 4) for name, rate in facts.replacement_rates().items()}
    assert resolved(run.config, facts) == run.config


def test_only_training_replaces(small_data, tmp_path):
    run = train(small_config("training.unseen={site: 0.9}", "training.epochs=1"), small_data, tmp_path / "run")
    found = quick_metrics(run.load_model(), SplitReader(small_data, "valid", batch_size=50), torch.device("cpu"))
    assert read_json(run.path / "metrics.json")["valid"]["auc"] == pytest.approx(found["auc"], abs=1e-6)


def test_a_model_starts_at_the_base_rate(tmp_path):
    clicks = (np.arange(20_000) % 1000 == 0).astype(np.uint8)
    data = write_data(tmp_path / "data", {"train": 20_000, "valid": 20_000}, label=clicks)
    few_steps = ["training.epochs=1", "training.batch_size=1000", "optimiser.lr=0.001"]
    ratios = {}
    for start in ("true", "false"):
        run = train(small_config(*few_steps, f"training.base_rate={start}"), data, tmp_path / start)
        predicted = score_split(run, data)
        ratios[start] = predicted / 0.001
    assert ratios["true"] == pytest.approx(1, abs=0.2)
    assert ratios["false"] > 100


def score_split(run, data):
    model, total, rows = run.load_model(), 0.0, 0
    with torch.no_grad():
        for part in SplitReader(data, "valid", batch_size=5000).batches():
            total += torch.sigmoid(model(part.ids_BC, part.numeric_BN).logit.double()).sum().item()
            rows += len(part)
    return total / rows


@pytest.mark.parametrize("form", ["mixture", "benchmark"])
def test_the_last_bias_is_the_logit_of_the_rate(form):
    overrides = [] if form == "mixture" else ["model.form=benchmark", "model.experts=[{kind: fm}]"]
    model = build_model(load_config(None, ["model.embedding_dim=4", *overrides]).model, SCHEMA, seed=0)
    model.start_at(0.2)
    assert torch.sigmoid(model.head.bias).item() == pytest.approx(0.2)


def test_a_warm_start_keeps_its_own_bias(small_data, tmp_path):
    first = train(small_config("training.epochs=1"), small_data, tmp_path / "first")
    again = small_config("training.epochs=1", "training.base_rate=true", "optimiser.lr=1e-12")
    second = train(again, small_data, tmp_path / "second", start=first)
    bias = [run.load_weights()["head.bias"] for run in (first, second)]
    assert bias[1].item() == pytest.approx(bias[0].item(), abs=1e-6)
