"""Builds wheel and sdist and checks what is in them: `make dist`."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]


def build(output: Path) -> tuple[Path, Path]:
    """Wheel and sdist of the tracked files, built in a copy: a left-over build folder would get into a wheel."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "dmoe"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
            stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, source / name)
        subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output.absolute()), str(source)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    newest = [max(output.glob(kind), key=lambda path: path.stat().st_mtime) for kind in ("*.whl", "*.tar.gz")]
    return newest[0], newest[1]


def faults(names: Iterable[str], *, wheel: bool) -> list[str]:
    """What should not be in an archive, or is missing from it; `names` of an sdist without its leading folder."""
    names = sorted(name for name in names if not name.endswith("/"))
    found = [
        f"{name}: should not be there"
        for name in names
        if "__pycache__" in name or name.endswith((".pyc", ".csv", ".gz", ".parquet", ".safetensors"))
    ]
    prefix = "" if wheel else "src/"
    there = {name.removeprefix(prefix) for name in names if name.startswith(f"{prefix}dmoe/")}
    wanted = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "dmoe").rglob("*")
              if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    found += [f"{name}: is missing" for name in sorted(wanted - there)]
    found += [f"{name}: should not be there" for name in sorted(there - wanted)]
    if wheel:
        others = {PurePosixPath(name).parts[0] for name in names} - {"dmoe"}
        found += [f"{name}/: should not be there" for name in sorted(others) if not name.endswith(".dist-info")]
        kinds = {PurePosixPath(name).suffix for name in there}
        found += [f"{kind}: no such file in the wheel" for kind in {".yaml", ".j2", ".css", ".typed"} - kinds]
    return found


def check(wheel: Path, sdist: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as packed:
        found = [f"{wheel.name}: {fault}" for fault in faults(packed.namelist(), wheel=True)]
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive if member.isfile()]
    return found + [f"{sdist.name}: {fault}" for fault in faults(names, wheel=False)]


def main() -> None:
    built = build(Path(sys.argv[1]))
    found = check(*built)
    for path in built:
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
    sys.exit("\n".join(found) or 0)


if __name__ == "__main__":
    main()
