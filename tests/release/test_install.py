"""The wheel in bare environments: the quickstart by the core alone, each extra by itself, and all of them.

Gigabytes and up to an hour: `make test-dist` runs it, and prints what each environment holds.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.release.contents import ROOT, build, check, faults
from tests.release.extras import BROUGHT_ALONG, FEATURES, WITHOUT_A_COMMAND
from tests.release.server import outside, probability_of_an_example, served
from tests.release.sizes import said_of_extras, said_of_the_core, said_to_be_saved, sizes

PINS = ROOT / "constraints.txt"


def bare_environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


def call(python: Path, *words: str, place: Path) -> subprocess.CompletedProcess[str]:
    """`dmoe` of that environment and of no checkout."""
    return subprocess.run(
        [str(python), "-m", "dmoe", *words], cwd=place, env=outside(), capture_output=True, text=True, check=False
    )


def install(python: Path, *what: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(PINS), *what]
    subprocess.run(command, env=outside(), check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    # Not "build", which the folder of that name in a checkout would be taken for.
    pytest.importorskip("build.__main__", reason="build is not installed: pip install 'dmoe[release]'")
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


def differences(said: dict[tuple[str, ...], int], measured: dict[str, float]) -> list[str]:
    """Where a figure of docs/install.md is off by more than a tenth (and 2 MB)."""
    found = []
    for names, size in said.items():
        real = sum(measured.get(name, 0) for name in names)
        if abs(size - real) > max(0.1 * real, 2):
            found.append(f"docs/install.md says {size} MB of {', '.join(names)}; it is {real:.0f}")
    return found


def test_a_wrong_size_is_found() -> None:
    assert differences({("torch", "sympy"): 860}, {"torch": 790.0, "sympy": 69.0}) == []
    (wrong,) = differences({("gone",): 30}, {"torch": 790.0})
    assert wrong == "docs/install.md says 30 MB of gone; it is 0"
    assert {"polars", "onnxruntime"} <= said_of_extras().keys()
    core, saved = ({name for names in said() for name in names} for said in (said_of_the_core, said_to_be_saved))
    assert {"torch", "numpy", "duckdb"} <= core
    assert {"triton", "pandas", "sqlalchemy"} <= saved
    assert not core & saved


@pytest.fixture(scope="module")
def core(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("core") / "env"
    python = bare_environment(folder)
    install(python, str(built[0]))
    yield python
    shutil.rmtree(folder)


@contextmanager
def like(core: Path, folder: Path) -> Iterator[Path]:
    """An environment for more to be installed into: links to the core's files, which pip replaces, never changes."""
    shutil.copytree(core.parents[1], folder, copy_function=os.link, symlinks=True)
    yield folder / "bin" / "python"
    shutil.rmtree(folder)


@pytest.fixture
def environment(core: Path, tmp_path: Path) -> Iterator[Path]:
    with like(core, tmp_path / "env") as python:
        yield python


@pytest.fixture(scope="module")
def after_quickstart(core: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.fixture
def place(after_quickstart: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(after_quickstart, tmp_path / "place"))


@pytest.fixture(scope="module")
def exported(core: Path, built: tuple[Path, Path], after_quickstart: Path) -> Path:
    """A model for what serves one and can't make it."""
    with like(core, after_quickstart.with_name("exporting")) as python:
        install(python, f"{built[0]}[export]")
        done = call(python, *FEATURES["export"].words(after_quickstart), place=after_quickstart)
    assert done.returncode == 0, done.stderr
    return Path(shutil.move(after_quickstart / "models", after_quickstart.with_name("models")))


def does_what_it_is_for(python: Path, extra: str, place: Path) -> None:
    if extra == "gpu":
        module = "dmoe.kernels.row_triton_kernels"
        done = subprocess.run([str(python), "-c", f"import {module}"], cwd=place, env=outside(), check=False,
                              capture_output=True, text=True)  # fmt: skip
    elif extra == "serve":
        with served([str(python), "-m", "dmoe", "serve", "models/first"], place) as address:
            assert 0 < probability_of_an_example(address) < 1
        done = call(python, "predict", "models/first", "log.csv", "-o", "scores.csv", place=place)
    else:
        done = call(python, *FEATURES[extra].words(place), place=place)
    assert done.returncode == 0, f"{extra}: {done.stderr}"


def whole(python: Path, place: Path) -> dict[str, bool]:
    """Which extras are installed, as `dmoe doctor` sees it; the core must work."""
    done = call(python, "doctor", "--json", place=place)
    said = json.loads(done.stdout)
    assert (done.returncode, said["faults"]) == (0, [])
    return {name: one["complete"] for name, one in said["extras"].items()}


@pytest.mark.release
@pytest.mark.slow
def test_the_core_says_what_is_absent(core: Path, place: Path) -> None:
    assert {name for name, complete in whole(core, place).items() if complete} <= BROUGHT_ALONG
    for extra in FEATURES.keys() - BROUGHT_ALONG:
        feature = FEATURES[extra]
        done = call(core, *feature.words(place), place=place)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (2, feature.sentence), extra


@pytest.mark.release
@pytest.mark.slow
def test_the_core_weighs_what_the_page_says(core: Path) -> None:
    measured = sizes(core)
    print("\ncore, MB:", ", ".join(f"{name} {size:.0f}" for name, size in measured.items() if size >= 1))
    print(f"in all {sum(measured.values()):.0f} MB of {len(measured)} packages")
    assert differences(said_of_the_core(), measured) == []


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.parametrize("extra", sorted(FEATURES.keys() | WITHOUT_A_COMMAND))
def test_an_extra_by_itself_does_what_it_is_for(
    extra: str, built: tuple[Path, Path], environment: Path, place: Path, request: pytest.FixtureRequest
) -> None:
    if extra == "serve":
        shutil.copytree(request.getfixturevalue("exported"), place / "models")
    install(environment, f"{built[0]}[{extra}]")
    assert whole(environment, place)[extra]
    does_what_it_is_for(environment, extra, place)
    print(f"\n{extra}: {sum(sizes(environment).values()):.0f} MB in all")


@pytest.mark.release
@pytest.mark.slow
def test_all_extras_together(built: tuple[Path, Path], environment: Path, place: Path) -> None:
    extras = sorted(FEATURES.keys() | WITHOUT_A_COMMAND)
    install(environment, f"{built[0]}[{','.join(extras)}]")
    assert all(whole(environment, place).values())
    for extra in extras:
        does_what_it_is_for(environment, extra, place)
    measured = sizes(environment)
    print("\nall, MB:", ", ".join(f"{name} {size:.0f}" for name, size in measured.items() if size >= 1))
    said = {(name,): size for name, size in said_of_extras().items()} | said_to_be_saved()
    assert differences(said, measured) == []
