"""Paired comparison against formulas written the slow way, simulations, and known answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dmoe
from dmoe.baselines.folder import Baseline, fit_baseline
from dmoe.cli.main import main
from dmoe.config.run import load_config
from dmoe.errors import DataError, UserError
from dmoe.evaluation.compare import compare_runs, worse_segments
from dmoe.metrics.paired import auc_components, paired_auc, paired_logloss
from dmoe.metrics.scores import auc
from dmoe.nn.build import build_model
from dmoe.prepare.prepare import prepare
from dmoe.schema import Schema
from dmoe.training.loop import train
from dmoe.weights.run import Run
from tests.prepare.logs import COLUMNS, config, random_rows, write_csv
from tests.several_labels import untrained
from tests.small_runs import SMALL


def naive_delong(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Difference of AUC and its standard error from every (click, no click) pair."""
    wins = [
        np.array([[(a > b) + 0.5 * (a == b) for b in scores[~labels]] for a in scores[labels]])
        for scores in (first, second)
    ]
    by_click = wins[1].mean(1) - wins[0].mean(1)
    by_other = wins[1].mean(0) - wins[0].mean(0)
    variance = by_click.var(ddof=1) / len(by_click) + by_other.var(ddof=1) / len(by_other)
    return float(wins[1].mean() - wins[0].mean()), float(np.sqrt(variance))


@settings(max_examples=100)
@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(-3, 3), st.integers(-3, 3)), min_size=4, max_size=40).filter(
        lambda rows: 2 <= sum(row[0] for row in rows) <= len(rows) - 2
    )
)
def test_auc_equals_all_pairs(rows: list[tuple[bool, int, int]]) -> None:
    labels, first, second = (np.array(column) for column in zip(*rows, strict=True))
    difference, error = naive_delong(labels, first, second)
    found = paired_auc(labels, first.astype(float), second.astype(float))
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert found.high - found.low == pytest.approx(2 * 1.959963984540054 * error, abs=1e-9)


@settings(max_examples=100)
@given(
    rows=st.lists(
        st.tuples(st.booleans(), st.integers(-3, 3), st.integers(-3, 3), st.integers(1, 4)), min_size=4, max_size=30
    ).filter(lambda rows: 2 <= sum(row[0] for row in rows) <= len(rows) - 2)
)
def test_a_row_of_weight_n_counts_as_n_rows(rows: list[tuple[bool, int, int, int]]) -> None:
    """Figures and components are those of the rows repeated; errors are not: a row drawn once stays one draw."""
    labels, first, second, weights = (np.array(column) for column in zip(*rows, strict=True))
    first, second, each = first.astype(float), second.astype(float), weights.astype(float)
    again = np.repeat(np.arange(len(rows)), weights)
    for paired in (paired_auc, paired_logloss):
        found = paired(labels, first, second, each)
        wanted = paired(labels[again], first[again], second[again])
        assert [found.first, found.second] == pytest.approx([wanted.first, wanted.second], abs=1e-12)
        alike = paired(labels, first, second, np.full(len(rows), 3.0))
        plain = paired(labels, first, second)
        assert [alike.difference, alike.p] == pytest.approx([plain.difference, plain.p], abs=1e-9)
    parts = auc_components(labels, first, each)
    for own, found_P in zip((labels, ~labels), parts, strict=True):
        assert np.average(found_P, weights=each[own]) == pytest.approx(auc(labels, first, each), abs=1e-12)


def test_of_sampled_rows_the_interval_covers_the_whole_logs_difference() -> None:
    """Every row with a click and a fifth of the others, drawn anew; the log's own difference is the truth."""
    draw = np.random.default_rng(5)
    signal = draw.normal(size=40_000)
    labels = draw.random(len(signal)) < 1 / (1 + np.exp(2 - signal))
    first, second = signal + draw.normal(size=len(signal)), 0.8 * signal + 0.7 * draw.normal(size=len(signal))
    truth = {paired: paired(labels, first, second).difference for paired in (paired_auc, paired_logloss)}
    covered, times = dict.fromkeys(truth, 0), 300
    for _ in range(times):
        rows = draw.integers(0, len(labels), 4000)  # another log of the same source
        rows = rows[labels[rows] | (draw.random(len(rows)) < 0.2)]
        for paired, whole in truth.items():
            found = paired(labels[rows], first[rows], second[rows], np.where(labels[rows], 1.0, 5.0))
            covered[paired] += found.low <= whole <= found.high
    # 285 expected; outside 272 to 296 once in a thousand times.
    assert all(272 <= count <= 296 for count in covered.values()), covered


