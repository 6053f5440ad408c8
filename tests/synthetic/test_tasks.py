"""Several planted tasks and domains: the truth against the files, relations and rates against what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from dmoe.errors import ConfigError
from dmoe.synthetic.draw import BLOCK_ROWS, blocks, draw_block
from dmoe.synthetic.generate import GeneratedFiles, generate
from dmoe.synthetic.logit import PARTS
from dmoe.synthetic.presets import PRESETS, with_relations
from dmoe.synthetic.tasks import PlantedTasks, mixed, mixture

ROWS = 40_000
SPLITS = {"train": slice(0, 32_000), "valid": slice(32_000, 36_000), "test": slice(36_000, 40_000)}

Log = tuple[str, GeneratedFiles, dict[str, Any], pd.DataFrame, pd.DataFrame]


@pytest.fixture(scope="module", params=["tasks", "domains"])
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Log:
    folder = tmp_path_factory.mktemp("log")
    files, truth = generate(folder / "log.csv", rows=ROWS, preset=request.param, seed=3)
    return request.param, files, truth, pd.read_csv(files.log), pq.read_table(files.probabilities).to_pandas()


def check(figures: dict[str, Any], label: np.ndarray[Any, Any], p: np.ndarray[Any, Any]) -> None:
    assert (figures["rows"], figures["positives"]) == (len(label), label.sum())
    if len(set(label)) == 2:
        assert figures["bayes_auc"] == pytest.approx(roc_auc_score(label, p), abs=1e-12)
    else:
        assert figures["bayes_auc"] is None
    assert figures["bayes_logloss"] == pytest.approx(log_loss(label, p.astype(float), labels=[0, 1]), abs=1e-12)
    assert figures["expected_rate"] == pytest.approx(p.mean(dtype=float), abs=1e-12)


def known_rows(frame: pd.DataFrame, name: str, parent: str | None) -> np.ndarray[Any, Any]:
    known = frame[name].notna()
    if parent is not None:
        known &= frame[parent] == 1
    return np.asarray(known)


def test_truth_of_each_task_domain_and_chain_is_recomputed_from_the_files(log: Log) -> None:
    preset, _, truth, frame, p = log
    parents = {"tasks": {"click": None, "conversion": "click", "like": None}}.get(
        preset, {"click": None, "conversion": "click"}
    )
    assert list(truth["tasks"]) == list(parents)
    assert {name: task["given"] for name, task in truth["tasks"].items()} == parents
    for name, parent in parents.items():
        known = known_rows(frame, name, parent)
        for split, rows in SPLITS.items():
            figures = truth["tasks"][name]["splits"][split]
            keep = np.zeros(ROWS, dtype=bool)
            keep[rows] = known[rows]
            check(figures, frame[name][keep].to_numpy(), p[f"probability.{name}"][keep].to_numpy())
            joined = [(figures["joint"], np.isin(np.arange(ROWS), np.arange(ROWS)[rows]))] if parent else []
            if preset == "domains":
                found = []
                for domain, ones in figures["domains"].items():
                    here = keep & (frame["placement"] == int(domain)).to_numpy()
                    check(ones, frame[name][here].to_numpy(), p[f"probability.{name}"][here].to_numpy())
                    found.append(ones)
                both = [one for one in found if one["bayes_auc"] is not None]
                assert figures["macro"]["bayes_auc"] == pytest.approx(np.mean([one["bayes_auc"] for one in both]))
                assert len(figures["macro"]["left_out"]) == len(found) - len(both)
                for domain, ones in figures["joint"]["domains"].items() if parent else ():
                    here = (frame["placement"] == int(domain)).to_numpy()
                    joined.append((ones, here & np.isin(np.arange(ROWS), np.arange(ROWS)[rows])))
            for ones, here in joined:
                check(ones, frame[name][here].to_numpy(), p[f"probability.click+{name}"][here].to_numpy())
    main = truth["tasks"]["click"]["splits"]["test"]
    assert truth["splits"]["test"]["bayes_auc"] == main["bayes_auc"]
    assert "domains" not in truth["splits"]["test"]


def test_a_chains_probability_is_the_product_cut_to_16_bits(log: Log) -> None:
    p = log[4]
    product = p["probability.click"].astype(float) * p["probability.conversion"]
    ratio = (p["probability.click+conversion"] / product)[product > 2.0**-20]
    assert ratio.max() <= 1 + 2.0**-22
    assert ratio.min() >= 1 - 2.0**-15.9


def test_labels_have_their_rates_and_children_are_never_without_their_parent(log: Log) -> None:
    preset, _, truth, frame, _ = log
    assert not ((frame["conversion"] == 1) & (frame["click"] == 0)).any()
    for task in PRESETS[preset].further_tasks:
        known = known_rows(frame, task.name, task.given)
        assert frame[task.name][known].mean() == pytest.approx(task.rate, abs=0.012)
        assert frame[task.name].isna().mean() == pytest.approx(task.unknown, abs=0.01)
        assert truth["tasks"][task.name]["logit_correlation"] == pytest.approx(task.relatedness, abs=0.03)


def test_the_configuration_names_labels_parents_and_domain(log: Log) -> None:
    preset, files, *_ = log
    config = yaml.safe_load(files.config.read_text())
    assert "label" not in config
    assert config["labels"]["conversion"] == {"column": "conversion", "given": "click"}
    assert next(iter(config["labels"].items())) == ("click", {"column": "click"})
    assert config.get("domain") == {"tasks": None, "domains": "placement"}[preset]


def test_the_first_task_is_that_of_the_log_of_one_label(tmp_path: Path) -> None:
    """`tasks` is `toy` with labels added: equal columns, clicks and click probabilities, to the bit."""
    for preset in ("toy", "tasks"):
        generate(tmp_path / f"{preset}.csv", rows=3000, preset=preset, seed=5)
    toy, tasks = (pd.read_csv(tmp_path / f"{preset}.csv", dtype=str) for preset in ("toy", "tasks"))
    assert toy.equals(tasks[list(toy.columns)])
    one = pq.read_table(tmp_path / "toy.truth.parquet")["probability"].to_numpy()
    assert np.array_equal(one, pq.read_table(tmp_path / "tasks.truth.parquet")["probability.click"].to_numpy())


@pytest.mark.parametrize("relatedness", [0.0, 0.5, 1.0])
def test_relatedness_is_the_correlation_with_the_first_task(relatedness: float) -> None:
    spec = with_relations(PRESETS["tasks"], relatedness, None)
    planted = PlantedTasks.calibrate(spec, 7)
    click, conversion, like = planted.logits(draw_block(spec, 7, BLOCK_ROWS, 0))
    for other in (conversion, like):
        assert np.corrcoef(click, other)[0, 1] == pytest.approx(relatedness, abs=0.03)
        assert other.std() == pytest.approx(click.std(), rel=0.05)
    if relatedness == 1:
        assert np.allclose(click, conversion, atol=1e-12)
    # Beyond what both have in common with the first task, two tasks have nothing in common.
    assert np.corrcoef(conversion, like)[0, 1] == pytest.approx(relatedness**2, abs=0.15)


def test_similarity_of_domains() -> None:
    logits = {}
    columns = draw_block(PRESETS["domains"], 7, BLOCK_ROWS, 0)
    domain_R = columns.tokens["placement"]
    shift_R = np.asarray(PRESETS["domains"].domains.shifts)[domain_R]  # type: ignore[union-attr]
    for similarity in (0.4, 1.0):
        planted = PlantedTasks.calibrate(with_relations(PRESETS["domains"], None, similarity), 7)
        logits[similarity] = [logit_R - shift_R for logit_R in planted.logits(columns)]
    for task in range(2):
        for domain in range(5):
            here = domain_R == domain
            found = np.corrcoef(logits[1.0][task][here], logits[0.4][task][here])[0, 1]
            assert found == pytest.approx(0.4, abs=0.06)


def test_further_tasks_do_not_depend_on_how_the_log_is_cut() -> None:
    spec = PRESETS["domains"]
    planted = PlantedTasks.calibrate(spec, 2)
    long = [planted.draw(columns) for columns in blocks(spec, 2, BLOCK_ROWS + 500)]
    short = planted.draw(next(iter(blocks(spec, 2, 700))))
    for name in spec.tasks:
        assert np.array_equal(short.labels[name], long[0].labels[name][:700])
        assert np.array_equal(short.probabilities[name], long[0].probabilities[name][:700])
    assert not np.array_equal(long[1].labels["conversion"], long[0].labels["conversion"][:500])


@given(seed=st.integers(0, 2**32), correlation=st.floats(0, 1), common=st.floats(-0.9, 0.9))
def test_a_mixture_has_the_wanted_correlation_and_spread(seed: int, correlation: float, common: float) -> None:
    random = np.random.default_rng(seed)
    first = random.standard_normal(500) * 3
    second = common * first + random.standard_normal(500)
    parts = {part: first if part == "main" else np.zeros(500) for part in PARTS}
    other = dict.fromkeys(PARTS, second)
    result = mixed(parts, other, mixture(parts, other, correlation))
    assert np.corrcoef(first, result["main"])[0, 1] == pytest.approx(correlation, abs=1e-7)
    assert result["main"].std() == pytest.approx(first.std())
    assert not result["inner"].any()


def test_faults_of_relations(tmp_path: Path) -> None:
    for preset, options, message in (
        ("tasks", {"relatedness": 1.5}, r"--relatedness must be from 0 \(unrelated\) to 1 \(the same\), got 1.5"),
        ("domains", {"similarity": float("nan")}, "--similarity must be from 0 .* got nan"),
        ("toy", {"relatedness": 0.5}, "--relatedness: preset 'toy' has one label; presets tasks and domains have more"),
        ("tasks", {"similarity": 0.5}, "--similarity: preset 'tasks' has no domains; preset domains has"),
    ):
        with pytest.raises(ConfigError, match=message):
            generate(tmp_path / "log.csv", rows=200, preset=preset, **options)
    assert not list(tmp_path.iterdir())
