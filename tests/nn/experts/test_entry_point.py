"""The package of docs/own-expert.md, installed by pip into a folder of its own, is found by its entry point."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmoe.cli.main import main
from dmoe.nn.experts import EXPERTS
from tests.small_runs import write_data

PAGE = Path(__file__).parents[3] / "docs" / "own-expert.md"


BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path that pip has installed the page's package into."""
    source = tmp_path / "source"
    source.mkdir()
    for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        subprocess.run(["bash", "-euc", block], cwd=source, check=True)
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(tmp_path / "site")]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path / "site"
    EXPERTS.pop("weighed-fields", None)
    sys.modules.pop("your_experts", None)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def test_an_installed_expert_is_described_and_trained(
    installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(installed.glob("your_experts-0.1.dist-info/entry_points.txt"))
    assert "weighed-fields" not in EXPERTS
    words = ("experts", "weighed-fields", "--fields", 4, "--dim", 3, "--json")
    code, out, err = run(capsys, *words)
    assert code == 0, err
    (expert,) = json.loads(out)["experts"]
    assert expert["equation"].startswith("`Σ_i w_hi x_i`")
    assert expert["source"] == "You, 2026"
    assert expert["options"] == {"heads": {"type": "int", "default": 4}}
    assert expert["cost"]["parameters"] == (4 * 3 + 1) * 4 * 4

    data = write_data(tmp_path / "data", {"train": 300, "valid": 100, "test": 100})
    code, _, err = run(
        capsys, "train", "--data", data, "--output", tmp_path / "run", "model.embedding_dim=4",
        "model.experts=[{kind: weighed-fields, heads: 2}, {kind: crossnet, layers: 1}]", "model.expert_units=8",
        "training.batch_size=100", "training.epochs=1",
    )  # fmt: skip
    assert code == 0, err
    code, out, err = run(capsys, "evaluate", tmp_path / "run", "--split", "test", "--json")
    assert code == 0, err
    assert [one["name"] for one in json.loads(out)["test"]["experts"]] == ["weighed-fields", "crossnet"]

    code, _, err = run(
        capsys, "train", "--data", data, "--output", tmp_path / "other",
        "model.experts=[{kind: weighed-fields, heads: 0}, {kind: crossnet}]",
    )  # fmt: skip
    assert (code, "model.experts[0] (weighed-fields): heads must be at least 1, got 0" in err) == (2, True)


def test_without_the_package_the_name_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "experts", "weighed-fields")
    assert (code, "no expert 'weighed-fields'" in err) == (2, True)