def test_logloss_by_hand() -> None:
    labels = np.array([True, False])
    found = paired_logloss(labels, np.zeros(2), np.array([np.log(3), np.log(3)]))
    # From ln 2 each to ln 4/3 and ln 4.
    assert found.first == pytest.approx(np.log(2))
    assert found.second == pytest.approx((np.log(4 / 3) + np.log(4)) / 2)
    changes = np.array([np.log(4 / 3), np.log(4)]) - np.log(2)
    assert found.high - found.difference == pytest.approx(1.96 * changes.std(ddof=1) / np.sqrt(2), rel=1e-4)
    same = paired_logloss(labels, np.zeros(2), np.zeros(2))
    assert (same.difference, same.p) == (0, 1)


def test_equal_models_differ_by_chance_as_often_as_said() -> None:
    draw = np.random.default_rng(0)
    below = {"auc": 0, "logloss": 0}
    for _ in range(400):
        signal = draw.normal(size=400)
        labels = draw.random(400) < 1 / (1 + np.exp(-signal))
        first, second = (signal + 0.7 * draw.normal(size=400) for _ in range(2))
        below["auc"] += paired_auc(labels, first, second).p < 0.05
        below["logloss"] += paired_logloss(labels, first, second).p < 0.05
    # 20 expected; outside 6 to 36 once in a thousand times.
    assert 6 < below["auc"] < 36
    assert 6 < below["logloss"] < 36


def test_segments_that_became_worse() -> None:
    def row(value: str, rows: int, difference: float, p: float) -> dict[str, object]:
        return {"value": value, "rows": rows, "logloss": {"difference": difference, "p": p}}

    table = [row("worse", 500, 0.1, 0.01), row("chance", 500, 0.1, 0.03), row("better", 500, -0.1, 0.001)]
    few = row("few", 99, 0.1, 1e-9)
    assert worse_segments({"segments": {"site": [*table, few]}}) == [("site", "worse")]
    assert worse_segments({"segments": {"site": table, "user": table}}) == []  # 6 segments: p counts six times


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `good` and `poor` on one data set, and `other` on the next day's."""
    path = tmp_path_factory.mktemp("compare")
    for day, seed in (("monday", 1), ("tuesday", 2)):
        rows = random_rows(1500, seed)
        for row in rows:
            row[COLUMNS.index("y")] = str(
                int((row[COLUMNS.index("site")] in "ab日本") ^ (row[COLUMNS.index("age")] > "5"))
            )
        prepare(config(), [str(write_csv(path / f"{day}.csv", rows))], path / day)
    long = load_config(None, [*SMALL, "training.epochs=4"])
    train(long, path / "monday", path / "good")
    train(load_config(None, [*SMALL, "training.epochs=1", "optimiser.lr=1e-6"]), path / "monday", path / "poor")
    train(long, path / "tuesday", path / "other")
    return path


def test_the_better_run_is_found(folder: Path) -> None:
    good, poor = Run.open(folder / "good"), Run.open(folder / "poor")
    found = compare_runs(poor, good, segments=["site", "user"])
    metrics = [json.loads((run.path / "metrics.json").read_text())["test"] for run in (poor, good)]
    for name in ("auc", "logloss"):
        assert [found[name]["first"], found[name]["second"]] == pytest.approx([one[name] for one in metrics])
    assert found["logloss"]["high"] < 0
    assert found["logloss"]["p"] < 1e-3
    for table in found["segments"].values():
        assert sum(row["rows"] for row in table) == found["rows"] == 300
        mean = sum(row["rows"] * row["logloss"]["difference"] for row in table) / found["rows"]
        assert mean == pytest.approx(found["logloss"]["difference"])
    assert {row["value"] for row in found["segments"]["site"]} >= {"a", "b", "(missing)"}
    back = compare_runs(good, poor)
    assert back["logloss"]["difference"] == pytest.approx(-found["logloss"]["difference"])


