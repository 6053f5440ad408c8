"""`dmoe train --dry-run`: what it counts is what training makes, nothing is written, and what does not fit is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmoe.cli.main import main
from dmoe.config.run import load_config
from dmoe.machine import limits
from dmoe.nn.build import build_model
from dmoe.schema import Schema
from dmoe.training import dry_run as module
from dmoe.training.dry_run import dry_run, parameters_of
from tests.small_runs import write_data

SMALL = ["model.embedding_dim=4", "model.expert_units=8", "training.batch_size=50", "training.epochs=3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("dry") / "data", {"train": 420, "valid": 90, "test": 60})


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEPS", 3)
    monkeypatch.setattr(module, "_WARM_STEPS", 1)


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "words",
    [[], ["model.tables=shared"], ["model.experts.0={kind: dnn, hidden_units: [8]}"], ["model.embedding_dim=[4,8]"]],
)
def test_parameters_are_those_of_the_model(data: Path, words: list[str]) -> None:
    config = load_config("d-moe", [*SMALL, *words])
    schema = Schema.read(data)
    model = build_model(config.model, schema, seed=0)
    counted = parameters_of(config, schema)
    assert sum(counted.values()) == model.num_parameters
    assert counted["embedding tables"] == sum(table.weight.numel() for table in model.embedding.row_tables())
    assert counted["gates"] == sum(one.numel() for one in model.gate.parameters())
    assert {"expert 0 (cin)", "expert 0 (dnn)"} & set(counted)


def test_it_counts_batches_and_leaves_everything_as_it_was(data: Path) -> None:
    config = load_config("d-moe", SMALL)
    before = everything(data)
    found = dry_run(config, data)
    assert everything(data) == before
    assert found.batches == -(-found.rows // 50)
    assert found.seconds is not None
    assert found.memory.fits
    assert found.config.training.unseen_rates is not None
    # The sums as one would do them by hand.
    one = found.seconds
    valid, test = found.held_out["valid"], found.held_out["test"]
    evaluations = found.config.training.evaluations_per_epoch
    epoch = found.batches * one.step + evaluations * (one.flush + valid * one.scored_row)
    assert one.evaluated_row is not None
    end = (valid + test) * (one.scored_row + one.evaluated_row)
    assert found.total_seconds(3) == pytest.approx(one.start + 3 * epoch + end)


def test_what_does_not_fit_takes_no_step(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "memory_bytes", lambda: limits.peak_memory_bytes() or 0)
    monkeypatch.setattr(module, "assemble", None)  # would be called
    with pytest.raises(SystemExit) as stopped:
        main(["train", "d-moe", *SMALL, "--data", str(data), "--dry-run"])
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert "does not fit; a smaller model.embedding_dim" in said
    assert "step" not in said.replace("--dry-run", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give --output, the run folder to write"),
        (["--dry-run", "--resume"], "--dry-run writes nothing, so --resume, --overwrite and --track have no meaning"),
        (["model.tasks.like.weight=2", "--dry-run"], "model.tasks: no label 'like' in the data"),
        (["training.epoch=2", "--dry-run"], "did you mean 'epochs'"),
    ],
)
def test_faults_are_one_sentence(data: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "d-moe", *words, "--data", str(data)])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.slow
def test_several_processes_say_it_once(data: Path, tmp_path: Path) -> None:
    words = ["train", "d-moe", *SMALL, "--data", str(data), "--dry-run", "--processes", "2", "--json"]
    code = "from dmoe.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seconds"]["step"] > 0
    assert found["memory_bytes"]["process"] > 2 * 50_000_000
    assert list(tmp_path.iterdir()) == []
