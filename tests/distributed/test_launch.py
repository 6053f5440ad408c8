"""How a process of several ends."""

import os
import subprocess
import sys

import pytest

ENDING = """
import sys, threading, time
from dmoe.distributed.launch import ends_at_once
threading.Thread(target=time.sleep, args=(60,)).start()  # as torch.distributed has them
def work():
    print("said")
    {last}
ends_at_once(work)
"""


@pytest.mark.parametrize(
    ("last", "code"), [("pass", 0), ("sys.exit(7)", 7), ("sys.exit('words')", 1), ("raise KeyError(3)", 1)]
)
def test_a_process_of_several_waits_for_no_thread_and_loses_no_word(last: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(last=last)],
        env={**os.environ, "RANK": "0"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout == "said\n"
    assert ("KeyError: 3" in done.stderr) == ("KeyError" in last)
