"""The runner's bookkeeping on stand-in cells that only sleep, and a true cell against plain training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dmoe.config.run import load_config
from dmoe.errors import ConfigError, Interrupted
from dmoe.experiments import runner as runner_module
from dmoe.experiments.cell import run_cell
from dmoe.experiments.folder import Asked, Folder, describe_data
from dmoe.experiments.grid import expand
from dmoe.experiments.runner import Limits, Runner, Running, State, estimated_bytes
from dmoe.experiments.start import start
from dmoe.training.loop import train
from tests.small_runs import small_config, write_data

# Notes when it ran, sleeps, and leaves figures by which alpha 100 is the better one.
STAND_IN = """
import json, sys, time
from pathlib import Path
cell = Path(sys.argv[1])
began = time.time()
text = (cell / "run.yaml").read_text()
if sys.argv[2] in text:
    sys.stderr.write("Traceback\\nloss diverged\\n")
    sys.exit(1)
time.sleep(float(sys.argv[3]))
auc = 0.8 if "alpha: 100.0" in text else 0.7
one = {"rows": 10, "positives": 3, "auc": auc, "logloss": 0.5, "relative_information_gain": 0.1,
       "calibration_error": 0.01, "predicted_to_observed": 1.0}
figures = {split: one for split in ("valid", "test")}
with (cell.parent.parent / "calls").open("a") as calls:
    calls.write(json.dumps([cell.name, began, time.time()]) + "\\n")
