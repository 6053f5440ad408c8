"""The worker's side of the protocol: one JSON object a line on stdin, one a line in answer on the pipe whose file
descriptor is the program's argument (stdout is not ours alone: some libraries print to it when imported).

The first line is the job (see `benchmarks.cases.Case.job`), answered when the model is ready. Then:
{"command": "run", "mode": MODE, "steps": k} -> {"ms": [k times], "cpu_ms": [k times of all threads]};
{"command": "profile", "steps": k} -> parts; {"command": "memory"} -> {"peak_bytes": …}.
A worker ends when its stdin does.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# One step on the next batches, and how many they were; the modes of a contestant are the keys of its dict of these.
Step = Callable[[], int]
Job = dict[str, Any]


def load_batches(job: Job) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """The prebuilt batches: ids (B, F) and labels (B,), views of one array."""
    arrays = np.load(job["batches"])
    ids_RF, labels_R = arrays["ids"], arrays["labels"].astype(np.float32)
    size = job["batch_size"]
    starts = range(0, len(ids_RF), size)
    return [(ids_RF[start : start + size], labels_R[start : start + size]) for start in starts]


def labels_of_tasks(labels_B: NDArray[np.float32], job: Job) -> NDArray[np.float32]:
    """(B, T): a task's labels are those of the one before, a row further on."""
    return np.stack([np.roll(labels_B, task) for task in range(job["tasks"])], axis=1)


def endless(make: Callable[[], Any]) -> Iterator[Any]:
    """Epoch after epoch of `make()`."""
    while True:
        yield from make()


def count_parameters(model: Any) -> int:
    """Trained numbers of a torch module; equal models have equally many."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def peak_bytes() -> int:
    """The largest resident set of this process so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM; peak memory is measured on Linux only")


def timed(step: Step, count: int) -> dict[str, list[float]]:
    """Milliseconds a batch of each of `count` steps, on the clock and of processor time."""
    times: dict[str, list[float]] = {"ms": [], "cpu_ms": []}
    for _ in range(count):
        start, cpu_start = time.perf_counter(), time.process_time()
        batches = step()
        times["ms"].append((time.perf_counter() - start) * 1e3 / batches)
        times["cpu_ms"].append((time.process_time() - cpu_start) * 1e3 / batches)
    return times


def serve(
    prepare: Callable[[Job], tuple[dict[str, Step], int]],
    packages: tuple[str, ...],
    profile: Callable[[int], dict[str, float]] | None = None,
) -> None:
    """Answers commands until stdin ends; `prepare` gives the modes of a job and its number of parameters."""
    answers = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        job = json.loads(sys.stdin.readline())
        import torch

        torch.set_num_threads(job["threads"])
        steps, parameters = prepare(job)
        versions = {name: version(name) for name in ("torch", *packages)}
        answer({"versions": versions, "parameters": parameters})
        for line in sys.stdin:
            request = json.loads(line)
            match request["command"]:
                case "run":
                    answer(timed(steps[request["mode"]], request["steps"]))
                case "profile" if profile is not None:
                    answer(profile(request["steps"]))
                case "memory":
                    answer({"peak_bytes": peak_bytes()})
                case other:
                    answer({"error": f"unknown command '{other}'"})
    except Exception as error:
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
