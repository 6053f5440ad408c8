"""Training on several labels, domains and weighted rows: what is kept, what is measured, what is refused."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from dmoe.baselines.kept import kept_logistic
from dmoe.config.run import RunConfig
from dmoe.disk.files import read_json, read_json_lines
from dmoe.errors import ConfigError, Interrupted
from dmoe.evaluation.baseline import read_beside, stand_beside
from dmoe.evaluation.evaluate import evaluate_run, scored_rows
from dmoe.schema import Schema
from dmoe.shards.reader import read_once
from dmoe.training.loop import train
from dmoe.training.objective import entropy_factors
from dmoe.weights.run import Run
from tests.small_runs import small_config, with_tasks, write_data
from tests.training.test_loop import StopAt, assert_same_bits

NAMES = ("click", "buy", "like")


@pytest.fixture(scope="module")
def data(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tasks(small_data, tmp_path_factory.mktemp("tasks") / "data", domain=True)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = small_config("training.calibration=platt", "model.heads=task-and-domain", "training.base_rate=true")
    return train(config, data, tmp_path_factory.mktemp("tasks") / "run")


def logits_of(run: Run, data: Path, split: str) -> dict[str, np.ndarray]:
    rows = scored_rows(run.load_model(), read_once(data, split, batch_size=8192), torch.device("cpu"))
    return {name: rows.logits_R(number) for number, name in enumerate(NAMES)}


def test_an_evaluation_scores_each_task_where_it_is_known(run: Run, data: Path) -> None:
    found = read_json(run.path / "evaluation" / "test.json")
    table = parquet.read_table(data / "test")
    logits = logits_of(run, data, "test")
    device = table["device"].to_numpy()
    domains = {"device0": device == 2, "device1": device == 3, "other": (device != 2) & (device != 3)}
    for name in NAMES:
        task, column = found["tasks"][name], table[name].to_numpy()
        known = ~np.isnan(column)
        assert (task["rows"], task["unknown"]) == (known.sum(), (~known).sum())
        assert task["positives"] == np.nansum(column)
        assert task["auc"] == pytest.approx(roc_auc_score(column[known], logits[name][known]))
        assert task["logloss"] == pytest.approx(log_loss(column[known], expit(logits[name][known])), abs=1e-6)
        ratio = expit(logits[name][known]).sum() / column[known].sum()
        assert task["predicted_to_observed"] == pytest.approx(ratio)
        aucs = []
        for domain, member in domains.items():
            kept = known & member
            aucs.append(roc_auc_score(column[kept], logits[name][kept]))
            assert task["domains"][domain]["auc"] == pytest.approx(aucs[-1])
            assert task["domains"][domain]["rows"] == kept.sum()
        assert task["macro"]["auc"] == pytest.approx(np.mean(aucs))
    assert found["auc"] == found["tasks"]["click"]["auc"]
    both = (table["click"].to_numpy() * np.nan_to_num(table["buy"].to_numpy())).astype(int)
    product = expit(logits["click"]) * expit(logits["buy"])
    joint = found["tasks"]["buy"]["joint"]
    assert joint["rows"] == len(both)
    assert joint["auc"] == pytest.approx(roc_auc_score(both, product))
    assert joint["logloss"] == pytest.approx(log_loss(both, product), abs=1e-6)
    assert joint["predicted_to_observed"] == pytest.approx(product.sum() / both.sum())


def test_training_watches_the_mean_and_says_what_one_set_of_weights_costs(run: Run) -> None:
    metrics, lines = read_json(run.path / "metrics.json"), read_json_lines(run.path / "metrics.jsonl")
    watched = [
        sum(one["auc"] - one["logloss"] for one in line["valid"]["tasks"].values()) / len(NAMES) for line in lines
    ]
    assert metrics["best_step"] == lines[int(np.argmax(watched))]["step"]
    for name in NAMES:
        own = [line["valid"]["tasks"][name] for line in lines]
        values = [one["auc"] - one["logloss"] for one in own]
        price = metrics["own_best"][name]
        assert price["monitored"] == max(values)
        assert price["short"] == max(values) - values[int(np.argmax(watched))] >= 0
    pairs = {(one["first"], one["second"]): one for one in metrics["task_gradients"]["pairs"]}
    assert set(pairs) == {("click", "buy"), ("click", "like"), ("buy", "like")}
    assert all(-1 <= one["cosine"] <= 1 and 0 <= one["below_0"] <= 1 for one in pairs.values())
    calibration = read_json(run.path / "calibration.json")
    assert calibration["tasks"]["click"]["slope"] == calibration["slope"]
    for name, of in calibration["tasks"].items():
        assert of["splits"]["valid"]["after"]["predicted_to_observed"] == pytest.approx(1, abs=1e-3), name


def test_each_label_stands_beside_a_regression_of_its_own(run: Run, data: Path) -> None:
    beside = stand_beside(run, data)
    assert read_beside(run.path) == beside
    truth, ours = parquet.read_table(data / "test"), logits_of(run, data, "test")
    batch = next(read_once(data, "test", batch_size=8192).batches())
    for number, name in enumerate(NAMES):
        regression = kept_logistic(data, Path(), 4.0, label=name)
        assert regression.facts.label == name
        logits = regression.load_model().logits(batch.ids_BC.numpy(), batch.numeric_BN.numpy())
        column = truth[name].to_numpy()
        known = ~np.isnan(column)
        found = beside["tasks"][name]["test"]["auc"]
        assert found["first"] == pytest.approx(roc_auc_score(column[known], logits[known]))
        assert found["second"] == pytest.approx(roc_auc_score(column[known], ours[name][known]))
        said = read_json(regression.path / "evaluation" / "test.json")
        assert (said["rows"], said["auc"]) == (known.sum(), pytest.approx(found["first"])), number
    assert beside["splits"]["test"]["auc"] == pytest.approx(beside["tasks"]["click"]["test"]["auc"])


def test_auc_inside_groups(run: Run, data: Path) -> None:
    found = evaluate_run(run, splits=["test"], group="site")["test"]["grouped_auc"]
    table, logits = parquet.read_table(data / "test"), logits_of(run, data, "test")
    site = table["site"].to_numpy()
    assert found["field"] == "site"
    assert found["rows_without_group"] == (site < 2).sum()
    for name in NAMES:
        column = table[name].to_numpy()
        total = weight = 0.0
        for value in range(2, 12):
            kept = (site == value) & ~np.isnan(column)
            if 0 < column[kept].sum() < kept.sum():
                total += roc_auc_score(column[kept], logits[name][kept]) * kept.sum()
                weight += kept.sum()
        assert found["tasks"][name]["auc"] == pytest.approx(total / weight)


@pytest.mark.parametrize("balance", ["fixed", "entropy", "uncertainty"])
def test_a_run_of_several_tasks_resumes_to_the_same_bits(data: Path, tmp_path: Path, balance: str) -> None:
    config = small_config(f"training.balance={balance}", "training.domain_weights=equal", "training.epochs=2")
    whole = train(config, data, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, data, tmp_path / "cut", watcher=StopAt(29))
    resumed = train(config, data, tmp_path / "cut", resume=True)
    assert_same_bits(whole, resumed)
    assert whole.config.training.balance == balance


def test_weights_are_rows_again(small_data: Path, tmp_path: Path) -> None:
    """After one epoch without shuffling, one batch a step: a row of weight w is the row w times."""
    weighted = with_tasks(small_data, tmp_path / "weighted", weight=True)
    repeated = with_tasks(small_data, tmp_path / "repeated", weight=True)
    schema = Schema.read(repeated)
    schema.model_copy(update={"weight": None}).write(repeated)
    for path in repeated.glob("*/part-*.parquet"):
        table = parquet.read_table(path)
        times = table["w"].to_numpy().astype(int)
        parquet.write_table(table.take(np.repeat(np.arange(len(times)), times)).drop(["w"]), path)

    def trained(data: Path) -> Run:
        rows = parquet.read_table(data / "train").num_rows
        overrides = ["decorrelation=[]", "training.epochs=4", "training.calibration=platt", "training.base_rate=true"]
        return train(small_config(f"training.batch_size={rows}", *overrides), data, data.parent / f"run-{data.name}")

    first, second = (trained(data) for data in (weighted, repeated))
    other = second.load_weights()
    for name, value in first.load_weights().items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6, msg=name)
    one, two = (read_json(run.path / "evaluation" / "test.json")["tasks"] for run in (first, second))
    for name in NAMES:
        for key in ("auc", "logloss", "predicted_to_observed"):
            assert one[name][key] == pytest.approx(two[name][key], abs=1e-6)


def test_entropy_factors_are_the_closed_form() -> None:
    def entropy(rate: float) -> float:
        return -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))

    factors = entropy_factors([0.4, 0.1, 0.5], [(), (), (0, 1, 2)])
    raw = [1 / entropy(rate) for rate in (0.4, 0.1, 0.02)]
    assert factors == pytest.approx([one * 3 / sum(raw) for one in raw])


def test_monitor_tasks_choose_which_evaluation_is_kept(data: Path, tmp_path: Path) -> None:
    for name in ("buy", "like"):
        run = train(small_config(f"training.monitor_tasks={{{name}: 1}}", "optimiser.lr=0.05"), data, tmp_path / name)
        lines = read_json_lines(run.path / "metrics.jsonl")
        values = [line["valid"]["tasks"][name]["auc"] - line["valid"]["tasks"][name]["logloss"] for line in lines]
        metrics = read_json(run.path / "metrics.json")
        assert metrics["best_step"] == lines[int(np.argmax(values))]["step"]
        assert metrics["own_best"][name]["short"] == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.monitor_tasks={byu: 1}", "monitor_tasks: no label 'byu' in the data.*buy"),
        ("model.tasks={'*': {weight: 0}}", "every task has weight 0"),
        ("training.negative_sampling_rate=0.1", "those of like are not told apart; prepare the data with a 'weight'"),
    ],
)
def test_what_does_not_fit_the_tasks_is_said(data: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(small_config(override), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", ["training.balance=entropy", "training.domain_weights=equal"])
def test_what_needs_several_labels_or_domains_is_refused_of_one(
    small_data: Path, tmp_path: Path, override: str
) -> None:
    with pytest.raises(ConfigError, match=r"the data has (one|none)"):
        train(small_config(override), small_data, tmp_path / "run")


def test_a_weight_of_none_leaves_the_other_tasks_as_they_are(data: Path, tmp_path: Path) -> None:
    """The trunk of a task alone, since the others' heads have no gradient into it."""

    def config(*overrides: str) -> RunConfig:
        return small_config("decorrelation=[]", "training.clip_norm=null", "training.epochs=1", *overrides)

    without = train(config("model.tasks={buy: {weight: 0}, like: {weight: 0}}"), data, tmp_path / "without")
    uncertain = train(
        config("model.tasks={buy: {weight: 0}, like: {weight: 0}}", "model.tasks.click={weight: 1.0}"),
        data,
        tmp_path / "same",
    )
    assert_same_bits(without, uncertain)
    heads = [name for name in without.load_weights() if name.startswith("towers.1") or name.startswith("gates.1")]
    first = {name: value.clone() for name, value in without.load_weights().items()}
    untouched = train(
        config("model.tasks={buy: {weight: 0}, like: {weight: 0}}", "optimiser.lr=0.02"), data, tmp_path / "lr"
    )
    assert heads
    assert all(torch.equal(first[name], untouched.load_weights()[name]) for name in heads)
    assert not torch.equal(
        first["embedding.banks.0.tables.weight"], untouched.load_weights()["embedding.banks.0.tables.weight"]
    )


