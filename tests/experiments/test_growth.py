"""`growth`: nested parts of a log, each by its recipe, and what is gained against training rows."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dmoe.config.run import RunConfig, load_config
from dmoe.errors import ConfigError
from dmoe.experiments import grid, statistics
from dmoe.experiments.cell import run_cell
from dmoe.experiments.folder import Folder
from dmoe.experiments.grid import Cell
from dmoe.experiments.results import write_results
from dmoe.experiments.start import start
from dmoe.experiments.statistics import CellScores, compare_auc, compare_logloss, slope_weights
from dmoe.experiments.summary import TENFOLD, ExperimentSummary
from dmoe.report.experiment import write_experiment_report
from dmoe.training.loop import train
from dmoe.weights.run import Run
from tests.experiments.fake import ROWS, alpha_of, fake_folder
from tests.report.page import Page
from tests.small_runs import write_data

PARTS = (100, 300, ROWS)


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BOOTSTRAP_DRAWS", 50)
        yield


def _is_me(config: RunConfig) -> bool:
    return config.model.tables == "per-expert" and not config.decorrelation


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> ExperimentSummary:
    """ME is worth more the more rows there are; the loss is worth nothing; CrossNet beats CIN by itself."""

    def quality(config: RunConfig, part: int | None) -> float:
        rows = ROWS if part is None else part
        gain = 0.3 * np.log10(rows / 100) if config.model.tables == "per-expert" else 0.0
        crossnet = [one["kind"] for one in config.model.experts] == ["crossnet"]
        return float(1.0 + gain + 0.2 * crossnet + (1e-4 if alpha_of(config) == 0.2 else 0.0))

    folder = fake_folder(
        tmp_path_factory.mktemp("growth") / "e", ("growth",), quality_of_part=quality, size="recipe", parts=PARTS
    )
    return ExperimentSummary(folder)


def test_rows_of_the_table_are_parts_and_the_whole_log_is_no_part(grown: ExperimentSummary) -> None:
    (table,) = grown.tables
    assert list(table.grid.parts.items()) == [("100", 100), ("300", 300), ("800", 800)]
    assert table.columns == ["CIN", "CrossNet", "SE", "ME", "ME+Loss", "Trained apart", "Best single"]
    # Three parts, three seeds: four arms without loss, two more alphas on the first seed.
    assert grown.expected == grown.number_finished == 3 * (3 * 5 + 2)
    parts = {grown.finished[key]["part"] for key in grown.finished}
    assert parts == {100, 300, None}
    cell = table.places["800", "ME"].cells[1]
    assert Cell.of(RunConfig.model_validate(grown.finished[cell]["config"])).key == cell


def test_gains_and_their_growth_are_found(grown: ExperimentSummary) -> None:
    (table,) = grown.tables
    gain = {one.row: one for one in table.decided if (one.better, one.than) == ("ME", "SE")}
    assert gain["100"].verdict == "not resolved"
    assert gain["800"].verdict == "holds"
    assert gain["800"].compared.difference > gain["300"].compared.difference > 0.01
    slopes = {(one.better, one.than): one for one in table.slopes}
    assert all(one.row == TENFOLD for one in slopes.values())
    assert slopes["ME", "SE"].verdict == "holds"
    assert slopes["ME+Loss", "ME"].verdict == "not resolved"
    by_hand = np.polyfit(np.log10(PARTS), [gain[str(rows)].compared.difference for rows in PARTS], 1)[0]
    assert slopes["ME", "SE"].compared.difference == pytest.approx(by_hand)
    assert {one.row for one in table.pooled} == {"all parts"}


def test_the_best_single_is_chosen_on_valid_and_the_ensemble_has_one_of_each(grown: ExperimentSummary) -> None:
    (table,) = grown.tables
    for rows in ("100", "300", "800"):
        assert table.places[rows, "Best single"].cells == table.places[rows, "CrossNet"].cells
        apart = table.places[rows, "Trained apart"].cells
        cin, crossnet = table.places[rows, "CIN"].cells, table.places[rows, "CrossNet"].cells
        assert apart == {1: f"{cin[1]}+{crossnet[2]}", 2: f"{cin[2]}+{crossnet[3]}", 3: f"{cin[3]}+{crossnet[1]}"}


def test_slope_counts_rows_and_seeds_as_any_difference_does() -> None:
    """Against many logs drawn anew: the interval of the slope covers the true one, 0, about as often as it says."""
    random = np.random.default_rng(3)
    rows, covered, tries = [1_000, 10_000, 50_000], 0, 60
    for _ in range(tries):
        labels = random.random(300) < 0.4
        common = random.normal(size=300)
        runs = [
            (seed, *(CellScores(labels, labels + common + 0.7 * random.normal(size=300)) for _ in range(2)))
            for _ in rows
            for seed in range(3)
        ]
        weights = [weight for weight in slope_weights(rows) for _ in range(3)]
        slopes = [compare_auc(iter(runs), weights), compare_logloss(iter(runs), weights)]
        covered += sum(one.low <= 0 <= one.high for one in slopes)
        by_part = np.array([second.auc - first.auc for _, first, second in runs]).reshape(3, 3)
        line = np.polyfit(np.log10(rows), by_part.mean(axis=1), 1)[0]
        assert slopes[0].difference == pytest.approx(line)
    assert 0.9 <= covered / (2 * tries) <= 1.0


def test_the_report_shows_gain_against_rows(grown: ExperimentSummary, tmp_path: Path) -> None:
    folder = grown.folder.path
    page = tmp_path / "page.html"
    write_results(grown)
    write_experiment_report(folder, page, grown)
    assert Page(page).faults == []
    for name in ("growth-gain-auc", "growth-gain-logloss", "growth-auc"):
        assert (folder / "figures" / f"{name}.svg").is_file()
    assert "ME − SE: 100 rows" in page.read_text()
    gains = (folder / "tables" / "growth-gains.md").read_text()
    assert "| Training rows |" in gains
    assert "ten times the rows" in gains
    assert (folder / "tables" / "growth-gains.tex").is_file()
    comparisons = (folder / "comparisons.csv").read_text()
    assert comparisons.count(TENFOLD) == 4
    assert comparisons.count("all parts") == 4


def test_parts_that_have_not_run_are_said_and_nothing_breaks(tmp_path: Path) -> None:
    folder = fake_folder(
        tmp_path / "e", ("growth",), size="recipe", parts=PARTS, keep=lambda config: not _is_me(config)
    )
    summary = ExperimentSummary(folder)
    (table,) = summary.tables
    assert not table.places["100", "ME"].runs
    assert {one.than for one in table.slopes} == {"Trained apart", "Best single"}
    write_experiment_report(folder.path, tmp_path / "page.md", summary)
    assert "Trained apart" in (tmp_path / "page.md").read_text()


def test_start_chooses_the_recipe_and_refuses_what_does_not_fit(small_data: Path, tmp_path: Path) -> None:
    folder = start(["growth"], data=small_data, output=tmp_path / "e", seeds=1, parts=[200])
    assert (folder.asked.size, folder.asked.parts) == ("recipe", (200,))
    start(["growth"], data=small_data, output=tmp_path / "e", seeds=1, parts=[500, 1000])
    assert folder.asked.parts == (200, 500, 1000)
    start(["growth"], data=small_data, output=tmp_path / "e", seeds=2)
    assert (folder.asked.seeds, folder.asked.parts) == (2, (200, 500, 1000))
    fixed = start(["growth", "table1"], data=small_data, output=tmp_path / "f", seeds=1, size="tiny")
    assert fixed.asked.parts == (1000,)
    refused = {
        "growth: trains each part by its recipe": (["growth", "table1"], {}),
        "--rows 1001: must be from 1 to 1000": (["growth"], {"parts": [1001]}),
        "--rows: only growth takes parts": (["table1"], {"parts": [10]}),
        "controls: sets widths of tables": (["controls"], {"size": "recipe"}),
    }
    for words, (names, options) in refused.items():
        with pytest.raises(ConfigError, match=words):
            start(names, data=small_data, output=tmp_path / "g", seeds=1, **options)
    assert not (tmp_path / "g").exists()


def test_parts_grow_by_factors_of_about_three() -> None:
    assert grid.default_parts(1_551_669) == [10_000, 30_000, 100_000, 300_000, 1_000_000, 1_551_669]
    assert grid.default_parts(5_000) == [5_000]
    assert grid.default_parts(12_000) == [12_000]


def test_what_a_recipe_leaves_open_is_not_what_is_said() -> None:
    auto = load_config("me-moe")
    said = load_config("me-moe", ["training.batch_size=10000"])
    assert Cell.of(auto).key != Cell.of(said).key != Cell.of(said, 100).key
    (arm, *_) = grid.arms("growth", grid.size("recipe"), ("training.epochs=1",), (10, 20), 20)
    config = arm.cell(1).config
    assert (config.training.epochs, arm.part) == (1, 10)
    assert config.training.model_fields_set == {"recipe", "seed", "epochs"}


def test_parts_are_made_once_and_a_cell_of_one_is_plain_training_on_it(small_data: Path, tmp_path: Path) -> None:
    small = ("training.epochs=1", "training.evaluations_per_epoch=1", "model.expert_units=4", "model.tower_units=[4]")
    folder = start(["growth"], data=small_data, output=tmp_path / "e", seeds=1, parts=[150, 1000], changes=small)
    # What a kill leaves while a part is written.
    (folder.path / "parts" / ".150.1.part").mkdir(parents=True)
    folder.make_parts()
    assert [path.name for path in (folder.path / "parts").iterdir()] == ["150"]
    made = (folder.data(150) / "schema.json").stat().st_mtime_ns
    folder.make_parts()
    assert (folder.data(150) / "schema.json").stat().st_mtime_ns == made
    (arm, *_) = folder.arms("growth")
    cell = arm.cell(1)
    assert cell.part == 150
    run_cell(folder.make_cell(cell), folder.data(cell.part), part=cell.part, keep_weights=True)
    figures = folder.figures(cell.key)
    assert figures is not None
    # 150 rows: batches of 256, so one step; the recipe that was resolved is kept beside the one that was asked for.
    assert (figures["part"], figures["steps"], figures["resolved"]["training"]["batch_size"]) == (150, 1, 256)
    plain = train(load_config(folder.cell(cell.key) / "run.yaml"), folder.data(150), tmp_path / "run")
    ours = Run.open(folder.cell(cell.key) / "run").load_model().state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in plain.load_model().state_dict().items())


@pytest.mark.slow
def test_a_killed_call_goes_on_and_keeps_what_is_finished(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", {"train": 600, "valid": 120, "test": 120})

    def call() -> "subprocess.Popen[bytes]":
        words = ["growth", "--data", str(data), "-o", str(tmp_path / "e"), "--rows", "150", "--rows", "600"]
        words += ["--seeds", "1", "--set", "training.epochs=1", "--set", "model.expert_units=4"]
        code = "import sys; from dmoe.cli.main import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", code, "experiment", *words]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    first = call()
    deadline = time.monotonic() + 120
    while not list((tmp_path / "e").glob("cells/*/cell.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "e").glob("cells/*/cell.json")}
    assert 1 <= len(done) < 14
    assert call().wait() == 0
    assert all(path.stat().st_mtime_ns == at for path, at in done.items())
    folder = Folder(tmp_path / "e")
    assert len(folder.finished()) == 2 * (4 + 3)
    assert not folder.failed()
    assert (folder.path / "report.html").is_file()
