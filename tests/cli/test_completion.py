"""What a shell completes, asked as bash and zsh ask."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmoe.baselines.models import KINDS
from dmoe.cli import completion
from dmoe.cli.main import COMMANDS
from dmoe.config.run import presets
from dmoe.experiments.folder import all_names
from dmoe.prepare.recipes import recipe_names
from dmoe.synthetic.presets import PRESETS

PROGRAM = Path(sys.executable).with_name("dmoe")


def typed(line: str, shell: str = "bash") -> str:
    """What `dmoe` answers a shell that completes `line`."""
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))} if shell == "bash" else {}
    asked = {"_DMOE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, **variables}
    code = "from dmoe.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dmoe ", list(COMMANDS)),
        ("dmoe tra", ["train"]),
        ("dmoe train d-", [name for name in presets() if name.startswith("d-")]),
        ("dmoe train --proc", ["--processes"]),
        ("dmoe train made", ["made.yaml", "made-in/"]),
        ("dmoe config --preset pa", ["paper"]),
        ("dmoe prepare --recipe criteo_x", [name for name in recipe_names() if name.startswith("criteo_x")]),
        ("dmoe generate log.csv --preset t", ["tasks", "toy"]),
        ("dmoe baseline data --kind l", list(KINDS)),
        ("dmoe train d-moe --track m", ["mlflow"]),
        ("dmoe tune se", ["se-moe"]),
        ("dmoe tune d-moe --track t", ["tensorboard"]),
        ("dmoe tune d-moe --space d-", [name for name in presets() if name.startswith("d-")]),
        ("dmoe evaluate run --split t", ["train", "test"]),
    ],
)
def test_what_bash_is_told(line: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made.yaml").touch()
    (tmp_path / "made.csv").touch()
    (tmp_path / "made-in").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sorted(typed(line).split()) == sorted(expected)


def test_zsh_is_told_alike() -> None:
    assert '"d-moe-tasks"' in typed("dmoe train d-", "zsh")


@pytest.mark.skipif(shutil.which("bash") is None or not PROGRAM.is_file(), reason="bash and an installed dmoe")
def test_the_script_for_bash_completes() -> None:
    script = (
        f"source <(_DMOE_COMPLETE=source_bash {PROGRAM}); COMP_WORDS=(dmoe train d-); COMP_CWORD=2; "
        f"_dmoe_completion {PROGRAM}; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [name for name in presets() if name.startswith("d-")], done.stderr


def test_names_are_those_that_ship() -> None:
    assert completion.presets("") == presets()
    assert completion.recipes("") == recipe_names()
    assert sorted(completion.logs("")) == sorted(PRESETS)
    assert set(completion.experiments("")) <= set(all_names())


def test_nothing_slow_is_imported_for_it() -> None:
    code = (
        "import sys; from dmoe.cli import completion, main; main.build_app('train'); completion.configurations('d'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'pydantic', 'yaml', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