@pytest.mark.parametrize("how", ["rate", "weight"])
def test_a_tenth_of_the_negatives_still_gives_the_clicks_of_the_whole_log(tmp_path: Path, how: str) -> None:
    data = write_data(tmp_path / "data", {"train": 40_000, "valid": 20_000, "test": 40_000})
    generator = np.random.default_rng(3)
    for split in ("train", "valid", "test"):
        path = data / split / "part-00000.parquet"
        table = parquet.read_table(path)
        clicked = table["click"].to_numpy() == 1
        if split != "test":
            kept = clicked | (generator.random(len(clicked)) < 0.1)
            table, clicked = table.filter(kept), clicked[kept]
        if how == "weight":
            weights = np.where(clicked | (split == "test"), 1, 10).astype(np.float32)
            table = table.append_column("w", pa.array(weights))
        parquet.write_table(table, path)
    overrides = ["training.calibration=platt", "training.batch_size=1000", "decorrelation=[]"]
    if how == "weight":
        Schema.read(data).model_copy(update={"weight": "w"}).write(data)
    else:
        overrides.append("training.negative_sampling_rate=0.1")
    run = train(small_config(*overrides), data, tmp_path / "run")
    model = run.load_model()
    rows = scored_rows(model, read_once(data, "test", batch_size=8192), torch.device("cpu")).of_task()
    served = model.calibration.served(torch.from_numpy(rows.logits_R)).numpy()
    assert expit(served).sum() / rows.labels_R.sum() == pytest.approx(1, abs=0.02)
    if how == "weight":
        found = read_json(run.path / "evaluation" / "test.json")["calibration"]
        assert found["predicted_to_observed"] == pytest.approx(1, abs=0.02)
