"""`training.recipe: auto`: what it chooses, and that what was said stays."""

import numpy as np
import pytest
import torch
import yaml

from dmoe.cli.train import fall_lines
from dmoe.config.run import changed_config, load_config, presets
from dmoe.schema import CategoricalField, Schema
from dmoe.training.log_facts import LogFacts, measure_log
from dmoe.training.loop import train
from dmoe.training.progress import recipe_lines
from dmoe.training.recipe import alpha_of, batch_size, evaluations_of, l2_scales, maps_of, resolved, units_of
from tests.small_runs import small_config

SCHEMA = Schema(label="click", fields=(CategoricalField(name="user", vocabulary_size=4),))


def facts(rows: int) -> LogFacts:
    return LogFacts(SCHEMA, rows, [(rows, rows // 10)], [np.array([0, rows // 10, rows // 2, rows])], {"user": 0.3})


def test_the_sizes_grow_with_the_rows_up_to_those_of_the_paper():
    assert [batch_size(rows) for rows in (1, 100_000, 205_000, 1_500_000, 33_000_000)] == [256, 256, 512, 2048, 10_000]
    assert [units_of(rows) for rows in (1, 4_000_000, 5_000_000, 33_000_000)] == [64, 64, 128, 500]
    assert [maps_of(rows) for rows in (1, 5_000_000, 33_000_000)] == [32, 64, 256]
    assert (alpha_of(500), alpha_of(64)) == (10, 1.28)
    rates = [resolved(load_config("d-moe"), facts(rows)).optimiser.lr for rows in (1000, 102_144, 102_400, 33_000_000)]
    assert rates == [2e-3, 2e-3, 1e-3, 1e-3]  # below 400 steps, above


def test_a_regression_stands_in_where_it_can_read_the_whole_log():
    linear = [resolved(load_config("d-moe"), facts(rows)).model.linear for rows in (1000, 2_000_000, 2_000_001)]
    assert linear == [True, True, False]
    many = CategoricalField(name="user", vocabulary_size=(1 << 22) + 1)
    wide = LogFacts(
        Schema(label="click", fields=(many,)), 1000, [(1000, 100)], [np.ones(many.vocabulary_size)], {"user": 0.3}
    )
    assert not resolved(load_config("d-moe"), wide).model.linear
    assert not resolved(load_config("d-moe", ["model.linear=false"]), facts(1000)).model.linear


@pytest.mark.parametrize("name", ["d-moe", "me-moe", "se-moe", "single"])
def test_what_a_preset_leaves_out_is_chosen_and_nothing_is_left_open(name):
    found = resolved(load_config(name), facts(100_000))
    assert found.training.batch_size == 256
    assert (found.model.expert_units, found.model.embedding_dim) == (64, 8)
    assert found.training.unseen_rates == {"user": pytest.approx(0.2533, abs=1e-3)}
    assert resolved(found, facts(33_000_000)) == found
    lines = " ".join(recipe_lines(found))
    assert "batches of 256" in lines
    assert "user 25" in lines


def test_what_was_said_stays():
    said = [
        "training.batch_size=100", "model.expert_units=32", "model.experts.0.units=[7]", "decorrelation.0.alpha=3",
        "training.unseen=0", "model.field_std=0", "training.base_rate=false", "training.evaluations_per_epoch=1",
    ]  # fmt: skip
    found = resolved(load_config("d-moe", said), facts(100_000))
    assert (found.training.batch_size, found.model.expert_units) == (100, 32)
    assert found.model.experts[0]["units"] == [7]
    assert found.decorrelation[0].alpha == 3
    assert (found.training.unseen_rates, found.model.field_std, found.training.base_rate) == ({}, 0, False)
    assert found.training.evaluations_per_epoch == 1
    # Also where what was said is the default of the key.
    assert resolved(load_config("d-moe", ["training.batch_size=10000"]), facts(9)).training.batch_size == 10_000


def test_a_fixed_recipe_is_left_as_it_is():
    for name in presets():
        config = load_config(name)
        if config.training.recipe == "fixed":
            assert resolved(config, facts(1000)) == config
            assert recipe_lines(config) == []
    paper = load_config("paper")
    assert (paper.training.batch_size, paper.model.embedding_dim, paper.model.expert_units) == (10_000, 16, 500)
    assert (paper.decorrelation[0].alpha, paper.model.experts[0]["units"]) == (10, [276])
    assert (paper.training.unseen, paper.training.base_rate, paper.model.field_std) == (0, False, 0)
    assert (paper.model.linear, paper.optimiser.lr) == (False, 1e-3)


def test_a_preset_printed_to_be_changed_leaves_open_what_it_leaves_open(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(load_config("d-moe", ["optimiser.lr=0.002"]).to_yaml())
    assert resolved(load_config(path), facts(1000)) == resolved(
        load_config("d-moe", ["optimiser.lr=0.002"]), facts(1000)
    )


def test_the_run_holds_every_choice(small_data, tmp_path):
    run = train(load_config("me-moe", ["training.epochs=1"]), small_data, tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["training"]["batch_size"] == 256
    assert written["model"]["experts"][0]["units"] == [32]
    assert written["optimiser"]["lr"] == 2e-3  # few steps an epoch
    assert written["model"]["linear"] is True
    of_tasks = {"balance", "domain_weights", "monitor_tasks"}  # of several labels alone
    assert set(written["training"]) == set(type(run.config.training).model_fields) - of_tasks


def test_a_fall_after_the_first_epoch_is_said():
    def lines(*scores):
        return [{"epoch": epoch, "valid": {"auc": auc}} for epoch, auc in scores]

    (line,) = fall_lines(lines((1, 0.6), (1, 0.7), (2, 0.69), (2, 0.68)))
    assert "fell after the first epoch, from 0.7000 to 0.6900" in line
    assert fall_lines(lines((1, 0.7), (2, 0.71))) == []
    assert fall_lines(lines((1, 0.7), (1, 0.6))) == []
    assert fall_lines([]) == []


def test_l2_by_rarity_gives_each_row_its_tokens_count(small_data, tmp_path):
    config = small_config("optimiser.embedding_l2_rarity=0.5", "training.epochs=1")
    run = train(config, small_data, tmp_path / "run")
    model, log = run.load_model(), measure_log(small_data, run.schema)
    (scale_V,) = l2_scales(model, log, 0.5)
    assert scale_V.tolist() == pytest.approx(np.maximum(np.concatenate(log.counts), 1) ** -0.5)
    plain = train(small_config("training.epochs=1"), small_data, tmp_path / "plain").load_model()
    assert not torch.equal(plain.state_dict()["head.weight"], model.state_dict()["head.weight"])
    # dense trains the same model
    dense = train(changed_config(config, ["optimiser.embedding=dense"]), small_data, tmp_path / "dense").load_model()
    torch.testing.assert_close(dense.state_dict(), model.state_dict(), rtol=1e-3, atol=1e-5)


def test_a_few_steps_are_not_taken_for_a_plateau() -> None:
    assert [evaluations_of(steps) for steps in (1, 10, 39, 40, 79, 80, 388)] == [1, 1, 1, 2, 3, 4, 4]
