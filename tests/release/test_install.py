"""The wheel in bare environments: the quickstart by the core alone, each extra by itself, and all of them.

Gigabytes and an hour: `make test-dist` runs it, and prints what each environment holds.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.release.extras import BROUGHT_ALONG, FEATURES

pytest.importorskip("build", reason="build is not installed: pip install 'dmoe[release]'")

from tests.release.contents import ROOT, build, check, faults

PINS = ROOT / "constraints.txt"


def bare_environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


def call(python: Path, *words: str, place: Path) -> subprocess.CompletedProcess[str]:
    """`dmoe` of that environment and of no checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(python), "-m", "dmoe", *words], cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def install(python: Path, *what: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(PINS), *what]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    assert check(*built) == []


def test_what_does_not_belong_is_found() -> None:
    found = faults(["dmoe/__init__.py", "tests/a.py", "dmoe/x.csv", "dmoe/__pycache__/a.pyc"], wheel=True)
    assert "tests/: should not be there" in found
    assert "dmoe/x.csv: should not be there" in found
    assert "dmoe/__pycache__/a.pyc: should not be there" in found
    assert "dmoe/py.typed: is missing" in found
    assert ".yaml: no such file in the wheel" in found


@pytest.fixture(scope="module")
def core(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = bare_environment(tmp_path_factory.mktemp("core") / "env")
    install(python, str(built[0]))
    return python


@pytest.fixture(scope="module")
def place(core: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the quickstart of the core ran, laid out as the commands of the extras want it."""
    folder = tmp_path_factory.mktemp("place")
    done = call(core, "quickstart", "--output", ".quickstart", "--rows", "4000", place=folder)
    assert done.returncode == 0, done.stderr
    assert "best possible" in done.stdout
    assert (folder / ".quickstart" / "report.html").stat().st_size > 100_000
    for made in (folder / ".quickstart").iterdir():
        made.rename(folder / made.name)
    (folder / "runs" / "d-moe").rename(folder / "runs" / "first")
    return folder


@pytest.mark.release
@pytest.mark.slow
def test_the_core_says_what_is_absent(core: Path, place: Path) -> None:
    for extra in FEATURES.keys() - BROUGHT_ALONG:
        feature = FEATURES[extra]
        done = call(core, *feature.command, place=place)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (2, feature.sentence), extra


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.parametrize("extra", sorted(FEATURES.keys() - BROUGHT_ALONG - {"serve"}))
def test_an_extra_by_itself_does_what_it_is_for(
    extra: str, built: tuple[Path, Path], core: Path, place: Path, tmp_path: Path
) -> None:
    # Links to the files of the core: pip replaces files, it does not write into them.
    shutil.copytree(core.parents[1], tmp_path / "env", copy_function=os.link, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    install(python, f"{built[0]}[{extra}]")
    done = call(python, *FEATURES[extra].command, place=place)
    assert done.returncode == 0, done.stderr
    used = subprocess.run(["du", "-sm", str(tmp_path / "env")], capture_output=True, text=True, check=True).stdout
    print(f"{extra}: {used.split()[0]} MB in all")
