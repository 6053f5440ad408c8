"""The Dockerfile's own steps in a plain virtual environment: what it installs is small, and serves a model."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmoe.cli.main import main
from tests.release.server import outside, probability_of_an_example, served
from tests.release.sizes import sizes
from tests.small_runs import SMALL

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("torch", "numba", "triton", "duckdb", "sklearn", "scipy", "matplotlib", "pandas", "onnx")


def steps(kind: str) -> list[str]:
    """The arguments of a kind of instruction of the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [line.partition(" ")[2] for line in lines if line.startswith(f"{kind} ")]


def copy_sources(folder: Path) -> None:
    for step in steps("COPY"):
        *sources, target = shlex.split(step)
        for source in sources:
            path = ROOT / source
            if path.is_dir():
                shutil.copytree(path, folder / target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                shutil.copy(path, folder / target)


@pytest.mark.slow
def test_the_image_serves_an_exported_model_without_what_trains(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="export is not installed: pip install 'dmoe[export]'")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    binaries = tmp_path / "env" / "bin"
    build = tmp_path / "build"
    build.mkdir()
    copy_sources(build)
    environment = {**outside(), "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    for step in steps("RUN"):
        # The last one removes the sources and makes a user of the image.
        if step.startswith("pip "):
            subprocess.run(["bash", "-euc", step], cwd=build, env=environment, check=True)
    found = f"import importlib.util as u; print([m for m in {LEFT_OUT} if u.find_spec(m)])"
    python = str(binaries / "python")
    assert subprocess.run([python, "-c", found], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert sum(sizes(Path(python)).values()) < 450, "docs/install.md says 0.4 GB"

    log, data, run = tmp_path / "log.csv", str(tmp_path / "data"), str(tmp_path / "run")
    for words in (
        ["generate", str(log), "--rows", "2000", "--preset", "toy", "--seed", "0"],
        ["prepare", "--config", str(tmp_path / "log.data.yaml"), "--input", str(log), "--output", data],
        ["train", *SMALL[:-1], "training.epochs=1", "--no-baseline", "--data", data, "--output", run],
        ["export", run, "-o", str(tmp_path / "models")],
    ):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert not done.value.code
    (entry,) = steps("ENTRYPOINT")
    program, *given = json.loads(entry)
    with served([str(binaries / program), *given, str(tmp_path / "models")], tmp_path) as address:
        assert 0 < probability_of_an_example(address) < 1
