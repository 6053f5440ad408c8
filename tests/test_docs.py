"""Runs every python and bash block of the README and docs, so that what a reader pastes works.

Blocks of one page share a temporary folder and run in order; ```console blocks show a session and are not run.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dmoe.config.data import DataConfig
from dmoe.config.run import RunConfig, load_config
from dmoe.tuning.space import make_space
from dmoe.validation import validate

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKED = re.compile(r"(`+)(.+?)(?<!`)\1(?!`)", re.DOTALL)
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, code in blocks(page):
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{page.name}:\n{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configurations_are_valid(page: Path) -> None:
    for text in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        values = yaml.safe_load(text)
        if "parameters" in values:
            make_space(values, f"{page.name}: {text[:40]!r}", load_config("d-moe"))
            continue
        kind = DataConfig if {"label", "labels"} & set(values) else RunConfig
        validate(kind, values, f"{page.name}: {text[:40]!r}")


def broken_marks(text: str) -> list[str]:
    """Where `code` of a docstring has no end for Sphinx: a letter follows the mark, or a paragraph ends before it."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        found += [one.group() for one in MARKED.finditer(paragraph) if re.match(r"\w", paragraph[one.end() :])]
        found += re.findall(r"`.*", MARKED.sub("", paragraph))
    return found


def test_marks_of_docstrings_have_an_end() -> None:
    assert broken_marks("an `x`, ``y``: and `a\nb`.") == []
    assert broken_marks("a `Callback`s") == ["`Callback`"]
    assert broken_marks("a `x\n\nb` c") == ["`x", "` c"]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = {
        f"{path.relative_to(ROOT)}, {getattr(node, 'name', 'module')}": broken
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds) and (broken := broken_marks(ast.get_docstring(node) or ""))
    }
    assert found == {}
