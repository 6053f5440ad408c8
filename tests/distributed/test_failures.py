"""A process that dies, hangs, cannot write or reads damage: all end, one message says whose fault it is."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.ranks import ended, start
from tests.distributed.test_train import words

pytestmark = pytest.mark.slow

# The state is saved after every step.
OFTEN = ("training.checkpoint_minutes=1e-9", "training.epochs=6", "training.patience=6")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    assert [code for code, _, _ in ended(start(words(data, output, *OFTEN), 3), 200)] == [0, 0, 0]
    return (output / "model.safetensors").read_bytes()


def at_step(output: Path, step: int, started: list[subprocess.Popen[str]], within_s: float = 120) -> None:
    until = time.monotonic() + within_s
    while time.monotonic() < until and all(one.poll() is None for one in started):
        file = output / "checkpoint" / "latest"
        if file.is_file() and int(file.read_text()[:9] or 0) >= step:
            return
        time.sleep(0.002)
    raise AssertionError(f"no step {step}: {ended(started, 1)}")


def messages(found: list[tuple[int, str, str]]) -> list[str]:
    return [line for _, _, errors in found for line in errors.splitlines() if line.startswith("dmoe: ")]


def resumed_to_the_end(data: Path, output: Path) -> bytes:
    found = ended(start(words(data, output, *OFTEN, "--resume"), 3), 200)
    assert [code for code, _, _ in found] == [0, 0, 0], found
    return (output / "model.safetensors").read_bytes()


def test_a_killed_rank_is_named_and_the_resumed_run_is_the_undisturbed_one(
    data: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    generator = random.Random(7)
    output = tmp_path / "run"
    for moment in range(int(os.environ.get("DMOE_KILLS", "10"))):
        victim, step = generator.randrange(3), 6 * moment + generator.randrange(1, 6)
        started = start(words(data, output, *OFTEN, *(["--resume"] if moment else [])), 3)
        at_step(output, step, started)
        time.sleep(generator.random() * 0.02)
        started[victim].kill()
        found = ended(started, 60)
        said = messages(found)
        assert len(said) == 1, found
        assert ("rank 0 or its launcher" if victim == 0 else f"rank {victim} ended without a word") in said[0]
        assert all(code == 1 for rank, (code, _, _) in enumerate(found) if rank != victim)
        assert not any("Traceback" in errors for _, _, errors in found)
    assert resumed_to_the_end(data, output) == undisturbed


def test_a_rank_that_hangs_is_named_after_the_time_that_was_given(
    data: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = words(data, output, *OFTEN)
    command[command.index("--timeout") + 1] = "30"
    started = start(command, 3)
    at_step(output, 9, started)
    started[1].send_signal(signal.SIGSTOP)
    try:
        found = ended([started[0], started[2]], 90)
    finally:
        started[1].kill()
        started[1].communicate()
    said = messages(found)
    assert len(said) == 1, found
    assert "rank 1 did not answer within 30 s" in said[0]
    assert resumed_to_the_end(data, output) == undisturbed


def stopped(data: Path, output: Path, *, by: int) -> Path:
    """A run of three processes that saved its state when one of them was asked to stop."""
    started = start(words(data, output, *OFTEN), 3)
    at_step(output, 9, started)
    started[by].send_signal(signal.SIGTERM)
    ended(started, 60)
    return output


def small_files() -> None:
    """No file of this process may be larger than a shard's random stream."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_full_disk_at_one_rank_ends_all_and_what_was_saved_stays(
    data: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    output = stopped(data, tmp_path / "run", by=0)
    before = sorted(path.name for path in (output / "checkpoint").iterdir())
    found = ended(start(words(data, output, *OFTEN, "--resume"), 3, prepare={2: small_files}), 60)
    said = messages(found)
    assert len(said) == 1, found
    assert said[0].startswith("dmoe: rank 2: cannot write: File too large")
    assert [code for code, _, _ in found] == [1, 1, 1]
    assert sorted(path.name for path in (output / "checkpoint").iterdir() if ".part" not in path.name) == before
    assert resumed_to_the_end(data, output) == undisturbed


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_harmed_part_of_a_checkpoint_is_named(
    data: Path, tmp_path: Path, harm: Callable[[Path], None], what: str
) -> None:
    output = stopped(data, tmp_path / "run", by=2)
    part = next((output / "checkpoint").glob("*/rows-00001-of-00003.safetensors"))
    harm(part)
    found = ended(start(words(data, output, *OFTEN, "--resume"), 3), 60)
    said = messages(found)
    assert len(said) == 1, found
    assert said[0].startswith("dmoe: rank 1: ")
    assert part.name in said[0]
    assert what in said[0]
    assert [code for code, _, _ in found] == [2, 2, 2]


def children(process: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_killed_launcher_leaves_no_process_and_a_run_to_resume(
    data: Path, undisturbed: bytes, tmp_path: Path, all_of_them: bool
) -> None:
    output = tmp_path / "run"
    command = [sys.executable, *words(data, output, *OFTEN), "--processes", "3"]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    at_step(output, 9, [launcher])
    ranks = children(launcher.pid)
    assert len(ranks) == 3
    launcher.kill()
    for rank in ranks if all_of_them else []:
        os.kill(rank, signal.SIGKILL)
    until = time.monotonic() + 60
    while time.monotonic() < until and any(Path(f"/proc/{rank}").exists() for rank in ranks):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    _, errors = launcher.communicate()
    assert errors.count("interrupted at step") == (0 if all_of_them else 1), errors
    assert resumed_to_the_end(data, output) == undisturbed


def test_torchrun_starts_anew_and_goes_on_by_itself(data: Path, undisturbed: bytes, tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = ["--standalone", "--nproc-per-node", "3", "--max-restarts", "2", "-m", "dmoe"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *words(data, output, *OFTEN)[2:]]
    launcher = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    at_step(output, 9, [launcher])
    os.kill(children(launcher.pid)[1], signal.SIGKILL)
    out, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, errors
    assert "run:" in out
    assert (output / "model.safetensors").read_bytes() == undisturbed
    assert json.loads((output / "metrics.json").read_text())["steps"] == 6 * 11
    # A restart of what failed after all was done has nothing to do.
    again = start(words(data, output, *OFTEN), 3, more={"TORCHELASTIC_RESTART_COUNT": "1"})
    assert [(code, errors) for code, _, errors in ended(again, 100)] == [(0, "")] * 3


def test_a_stop_of_the_launcher_is_one_of_all(data: Path, undisturbed: bytes, tmp_path: Path) -> None:
    output = tmp_path / "run"
    launcher = subprocess.Popen(
        [sys.executable, *words(data, output, *OFTEN, "--processes", "3")], stderr=subprocess.PIPE, text=True
    )
    at_step(output, 9, [launcher])
    launcher.send_signal(signal.SIGTERM)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 130, errors
    assert errors.count("interrupted at step") == 1
    assert resumed_to_the_end(data, output) == undisturbed
