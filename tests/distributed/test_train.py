"""`dmoe train` on several processes: the run folder of one process, failures, resuming."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dmoe.cli.main import main
from dmoe.disk.files import read_json_lines
from dmoe.runs.folder import RunFolder
from dmoe.training.loop import train
from tests.distributed.conftest import ROWS
from tests.distributed.ranks import ended, start
from tests.small_runs import SMALL, small_config, write_data

# Of a float32 run the weights depend on how sums are cut.
CLOSE = 2e-3


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small_config("training.device=cpu"), data, tmp_path_factory.mktemp("alone") / "run").path


def words(data: Path, output: Path, *more: str) -> list[str]:
    options = ["--data", str(data), "--output", str(output), "--no-baseline", "--timeout", "20"]
    return ["-m", "dmoe", "train", *SMALL, "training.device=cpu", *more, *options]


def apart(one: Path, other: Path) -> float:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in second.items()}
    return max(float((first[name] - second[name]).abs().max()) for name in first if first[name].numel())


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".lock")


def test_the_command_starts_processes_whose_run_folder_is_that_of_one(data: Path, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, *words(data, output, "--processes", "2", "--data", f"file://{data}")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert names(output) == names(alone)
    assert apart(output, alone) < CLOSE
    found, wanted = (json.loads((folder / "metrics.json").read_text()) for folder in (output, alone))
    for split in ("valid", "test"):
        assert found[split]["auc"] == pytest.approx(wanted[split]["auc"], abs=2e-3)
        assert found[split]["cec"] == pytest.approx(wanted[split]["cec"], abs=2e-3)
    assert found["parameters"] == wanted["parameters"]
    assert found["steps"] == wanted["steps"]
    assert RunFolder.open(output).config == RunFolder.open(alone).config
    # What is said is said once.
    assert done.stderr.count("epoch 1 ") == 1
    assert "Traceback" not in done.stderr


def test_one_process_that_is_asked_for_leaves_the_same_bits(data: Path, alone: Path, tmp_path: Path) -> None:
    command = words(data, tmp_path / "run", "--processes", "1")[2:]
    with pytest.raises(SystemExit) as ended_with:
        main(command)
    assert ended_with.value.code in (0, None)
    assert weights(tmp_path / "run") == weights(alone)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of `tests.distributed.runs`."""
    folder = tmp_path_factory.mktemp("runs")
    write_data(folder / "data", ROWS)
    for code, _, errors in ended(start(["-m", "tests.distributed.runs", str(folder)], 4), 600):
        assert code == 0, errors[-3000:]
    return folder


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def said(runs: Path, name: str) -> list[str | None]:
    return [json.loads((runs / f"said-{rank}.json").read_text()).get(name) for rank in range(4)]


@pytest.mark.slow
def test_three_ranks_leave_the_run_of_one(runs: Path) -> None:
    """With windows, replaced tokens, L2 by rarity, clipping, de-correlation, calibration."""
    assert names(runs / "three") == names(runs / "one")
    assert apart(runs / "three", runs / "one") < 1e-9
    found, wanted = (json.loads((runs / name / "metrics.json").read_text()) for name in ("three", "one"))
    for split in ("valid", "test"):
        assert found[split]["auc"] == pytest.approx(wanted[split]["auc"], abs=1e-6)
        assert found[split]["logloss"] == pytest.approx(wanted[split]["logloss"], abs=1e-8)
        assert found[split]["cec"] == pytest.approx(wanted[split]["cec"], abs=1e-6)
    curves = [read_json_lines(runs / name / "steps.jsonl") for name in ("three", "one")]
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.slow
def test_a_stop_at_one_rank_stops_all_and_the_resumed_run_is_the_undisturbed_one(runs: Path) -> None:
    assert all(text is not None and "interrupted at step 13" in text for text in said(runs, "again 3")[:3])
    assert weights(runs / "again") == weights(runs / "three")
    assert not (runs / "again" / "checkpoint").exists()


@pytest.mark.slow
def test_other_numbers_of_ranks_go_on(runs: Path) -> None:
    """Four, then two, then three."""
    assert all(text is not None and "interrupted" in text for text in said(runs, "other 4"))
    stopped = [text is not None and "interrupted at step 22" in text for text in said(runs, "other 2")]
    assert stopped == [True, True, False, False]
    assert apart(runs / "other", runs / "one") < 1e-9
    steps = [line["step"] for line in read_json_lines(runs / "other" / "metrics.jsonl")]
    assert steps == [line["step"] for line in read_json_lines(runs / "one" / "metrics.jsonl")]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_named_with_its_rank_on_all(runs: Path) -> None:
    for text in said(runs, "bad 3")[:3]:
        assert text is not None
        assert text.startswith("NonFiniteLossError: stopped at step 18")
        assert "the loss of rank 1 is not finite" in text
        assert "The best weights so far are kept" in text
    assert load_file(runs / "bad" / "model.safetensors")
