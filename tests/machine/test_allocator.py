"""Freed memory stays in the process; each case is a process of its own, since there is no way back."""

import platform
import subprocess
import sys

import pytest

# Pages that the system has to give in each of twelve rounds, which allocate and free the same four blocks of 36 MiB.
PAGES_OF_EACH_ROUND = """
import resource, sys
import torch
from dmoe.machine.allocator import keep_freed_memory

if "keep" in sys.argv:
    assert keep_freed_memory()
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    first = torch.ones(9 << 20)
    second = (first + 1).relu() * 2
    del first, second
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_blocks_that_were_freed_are_used_again() -> None:
    late = {}
    for word in ("", "keep"):
        command = [sys.executable, "-c", PAGES_OF_EACH_ROUND, word]
        # The least of three: a busy system takes pages back now and then.
        runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
        late[word] = min(sum(int(line) for line in done.stdout.split()[8:]) for done in runs)
    assert late["keep"] < 100
    # By default every round has all pages anew: 36 MiB four times over, in pages of up to 2 MiB.
    assert late[""] >= 4 * 4 * 18


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmoe.machine import allocator

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    assert allocator.keep_freed_memory() is False
