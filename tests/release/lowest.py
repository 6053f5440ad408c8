"""Runs the quick tests of the core with the lowest versions that pyproject.toml allows: `make test-lowest`.

uv resolves the floors of the core and of what its tests need; pip installs them into build/lowest, so that torch comes
from wherever pip is told to look.
"""

import subprocess
import sys
from pathlib import Path

from tests.release.server import outside

ROOT = Path(__file__).parents[2]
HOME = ROOT / "build" / "lowest"
TESTS = ("config", "decorrelation", "nn", "tokens", "values", "sources", "scoring", "prepare", "training", "report")
# What tests use beside the core; scikit-learn of that time knows polars 1.
_OF_TESTS = ("pytest>=8.3", "hypothesis>=6.120", "pandas>=2.2.3", "polars>=1.25.2,<2")


def requirements() -> str:
    """The lowest versions, a line each."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--resolution", "lowest-direct"]
    command += ["--python-version", "3.11", "--no-annotate", "--no-header", "--quiet"]
    lines = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    # torch's packages for CUDA come with it where its build has them.
    return "\n".join(line for line in lines if not line.startswith(("nvidia-", "cuda-", "triton"))) + "\n"


def main() -> None:
    python = HOME / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
    pins = HOME / "lowest.txt"
    pins.write_text(requirements())
    print(pins.read_text())
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(pins)]
    # Another dmoe on PYTHONPATH would be taken for an installed one.
    subprocess.run([*install, "--editable", ".", *_OF_TESTS], cwd=ROOT, env=outside(), check=True)
    run = [str(python), "-m", "pytest", "-q", "-m", "not slow", "-W", "default"]
    environment = {**outside(), "OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.run([*run, *(f"tests/{name}" for name in TESTS)], cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()
