"""Completes constraints.txt for all extras, Linux and macOS, Python 3.11 and newer: `make constraints`.

Present pins stay; with --upgrade every package gets the newest version that fits. Resolved from metadata by uv, so
nothing is installed and torch's own CUDA packages, which torch pins itself, are left out.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINS = ROOT / "constraints.txt"
HEADER = "# Versions that dmoe is tested with; install with: pip install -c constraints.txt dmoe"
# torch names exact versions of these; on a machine without CUDA they are not installed.
_OF_TORCH = ("nvidia-", "cuda-")


def name_of(line: str) -> str:
    return line.partition("==")[0].strip().lower().replace("_", "-").replace(".", "-")


def merged(kept: list[str], resolved: list[str]) -> list[str]:
    """The lines of a constraints file: those kept as they are written, and what else was resolved."""
    needed = [line for line in resolved if not name_of(line).startswith(_OF_TORCH)]
    written = {name_of(line): line for line in kept if ";" not in line}
    # A package may have a line for each of several versions of Python.
    lines = {written.get(name_of(line), line) for line in needed}
    return [HEADER, *sorted(lines, key=lambda line: (name_of(line), line))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.release.constraints", description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    upgrade = parser.parse_args().upgrade
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--all-extras", "--universal"]
    command += ["--group", "server", "--python-version", "3.11", "--no-annotate", "--no-header", "--quiet"]
    command += [] if upgrade else ["--constraints", str(PINS)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    kept = [] if upgrade else [line for line in PINS.read_text().splitlines() if not line.startswith("#")]
    PINS.write_text("\n".join(merged(kept, done.stdout.splitlines())) + "\n")


if __name__ == "__main__":
    main()
