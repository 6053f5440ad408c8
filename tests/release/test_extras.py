"""Without an extra its commands say so in one sentence, and everything else works."""

import sys
import tomllib
from pathlib import Path

import pytest

from dmoe.cli.main import main
from tests.release.extras import DEVELOPMENT, FEATURES, WITHOUT_A_COMMAND
from tests.small_runs import SMALL, write_data

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return int(done.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, a data set and a run."""
    folder = tmp_path_factory.mktemp("extras")
    (folder / "log.csv").write_text("click,site\n" + "".join(f"{row % 2},s{row % 7}\n" for row in range(100)))
    (folder / "log.data.yaml").write_text("label: click\nfields: {categorical: [site]}\n")
    data = write_data(folder / "data", {"train": 300, "valid": 100, "test": 100})
    (folder / "runs").mkdir()
    words = ["train", *SMALL[:-1], "training.epochs=1", "--no-baseline", "--data", str(data)]
    assert run(*words, "--output", str(folder / "runs" / "first")) == 0
    return folder


def test_each_extra_is_told_of() -> None:
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras) == set(FEATURES) | WITHOUT_A_COMMAND | DEVELOPMENT


@pytest.mark.parametrize("extra", FEATURES)
def test_an_absent_extra_is_one_sentence(
    extra: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = {path for path in place.rglob("*") if path.is_file()}
    for module in FEATURES[extra].modules:
        monkeypatch.setitem(sys.modules, module, None)
    assert run(*FEATURES[extra].words(place)) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == FEATURES[extra].sentence
    assert {path for path in place.rglob("*") if path.is_file()} == before


def test_without_any_extra_a_run_is_scored(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    # scikit-learn asks polars for its types wherever it has been imported.
    for module in {one for feature in FEATURES.values() for one in feature.modules} - {"polars"}:
        monkeypatch.setitem(sys.modules, module, None)
    assert run("evaluate", "runs/first", "--split", "valid") == 0
    assert "AUC" in capsys.readouterr().out
