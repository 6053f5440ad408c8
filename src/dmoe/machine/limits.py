"""What this process may use of the machine: processors and memory, as affinity and control groups bound them."""

import math
import os
import sys
from pathlib import Path

_PROC = Path("/proc/self")
_MOUNT = Path("/sys/fs/cgroup")


def usable_threads() -> int:
    """The processors that this process may use: its affinity, or fewer where a control group grants less time."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for quota in map(_quota, _groups("cpu")) if quota is not None]
    return max(1, min([affinity, *map(math.ceil, quotas)]))


def environment_of(threads: int) -> dict[str, str]:
    """The environment of a process that is to use so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}


def memory_bytes() -> int | None:
    """The memory that this process may use: the machine's, or the least limit of its control groups.

    None where the system does not say.
    """
    limits = [limit for limit in map(_memory_limit, _groups("memory")) if limit is not None]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _groups(controller: str) -> list[Path]:
    """The folders of this process's control groups for a controller, from its own up to the root; none if unknown.

    Inside a container the path of /proc/self/cgroup may be that of the host: then the root alone is there.
    """
    try:
        lines = (_PROC / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _MOUNT / controller if controllers else _MOUNT
        inside = Path(path.lstrip("/"))
        found += [root / inside, *(root / parent for parent in inside.parents), root]
    return list(dict.fromkeys(found))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []


def _quota(group: Path) -> float | None:
    """Processors' worth of time: `cpu.max` of version 2, or the two files of version 1."""
    words = _words(group / "cpu.max") or [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
    if len(words) != 2 or words[0] == "max" or int(words[0]) <= 0:
        return None
    return int(words[0]) / int(words[1])


def _memory_limit(group: Path) -> int | None:
    words = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
    return int(words[0]) if words and words[0] != "max" else None


def peak_memory_bytes() -> int | None:
    """Highest resident memory of this process; None where Python has no module `resource` to ask, as on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