def test_runs_of_two_days_are_compared_on_a_log(folder: Path) -> None:
    good, other = Run.open(folder / "good"), Run.open(folder / "other")
    with pytest.raises(DataError, match=r"schema\.json differs"):
        compare_runs(good, other, data=folder / "monday")
    found = compare_runs(good, other, logs=[folder / "tuesday.csv"])
    assert found["rows"] == 1500
    lines = (folder / "tuesday.csv").read_text().splitlines()
    (folder / "unlabelled.csv").write_text("\n".join(line.replace(",y,", ",z,", 1) for line in lines))
    with pytest.raises(DataError, match=r"unlabelled\.csv: has no column 'y'; comparing needs labels"):
        compare_runs(good, other, logs=[folder / "unlabelled.csv"])
    with pytest.raises(UserError, match=r"--segment sit: no categorical field of .*; did you mean 'site'"):
        compare_runs(good, other, segments=["sit"])


def test_command_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as stopped:
            main(["compare", str(folder / "poor"), str(folder / "good"), "--segment", "site", *more])
        assert not stopped.value.code
    text, _, printed = capfd.readouterr().out.partition("{")
    assert "logloss" in text
    assert "SECOND is better" in text
    assert "segments with worse logloss beyond chance: none" in text
    assert json.loads("{" + printed)["worse_segments"] == []


