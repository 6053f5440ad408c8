"""What a user's own code is told of a training: the `Callback` protocol, and the guard that keeps it from mattering."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch


@dataclass(frozen=True, slots=True)
class TrainingStart:
    """What is known when training starts, or goes on.

    Args:
        run: the run folder.
        data: the data set folder.
        config: the configuration with nothing left to choose, as plain values.
        steps: steps to the last epoch; early stopping ends it sooner.
        step: the step after which training goes on: 0 of a new run. Evaluations after it come (again).
        parameters: numbers that are trained.
    """

    run: Path
    data: Path
    config: Mapping[str, Any]
    steps: int
    step: int
    parameters: int


@runtime_checkable
class Callback(Protocol):
    """Told how a training goes; subclass it and override what is of interest.

    What a callback is given is a copy, and torch's settings and random numbers are put back after each call: it
    cannot change what training computes. An exception in it is warned of once, with its name, and it is told nothing
    more; training goes on. Of several processes only the first has callbacks.
    """

    def on_start(self, start: TrainingStart) -> None:
        """Training starts, or goes on after an interruption."""

    def on_evaluation(self, metrics: dict[str, Any]) -> None:
        """An evaluation was made: the line of metrics.jsonl (docs/training.md), with epoch, step and `valid`."""

    def on_end(self, metrics: dict[str, Any], run: Path) -> None:
        """Training is complete: the content of metrics.json, and the run folder with all its files."""

    def on_stop(self, error: BaseException) -> None:
        """Training ended before it was complete, by this error; an `Interrupted` run may be resumed."""


class Callbacks:
    """Callbacks of one training, guarded.

    Args:
        warn: is given the sentence about a callback that fails; by default it is a UserWarning.
    """

    def __init__(self, callbacks: Sequence[Callback], warn: Callable[[str], None] | None = None) -> None:
        self._told = list(callbacks)
        self._warn = warn or warnings.warn

    def start(self, start: TrainingStart) -> None:
        self._tell(lambda one: one.on_start(copy.deepcopy(start)))

    def evaluation(self, metrics: dict[str, Any]) -> None:
        self._tell(lambda one: one.on_evaluation(copy.deepcopy(metrics)))

    def end(self, metrics: dict[str, Any], run: Path) -> None:
        self._tell(lambda one: one.on_end(copy.deepcopy(metrics), run))

    def stop(self, error: BaseException) -> None:
        self._tell(lambda one: one.on_stop(error))

    def _tell(self, what: Callable[[Callback], None]) -> None:
        for one in list(self._told):
            try:
                with _put_back():
                    what(one)
            except Exception as error:
                self._told.remove(one)
                reason = " ".join(str(error).split())[:300] or "no message"
                self._warn(
                    f"{name_of(one)} failed ({type(error).__name__}: {reason}); training goes on without telling it "
                    "anything more"
                )


def name_of(callback: Callback) -> str:
    """What a callback is called in messages: its `name`, if it has one, or its class."""
    return str(getattr(callback, "name", None) or f"callback {type(callback).__name__}")


@contextmanager
def _put_back() -> Iterator[None]:
    """Puts torch's settings and random numbers back to what they were."""
    on_device = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if on_device else []
    dtype, threads, gradients = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    precision = torch.get_float32_matmul_precision()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(gradients)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.set_float32_matmul_precision(precision)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