config = json.loads((cell / "config.json").read_text())
(cell / "cell.json").write_text(json.dumps({
    "format_version": 2, "config": config, "part": None, "resolved": config, "metrics": figures, "tables": [],
    "training": [], "parameters": 1, "seconds": 1.0, "steps": 1, "best_epoch": 1, "rows_per_second": 1.0,
    "peak_memory_bytes": 1, "versions": {}, "hardware": {},
}))
"""
GIB = 1 << 30
POPEN = subprocess.Popen


class Quiet:
    def __init__(self) -> None:
        self.most = 0
        self.failures: list[str] = []

    def show(self, state: State) -> None:
        self.most = max(self.most, len(state.running))

    def ended(self, one: Running, seconds: float, failure: str | None) -> None:  # noqa: ARG002
        if failure:
            self.failures.append(failure)


@pytest.fixture
def make(tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch):
    """A runner of `fig5` in the size tiny on stand-in cells."""

    def build(*, seconds: float = 0.02, failing: str = "nothing", seeds: int = 1, **limits: object) -> Runner:
        splits = describe_data(small_data)[1]
        folder = Folder(tmp_path / "experiment")
        folder.ask(
            Asked(data=str(small_data), splits=splits, fields=4, tokens=24, size="tiny", seeds=seeds, names=("fig5",))
        )

        def popen(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
            cell = Path(command[3])
            (cell / "config.json").write_text(load_config(cell / "run.yaml").model_dump_json())
            stand_in = [sys.executable, "-S", "-c", STAND_IN, command[3], failing, str(seconds)]
            return POPEN(stand_in, **options)

        monkeypatch.setattr(runner_module.subprocess, "Popen", popen)
        return Runner(folder, Limits(**{"jobs": 4, "threads": 1, "memory": 100 * GIB, **limits}), Quiet())

    return build


def calls(runner: Runner) -> list[tuple[str, float, float]]:
    path = runner.folder.path / "calls"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def test_every_cell_runs_once_and_a_second_call_runs_none(make) -> None:
    first = make(seeds=2)
    state = first.run()
    # Five models, one ME and two alphas each on the first seed, ME and the chosen alpha on the second.
    assert (len(state.done), state.expected, state.failed) == (25, 25, {})
    assert len(calls(first)) == len({key for key, *_ in calls(first)}) == 25
    chosen = [
        load_config(first.folder.cell(key) / "run.yaml").decorrelation[0].alpha
        for key in state.done
        if "seed: 2" in (first.folder.cell(key) / "run.yaml").read_text()
        and load_config(first.folder.cell(key) / "run.yaml").decorrelation
    ]
    assert chosen == [100.0] * 5
    assert make(seeds=2).run().done == state.done
    assert len(calls(first)) == 25


def test_no_more_cells_at_once_than_jobs_and_memory_allow(make) -> None:
    runner = make(seconds=0.2, jobs=3)
    runner.run()
    assert runner.display.most == 3
    events = sorted([(began, 1) for _, began, _ in calls(runner)] + [(ended, -1) for *_, ended in calls(runner)])
    level = highest = 0
    for _, change in events:
        level += change
        highest = max(highest, level)
    assert highest <= 3


def test_memory_bounds_the_number_of_cells(make) -> None:
    runner = make(seconds=0.2, memory=int(1.5 * GIB))
    runner.run()
    assert runner.display.most == 2  # a cell takes about 0.7 GiB
    with pytest.raises(ConfigError, match=r"needs about 0\.\d GiB, more than the 0\.5 GiB.*raise --memory"):
        make(memory=GIB // 2).run()


def test_a_budget_stops_early_and_the_next_call_goes_on(make) -> None:
    first = make(seconds=0.3, jobs=1, core_seconds=1.2)
    state = first.run()
    assert state.out_of_budget
    assert 1 <= len(state.done) <= 4
    second = make(jobs=4)
    assert len(second.run().done) == second.run().expected == 15
    assert len({key for key, *_ in calls(second)}) == len(calls(second)) == 15


def test_a_failed_cell_is_named_and_tried_again(make) -> None:
    broken = make(failing="kind: dcnv2")
    state = broken.run()
    assert len(state.failed) == 3
    assert set(state.failed.values()) == {"loss diverged"} == set(broken.display.failures)
    assert broken.folder.failed() == state.failed
    mended = make()
    assert mended.run().failed == {}
    assert mended.folder.failed() == {}


def test_a_diverged_alpha_is_not_chosen(make) -> None:
    runner = make(failing="alpha: 100.0", seeds=2)
    state = runner.run()
    assert len(state.failed) == 5
    assert len(state.done) == 20


def test_a_killed_cell_is_a_failure_that_says_so(make) -> None:
    runner = make(seconds=30, jobs=1)
    show = runner.display.show

    def kill_once(state: State) -> None:
        show(state)
        for one in state.running.values():
            os.kill(one.process.pid, signal.SIGKILL)

    runner.display.show = kill_once
    state = runner.run()
    assert set(state.failed.values()) == {"killed by SIGKILL; probably out of memory"}


def test_ctrl_c_stops_the_cells_and_says_how_to_go_on(make) -> None:
    # A shell that started this in the background would have it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runner = make(seconds=30, jobs=2)
    processes = []

    def interrupt(state: State) -> None:
        processes.extend(one.process for one in state.running.values())
        os.kill(os.getpid(), signal.SIGINT)

    runner.display.show = interrupt
    with pytest.raises(Interrupted, match="15 of 15 cells to go; the same command continues"):
        runner.run()
    assert all(process.poll() == -signal.SIGTERM for process in processes)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_runner_at_a_time(make) -> None:
    from filelock import FileLock

    runner = make()
    with (
        FileLock(runner.folder.path / ".lock"),
        pytest.raises(ConfigError, match="another `dmoe experiment` is at work"),
    ):
        runner.run()


def test_a_cell_is_a_plain_run(tmp_path: Path, small_data: Path) -> None:
    """The weights of a cell are those of `dmoe train` on its run.yaml, bit for bit; its figures are of these."""
    cell = tmp_path / "cell"
    cell.mkdir()
    config = small_config("training.epochs=1")
    (cell / "run.yaml").write_text(config.to_yaml())
    run_cell(cell, small_data, keep_weights=True)
    alone = train(load_config(cell / "run.yaml"), small_data, tmp_path / "alone")
    ours = Folder(tmp_path)
    assert ours.path == tmp_path
    from dmoe.weights.run import Run

    left, right = Run(cell / "run").load_weights(), alone.load_weights()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    figures = json.loads((cell / "cell.json").read_text())
    metrics = json.loads((alone.path / "metrics.json").read_text())
    assert figures["metrics"]["test"]["auc"] == metrics["test"]["auc"]
    assert figures["metrics"]["test"]["cec"] == metrics["test"]["cec"]
    # CEC was noted at each evaluation; the last one is of the best weights.
    best = [line for line in figures["training"] if line["best"]][-1]
    assert best["cec"] == pytest.approx(metrics["valid"]["cec"])
    before = (cell / "cell.json").stat().st_mtime_ns
    run_cell(cell, small_data)
    assert (cell / "cell.json").stat().st_mtime_ns == before


def test_scores_are_those_that_the_figures_are_of(tmp_path: Path, small_data: Path) -> None:
    from pyarrow import parquet
    from sklearn.metrics import roc_auc_score

    (tmp_path / "run.yaml").write_text(small_config("training.epochs=1").to_yaml())
    run_cell(tmp_path, small_data)
    figures = json.loads((tmp_path / "cell.json").read_text())["metrics"]
    table = parquet.read_table(tmp_path / "scores.parquet").to_pandas()
    for split in ("valid", "test"):
        rows = table[table["split"] == split]
        assert roc_auc_score(rows["label"], rows["logit"]) == pytest.approx(figures[split]["auc"], abs=1e-9)
        alone = [roc_auc_score(rows["label"], rows[f"alone_{index}"]) for index in range(2)]
        assert alone == pytest.approx(figures[split]["alone_auc"], abs=1e-9)
    # Without --keep-weights they are gone, and so is what only they need.
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "vocabulary").exists()


def test_memory_is_counted_by_tables(small_data: Path) -> None:
    schema, _ = describe_data(small_data)
    wide = schema.model_copy(
        update={"fields": (schema.fields[0].model_copy(update={"vocabulary_size": 4_000_000}), *schema.fields[1:])}
    )
    needed = estimated_bytes(small_config("model.embedding_dim=16"), wide, 1000)
    tables = 4_000_000 * 3 * 16 * 4
    assert 4 * tables < needed < 6 * tables


@pytest.mark.parametrize("what", ["size", "data"])
def test_a_folder_keeps_to_its_data_and_size(tmp_path: Path, small_data: Path, what: str) -> None:
    start(["table1"], data=small_data, output=tmp_path / "e", seeds=2, size="tiny")
    again = start(["fig1"], data=small_data, output=tmp_path / "e", seeds=1, size="tiny").asked
    assert (again.names, again.seeds) == (("table1", "fig1"), 2)
    other = write_data(tmp_path / "other", {"train": 500, "valid": 100, "test": 100}) if what == "data" else small_data
    with pytest.raises(ConfigError, match=f"holds runs of {what} .*; choose another --output"):
        start(["table1"], data=other, output=tmp_path / "e", seeds=2, size="small" if what == "size" else "tiny")
    with pytest.raises(ConfigError, match="exists and is no folder of `dmoe experiment`"):
        start(["table1"], data=small_data, output=tmp_path, seeds=1, size="tiny")
    assert expand(["all"])[0] == "table1"


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_figures(tmp_path: Path, small_data: Path) -> None:
    """kill -9 of the whole command, twice; the results are those of a call that was left alone."""
    command = [
        sys.executable, "-c", "from dmoe.cli.main import main; main()", "experiment", "fig7", "--data", str(small_data),
        "--size", "tiny", "--seeds", "1", "--jobs", "2",
    ]  # fmt: skip
    for seconds in (8, 12):
        process = subprocess.Popen([*command, "--output", str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.kill()
        process.wait()
    for name in ("killed", "whole"):
        subprocess.run([*command, "--output", str(tmp_path / name)], check=True, capture_output=True)
    left, right = ((tmp_path / name / "comparisons.csv").read_text() for name in ("killed", "whole"))
    assert left == right
