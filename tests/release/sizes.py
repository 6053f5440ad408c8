"""What packages of an environment weigh, and what the page on installing says of it. No test of its own."""

import json
import re
import subprocess
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "install.md"
_MEASURE = """
import json
from importlib.metadata import distributions
def size(one):
    return sum(path.stat().st_size for path in map(one.locate_file, one.files or ()) if path.is_file())
print(json.dumps({one.name: size(one) for one in distributions()}))
"""
_NAMES = re.compile(r"[a-z][a-z0-9_-]+")


def name_of(package: str) -> str:
    return package.lower().replace("_", "-")


def sizes(python: Path) -> dict[str, float]:
    """MB (1,000,000 bytes) of what pip wrote of each installed package, the largest first."""
    done = subprocess.run([str(python), "-c", _MEASURE], capture_output=True, text=True, check=True)
    found = {name_of(name): size / 1e6 for name, size in json.loads(done.stdout).items()}
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def said_of_the_core() -> dict[tuple[str, ...], int]:
    """MB of the packages of each row of the table of the core."""
    return _said(_rows("What the core weighs", "package"))


def said_to_be_saved() -> dict[tuple[str, ...], int]:
    """MB of the packages of each row of the table of what the core leaves out."""
    return _said(_rows("What the core weighs", "left out"))


def said_of_extras() -> dict[str, int]:
    """MB of each package that the table of extras names."""
    rows = _rows("Extras", "extra")
    return {name: int(size) for row in rows for name, size in re.findall(r"([a-z][a-z0-9-]*) (\d+)", row[2])}


def _said(rows: list[list[str]]) -> dict[tuple[str, ...], int]:
    return {tuple(map(name_of, _NAMES.findall(re.sub(r"\b(with|and)\b", "", row[0])))): int(row[1]) for row in rows}


def _rows(heading: str, first: str) -> list[list[str]]:
    """The rows of the table under a heading whose first column is called `first`."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    table = section.partition(f"\n| {first} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
