"""Ray Train starts the same training."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dmoe.distributed import ray_launch
from dmoe.distributed.ray_launch import launch_with_ray
from dmoe.errors import MissingExtraError
from tests.distributed.test_train import ROWS, words
from tests.small_runs import write_data


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(ray_launch, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"ray is not installed; pip install 'dmoe\[ray\]'"):
        launch_with_ray(["train"], 2, tmp_path / "run", 60.0)


def test_a_command_that_began_is_resumed(tmp_path: Path) -> None:
    command = ["train", "a=1", "--from", "runs/old", "--overwrite", "--output", str(tmp_path)]
    assert ray_launch._resumed(command, tmp_path) == command
    (tmp_path / "config.yaml").touch()
    assert ray_launch._resumed(command, tmp_path) == ["train", "a=1", "--output", str(tmp_path), "--resume"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (pip install 'dmoe[ray]')")
def test_the_weights_are_those_of_as_many_processes(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ROWS)
    for name, more in (("ray", ("--launcher", "ray")), ("local", ())):
        command = [sys.executable, *words(data, tmp_path / name, "--processes", "2", *more)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "ray" / "model.safetensors").read_bytes() == (
        tmp_path / "local" / "model.safetensors"
    ).read_bytes()
    assert not (tmp_path / "ray.ray").exists()
