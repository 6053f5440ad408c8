"""An environment of its own for each peer: peers need versions that exclude each other and ours."""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    # Its CSV preprocessing fails with polars 2.
    "fuxictr": ("fuxictr==2.3.10", "polars<2"),
    # It imports requests without requiring it.
    "deepctr": ("deepctr-torch==0.3.0", "requests"),
    "rechub": ("torch-rechub==0.9.0", "scikit-learn"),
}

# Pinned to what dmoe itself is tested with, so that all contestants run on the same kernels.
SHARED = ("torch", "numpy")


class InstallationError(Exception):
    """A peer could not be installed; the message holds the end of pip's."""


def pinned() -> list[str]:
    """The lines of constraints.txt that peers share with dmoe."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("==")[0] in SHARED]


def python_of(peer: str, folder: Path) -> Path:
    """The interpreter of `peer`'s environment below `folder`, which is made when absent or out of date.

    Raises: InstallationError.
    """
    if peer == "dmoe" or peer == "hardware":
        return Path(sys.executable)
    place = folder / peer
    python = place / "bin" / "python"
    wanted = "\n".join([*pinned(), *REQUIREMENTS[peer]])
    marker = place / "installed.txt"
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {peer} into {place}", file=sys.stderr)
    if not python.exists():
        venv.create(place, with_pip=True)
    constraints = place / "constraints.txt"
    constraints.write_text("\n".join(pinned()) + "\n", encoding="utf-8")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints)]
    done = subprocess.run([*command, *SHARED, *REQUIREMENTS[peer]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InstallationError(f"{peer}: pip failed: {done.stderr.strip()[-500:]}")
    marker.write_text(wanted, encoding="utf-8")
    return python
