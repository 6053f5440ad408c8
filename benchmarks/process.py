"""The coordinator's side of a worker process; the protocol is in `benchmarks.workers.serve`."""

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.environments import ROOT


class WorkerError(Exception):
    """A worker failed; the message says why, or how its log ends when it died without a word."""


class Worker:
    """One contestant: computes only while a question of ours is open, so that runs can be interleaved.

    `environment`: variables that only this one has.
    """

    def __init__(
        self,
        python: Path,
        module: str,
        job: dict[str, Any],
        log: Path,
        *,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        threads = str(job["threads"])
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), threads)
        self._log = log
        answers, workers_end = os.pipe()
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [str(python), "-m", f"benchmarks.workers.{module}_worker", str(workers_end)],
                cwd=ROOT,
                env={**os.environ, **limits, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", **environment},
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                pass_fds=[workers_end],
                text=True,
            )
        # With our copy of its end closed, reading ends when the worker does.
        os.close(workers_end)
        self._answers = os.fdopen(answers, encoding="utf-8")
        try:
            self.ready = self.ask(job)
        except WorkerError:
            self.close()
            raise

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question.

        Raises: WorkerError.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            end = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise WorkerError(f"ended with code {code}: {''.join(end) or 'no message (out of memory?)'}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def run(self, mode: str, steps: int) -> list[float]:
        """Milliseconds a batch of each step."""
        return self.measure(mode, steps)["ms"]

    def measure(self, mode: str, steps: int) -> dict[str, list[float]]:
        """The same as `ms`, and `cpu_ms`: processor time of all threads."""
        times: dict[str, list[float]] = self.ask({"command": "run", "mode": mode, "steps": steps})
        return times

    def close(self) -> None:
        for stream in (self._process.stdin, self._answers):
            # A worker that died leaves a question that cannot be delivered any more.
            with suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