@pytest.fixture(scope="module")
def rival(several: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Other weights for the data set of `several`."""
    made = Run.create(
        tmp_path_factory.mktemp("rival") / "run", several.config, several.schema, several.path.parent / "data"
    )
    made.save_weights(build_model(several.config.model, several.schema, seed=9).state_dict())
    return made


def test_every_label_and_chain_is_compared_where_it_is_known(several: Run, rival: Run) -> None:
    """The figures of `tasks` from the log and the predictions of both alone."""
    found = compare_runs(several, rival)
    log = pd.read_csv(several.path.parent / "log.csv")[2700:]
    scored = [dmoe.load(run.path).predict_proba(several.path.parent / "log.csv") for run in (several, rival)]
    clicked, told, every = (log["click"] == 1).to_numpy(), log["like"].notna().to_numpy(), np.ones(300, dtype=bool)
    assert list(found["tasks"]) == ["click", "conversion", "click+conversion", "like"]
    for name, label, kept in (
        ("click", "click", every),
        ("conversion", "conversion", clicked),
        ("click+conversion", "conversion", every),
        ("like", "like", told),
    ):
        labels = log[label].to_numpy()[kept] == 1
        first, second = (one[name][2700:][kept].astype(float) for one in scored)  # type: ignore[index]
        one = found["tasks"][name]
        assert (one["rows"], one["positives"]) == (kept.sum(), labels.sum())
        difference, error = naive_delong(labels, first, second)
        # Float32 predictions tie where logits do not.
        assert one["auc"]["difference"] == pytest.approx(difference, abs=1e-3)
        assert one["auc"]["high"] - one["auc"]["low"] == pytest.approx(2 * 1.959964 * error, rel=1e-2)
        losses = [-np.where(labels, np.log(p), np.log1p(-p)) for p in (first, second)]
        assert one["logloss"]["difference"] == pytest.approx((losses[1] - losses[0]).mean(), abs=2e-3)
        ratio = [p.sum() / labels.sum() for p in (first, second)]
        assert [part["predicted_to_observed"] for part in one["calibration"]] == pytest.approx(ratio, rel=1e-5)
    assert {name: found[name] for name in ("auc", "logloss")} == {
        name: found["tasks"]["click"][name] for name in ("auc", "logloss")
    }


def test_a_run_of_one_label_is_compared_with_one_of_several(several: Run, tmp_path: Path) -> None:
    log = several.path.parent / "log.csv"
    alone = untrained(tmp_path, "model.heads=task", labels=1)
    for first, second in ((alone, several), (several, alone)):
        found = compare_runs(first, second, logs=[log])
        assert "tasks" not in found
        assert found["rows"] == 3000
        scores = [dmoe.load(run.path).predict_proba(log) for run in (first, second)]
        clicks = pd.read_csv(log)["click"].to_numpy() == 1
        aucs = [auc(clicks, one["click"] if isinstance(one, dict) else one) for one in scores]
        assert [found["auc"]["first"], found["auc"]["second"]] == pytest.approx(aucs, abs=1e-6)
    other = tmp_path / "other.csv"
    pd.read_csv(log, dtype=str, keep_default_na=False).drop(columns="like").to_csv(other, index=False)
    found = compare_runs(several, several, logs=[other])
    assert found["tasks"]["like"] == {"rows": 0, "positives": 0, "auc": None, "logloss": None, "calibration": None}
    assert found["tasks"]["conversion"]["rows"] == found["positives"]


def test_another_main_label_is_refused_by_name(several: Run, tmp_path: Path) -> None:
    values = {**json.loads((several.path / "schema.json").read_text()), "label": "buy", "labels": [], "source": {}}
    folder = tmp_path / "run"
    shutil.copytree(several.path, folder)
    Schema.model_validate(values).write(folder)
    with pytest.raises(UserError, match=r"does not predict 'buy', the main label of .*; it predicts click, conversion"):
        compare_runs(Run.open(folder), several)


def test_the_command_line_has_a_part_for_each_label(
    several: Run, rival: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as stopped:
            main(["compare", str(several.path), str(rival.path), *more])
        assert stopped.value.code == 0
        out = capfd.readouterr().out
        if more:
            assert list(json.loads(out)["tasks"]) == ["click", "conversion", "click+conversion", "like"]
        else:
            assert "\nclick+conversion: 300 rows, " in out
            assert out.count("predicted to observed") == 5


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `one` and `two`, untrained, on rows of which some weigh nothing."""
    path = tmp_path_factory.mktemp("weighted")
    log = pd.DataFrame([dict(zip(COLUMNS, row, strict=True)) for row in random_rows(900, 4)])
    log["w"] = [str(one) for one in np.random.default_rng(3).choice([0, 0.5, 1, 4], len(log))]
    log.to_csv(path / "log.csv", index=False)
    values = config().model_dump(exclude_unset=True) | {"weight": "w"}
    prepare(type(config()).model_validate(values), [str(path / "log.csv")], path / "data")
    for name, seed in (("one", 1), ("two", 2)):
        run = Run.create(path / name, load_config(None, [*SMALL]), Schema.read(path / "data"), path / "data")
        run.save_weights(build_model(run.config.model, run.schema, seed=seed).state_dict())
    return path


def test_rows_count_by_their_weights_in_a_split_and_in_a_log(weighted: Path) -> None:
    runs = [Run.open(weighted / name) for name in ("one", "two")]
    log = pd.read_csv(weighted / "log.csv", dtype=str, keep_default_na=False)
    labels, weights = log["y"].to_numpy() == "1", log["w"].to_numpy().astype(float)
    scores = [dmoe.load(run.path).predict_proba(weighted / "log.csv").astype(float) for run in runs]
    found = compare_runs(*runs, logs=[weighted / "log.csv"], segments=["site"])
    assert found["rows"] == (weights > 0).sum()
    for which, place in enumerate(("first", "second")):
        # Float32 predictions tie where logits do not.
        assert found["auc"][place] == pytest.approx(auc(labels, scores[which], weights), abs=3e-4)
        ratio = scores[which] @ weights / (labels @ weights)
        assert found["calibration"][which]["predicted_to_observed"] == pytest.approx(ratio, rel=1e-5)
    masses = {value: weights[(log["site"] == value).to_numpy()] for value in "ab"}
    for row in found["segments"]["site"]:
        if row["value"] in masses:
            of = (log["site"] == row["value"]).to_numpy()
            assert row["click_rate"] == pytest.approx(np.average(labels[of], weights=weights[of]))
    log.drop(columns="w").to_csv(weighted / "without.csv", index=False)
    assert compare_runs(*runs, logs=[weighted / "without.csv"])["rows"] == 900
    with pytest.raises(DataError, match="some input files have the weight column and others lack it"):
        compare_runs(*runs, logs=[weighted / "log.csv", weighted / "without.csv"])
    split = compare_runs(*runs)
    held = weights[-180:]
    assert split["rows"] == (held > 0).sum()
    assert split["auc"]["first"] == pytest.approx(auc(labels[-180:], scores[0][-180:], held), abs=3e-4)
    assert abs(split["auc"]["first"] - auc(labels[-180:], scores[0][-180:])) > 3e-3


def test_a_regression_of_another_label_is_compared_on_its_own(several: Run, tmp_path: Path) -> None:
    fit_baseline("logistic", several.path.parent / "data", tmp_path / "like", label="like")
    regression = Baseline.open(tmp_path / "like")
    found = compare_runs(regression, several)
    whole = compare_runs(several, several)["tasks"]["like"]
    assert (found["rows"], found["positives"]) == (whole["rows"], whole["positives"])
    assert found["auc"]["second"] == whole["auc"]["first"]
    assert found["auc"]["first"] == json.loads((tmp_path / "like" / "metrics.json").read_text())["test"]["auc"]
    with pytest.raises(UserError, match=r"like: does not predict 'click', the main label of .*; it predicts like"):
        compare_runs(several, regression)
