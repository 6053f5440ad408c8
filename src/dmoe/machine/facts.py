"""What this machine has for training: processors and their instructions, memory, disk, CUDA devices, Java."""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmoe.machine.limits import memory_bytes, usable_threads

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
# Instructions that matter here, as Linux and macOS name them.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16")
_JAVA_S = 20


@dataclass(frozen=True, slots=True)
class Processor:
    """`usable` of the `present` processors; `kernels`: what torch chose, such as AVX512, None without torch."""

    name: str
    present: int
    usable: int
    instructions: list[str]
    kernels: str | None

    @property
    def bfloat16(self) -> bool:
        """Whether products of bfloat16 are computed as such."""
        return any("bf16" in one for one in self.instructions)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes; None where the system does not say. `limit`: what this process may use, by its control groups too."""

    present: int | None
    limit: int | None
    free: int | None
    disk_free: int
    disk: str


def processor() -> Processor:
    """The processors and their instructions."""
    lines = _lines(_CPUINFO)
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    try:
        import torch

        kernels: str | None = torch.backends.cpu.get_cpu_capability()
    except ImportError:
        kernels = None
    return Processor(
        name or platform.processor() or platform.machine(),
        os.cpu_count() or 1,
        usable_threads(),
        [one for one in _INSTRUCTIONS if one in flags],
        kernels,
    )


def memory() -> Memory:
    """Memory, and the disk of temporary files."""
    said = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in _lines(_MEMINFO))}
    place = tempfile.gettempdir()
    return Memory(said.get("MemTotal"), memory_bytes(), said.get("MemAvailable"), shutil.disk_usage(place).free, place)


def cuda() -> dict[str, Any]:
    """What torch was built for, and each device that it sees: name, memory in bytes, capability, bfloat16."""
    import torch

    devices = []
    for number in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(number)
        devices.append(
            {
                "name": of.name,
                "memory": of.total_memory,
                "capability": f"{of.major}.{of.minor}",
                "bfloat16": of.major >= 8,
            }
        )
    return {"built_for": torch.version.cuda, "devices": devices}


def java() -> str | None:
    """The version of the Java that Spark would start; None if there is none."""
    home = os.environ.get("JAVA_HOME")
    program = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=_JAVA_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "([^"]+)"', done.stderr + done.stdout)
    return found[1] if found else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
