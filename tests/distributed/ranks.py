"""Processes of one group, started and waited for."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(
    arguments: list[str],
    ranks: int,
    *,
    prepare: dict[int, Callable[[], None]] | None = None,
    more: dict[str, str] | None = None,
) -> list[subprocess.Popen[str]]:
    """`python` with these arguments once a rank, as torchrun would set their environment.

    `prepare`: what a rank does before it runs them; `more`: variables of all of them.
    """
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=Path(__file__).parents[2],
            env={
                **os.environ,
                "PYTHONHASHSEED": "0",
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                **(more or {}),
            },
            preexec_fn=(prepare or {}).get(rank),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def ended(started: list[subprocess.Popen[str]], within_s: float) -> list[tuple[int, str, str]]:
    """Exit code and what was written of each; whoever has not ended by then is killed, and the test fails."""
    found = []
    try:
        for one in started:
            out, err = one.communicate(timeout=within_s)
            found.append((one.returncode, out, err))
    finally:
        for one in started:
            if one.poll() is None:
                one.kill()
                one.communicate()
    return found
