"""Ray Train starts the same training."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmoe.distributed import ray_launch
from dmoe.distributed.ray_launch import launch_with_ray
from dmoe.distributed.world import RESTARTS
from dmoe.errors import DmoeError, MissingExtraError
from tests.distributed.test_failures import at_step
from tests.distributed.test_train import words

MARK = "DMOE_TRAINED_BY_RAY_AT"
OFTEN = ("training.checkpoint_minutes=1e-9", "training.epochs=3", "training.patience=6")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(ray_launch, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"ray is not installed; pip install 'dmoe\[ray\]'"):
        launch_with_ray(["train"], 2, tmp_path / "run", 60.0)


class Fake:
    """Ray as far as it is used, in this process: what a worker reports is nowhere to be read, as no checkpoint is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lost: int, codes: tuple[int, ...]) -> None:
        self.asked: list[tuple[list[str], str]] = []
        self.lost, self.codes, self.monkeypatch = lost, codes, monkeypatch
        monkeypatch.setattr(ray_launch, "import_module", lambda _: self)

    def __getattr__(self, name: str) -> Any:  # configurations, `init`, `shutdown`
        return lambda *_, **given: given

    def TorchTrainer(self, work: Callable[[Any], None], *, train_loop_config: Any, **_: Any) -> SimpleNamespace:
        def fit() -> SimpleNamespace:
            if self.lost:
                self.lost -= 1
                work({**train_loop_config, "arguments": []})
                raise RuntimeError("a worker died")
            for rank in range(len(self.codes)):
                self.monkeypatch.setenv("RANK", str(rank))
                work(train_loop_config)
            return SimpleNamespace(metrics=None)

        self.monkeypatch.setenv("RANK", "0")
        return SimpleNamespace(fit=fit)

    def main(self, arguments: list[str]) -> None:
        if arguments:
            self.asked.append((arguments, os.environ[RESTARTS]))
            raise SystemExit(self.codes[int(os.environ["RANK"])])


@pytest.mark.parametrize(("codes", "lost"), [((0, 0), 0), ((130, 130), 0), ((0, 2), 0), ((0, 0), 2)])
def test_the_code_is_that_of_the_workers_who_start_anew_when_one_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: tuple[int, ...], lost: int
) -> None:
    output = tmp_path / "run"
    (tmp_path / "run.ray" / "codes-0").mkdir(parents=True)
    (tmp_path / "run.ray" / "codes-0" / "7").write_text("1")  # of a launcher that was killed
    monkeypatch.setenv(RESTARTS, "0")
    fake = Fake(monkeypatch, lost, codes)
    assert launch_with_ray(["train", "--overwrite"], 2, output, 60.0) == max(codes)
    assert fake.asked == [(["train", "--overwrite"], str(lost))] * 2
    assert not (tmp_path / "run.ray").exists()


def test_workers_lost_again_and_again_and_a_folder_that_is_not_shared_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RESTARTS, "0")
    Fake(monkeypatch, 4, (0, 0))
    with pytest.raises(DmoeError, match="Ray Train: a worker died; --resume continues"):
        launch_with_ray(["train"], 2, tmp_path / "run", 60.0)
    Fake(monkeypatch, 0, (0,))
    with pytest.raises(DmoeError, match=r"run\.ray: 1 of 2 workers wrote here; do all of them see it"):
        launch_with_ray(["train"], 2, tmp_path / "run", 60.0)


def under_ray(data: Path, output: Path) -> "subprocess.Popen[str]":
    """A training by two workers of Ray, saved after every step."""
    command = [sys.executable, *words(data, output, *OFTEN, "--processes", "2", "--launcher", "ray")]
    command[command.index("--timeout") + 1] = "300"
    # Workers inherit it, and are found by it.
    return subprocess.Popen(
        command, env={**os.environ, MARK: str(output)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def workers(output: Path) -> list[int]:
    """The processes that train at `output`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title = (process / "cmdline").read_bytes()
            if b"RayTrainWorker" in title and f"{MARK}={output}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return sorted(found)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that as many processes of our own leave."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    command = [sys.executable, *words(data, output, *OFTEN, "--processes", "2")]
    command[command.index("--timeout") + 1] = "300"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (output / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (pip install 'dmoe[ray]')")
@pytest.mark.parametrize("killed", [False, True])
def test_the_weights_are_those_of_as_many_processes(
    data: Path, undisturbed: bytes, tmp_path: Path, killed: bool
) -> None:
    """Also where a worker is killed: all start anew and go on from the last checkpoint."""
    output = tmp_path / "run"
    started = under_ray(data, output)
    if killed:
        at_step(output, 5, [started], within_s=900)
        os.kill(workers(output)[1], signal.SIGKILL)
    _, errors = started.communicate(timeout=900)
    assert started.returncode == 0, errors[-3000:]
    assert ("Ray Train lost a process" in errors) == killed
    assert (output / "model.safetensors").read_bytes() == undisturbed
    assert not output.with_name("run.ray").exists()
