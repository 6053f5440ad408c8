"""The contracts of pyproject.toml on what may import what: they hold, and each one fails when it is broken."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="import-linter is not installed: pip install 'dmoe[dev]'")

ROOT = Path(__file__).resolve().parents[1]


def linted(folder: Path) -> str:
    """What lint-imports says of the package below `folder`."""
    code = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command as run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "broken." in done.stdout, done.stderr
    assert (done.returncode == 0) == (" 0 broken." in done.stdout)
    return done.stdout


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contracts")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_contracts_hold(copied: Path) -> None:
    assert " 0 broken." in linted(copied)


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("config/run.py", "from dmoe.nn.model import DMoE", "Modules import downwards only"),
        ("tokens/lists.py", "from dmoe.prepare.prepare import prepare", "Modules import downwards only"),
        ("decorrelation/losses.py", "from dmoe.errors import DataError", "Modules import downwards only"),
        ("serving/rows.py", "from dmoe.experiments import grid", "Modules import downwards only"),
        ("tokens/lists.py", "from dmoe.tokens.fields import convert", "Packages inside are free of circles"),
        ("decorrelation/losses.py", "import numpy", "De-correlation imports torch alone"),
        ("config/data.py", "import torch", "Configurations and run folders are read without torch"),
        ("disk/files.py", "import torch", "Configurations and run folders are read without torch"),
        ("nn/experts/cin.py", "import yaml", "Experts know nothing of files"),
        ("nn/mlp.py", "import pydantic", "Experts know nothing of files"),
        ("serving/app.py", "import sklearn.metrics", "Serving stays small"),
        ("values/canonical.py", "    import torch", "Serving stays small"),
    ],
)  # fmt: skip
def test_a_broken_contract_is_told(copied: Path, module: str, line: str, contract: str) -> None:
    path = copied / "src" / "dmoe" / module
    text = path.read_text(encoding="utf-8")
    # A line with an indent stands in a function: imports that are made late count too.
    added = f"\n\ndef late() -> None:\n{line}\n" if line.startswith(" ") else f"\n{line}\n"
    try:
        path.write_text(text + added, encoding="utf-8")
        assert f"{contract} BROKEN" in linted(copied)
    finally:
        path.write_text(text, encoding="utf-8")
