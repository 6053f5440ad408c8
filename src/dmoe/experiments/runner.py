"""Runs the cells of experiments in processes of their own, within a budget of cores, memory and time.

Nothing is held in this process that is not on disk: after a kill the same call goes on where it stopped, and a cell
that was half trained goes on from its last checkpoint.
"""

import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from filelock import FileLock, Timeout

from dmoe.config.run import RunConfig
from dmoe.config.tasks import sizes_of
from dmoe.disk.files import write_json
from dmoe.errors import ConfigError, Interrupted
from dmoe.experiments import plan
from dmoe.experiments.folder import FAILED, Asked, Folder
from dmoe.experiments.grid import Arm
from dmoe.experiments.plan import Wanted
from dmoe.machine.limits import environment_of
from dmoe.machine.stopping import StopRequest, stop_requests
from dmoe.schema import Schema
from dmoe.training.recipe import sized

POLL_SECONDS = 0.1
# What Python, torch and the compiled row kernels take before any model.
PROCESS_BYTES = 700 << 20
# Weights, two moments, the copy that is written out, and gradients and buffers of the rows in flight.
COPIES_OF_TABLES = 4.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What the runner may use at once (`jobs` processes of `threads` threads, `memory` bytes) and in all."""

    jobs: int
    threads: int
    memory: int
    core_seconds: float | None = None
    keep_weights: bool = False


@dataclass(slots=True)
class Running:
    """A cell at work."""

    wanted: Wanted
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    memory: int
    began: float


@dataclass(slots=True)
class State:
    """Where the whole stands; shown while it runs."""

    expected: int
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    here: list[float] = field(default_factory=list)
    """Seconds of the cells that this call has finished."""
    by_part: dict[int | None, list[float]] = field(default_factory=dict)
    """Of these, those of each part of the log, None for the whole."""
    core_seconds: float = 0.0
    out_of_budget: bool = False

    @property
    def left(self) -> int:
        return max(self.expected - len(self.done) - len(self.failed), 0)


class Display(Protocol):
    """Told where the runner stands."""

    def show(self, state: State) -> None: ...
    def ended(self, one: Running, seconds: float, failure: str | None) -> None: ...


def estimated_bytes(config: RunConfig, schema: Schema, rows: int) -> int:
    """About the memory that a cell needs at its peak: tables, the rows of the log, and the process itself.

    `rows`: of the training split, by which a recipe chooses sizes.
    """
    config = sized(config, rows)
    model = config.model
    table_of_expert = model.table_of_expert(*sizes_of(schema))
    dims, num_tables = model.embedding_dim, max(table_of_expert) + 1
    widths = dims if isinstance(dims, list) else [dims] * num_tables
    width = sum(widths) + (widths[0] if len(table_of_expert) > 1 and model.gate.table == "own" else 0)
    tables = sum(schema.vocabulary_sizes) * width * 4
    data = min(rows * (4 * len(schema.fields) + 5), int(config.training.memory_gb * 2**30))
    activations = config.training.batch_size * (len(schema.fields) * width + 8 * model.expert_units) * 4 * 6
    return int(PROCESS_BYTES + COPIES_OF_TABLES * tables + data + activations)


class Runner:
    """Brings every cell of the asked experiments to its end.

    Raises:
        ConfigError: another runner is at work in the folder, or a cell needs more memory than there may be.
        Interrupted: SIGINT or SIGTERM; cells at work have saved where they were.
    """

    def __init__(self, folder: Folder, limits: Limits, display: Display) -> None:
        self.folder, self.limits, self.display = folder, limits, display
        self.asked: Asked = folder.asked
        self.schema = folder.schema
        self.arms: list[Arm] = [arm for table in folder.tables() for arm in folder.arms(table)]
        self.rows = self.asked.splits["train"].rows

    def run(self) -> State:
        with ExitStack() as stack:
            try:
                stack.enter_context(FileLock(self.folder.path / ".lock", timeout=0))
            except Timeout:
                raise ConfigError(
                    f"{self.folder.path}: another `dmoe experiment` is at work there; wait for it or stop it"
                ) from None
            stop = stack.enter_context(stop_requests())
            return self._run(stop)

    def _run(self, stop: StopRequest) -> State:
        seeds = self.asked.seed_numbers
        self.folder.make_parts()
        # Cells that failed before are tried again.
        for key in self.folder.failed():
            (self.folder.cell(key) / FAILED).unlink()
        finished = self.folder.finished()
        state = State(plan.expected_number(self.arms, seeds))
        wanted = plan.wanted(self.arms, seeds, finished)
        state.done = {one.cell.key for one in wanted if one.cell.key in finished}
        for one in wanted:
            self._check_memory(one)
        try:
            while True:
                if stop.made:
                    raise Interrupted(
                        f"interrupted with {state.left} of {state.expected} cells to go; the same command continues"
                    )
                self._start(wanted, state)
                self.display.show(state)
                if not state.running:
                    return state
                time.sleep(POLL_SECONDS)
                if ended := [one for one in state.running.values() if one.process.poll() is not None]:
                    for cell in ended:
                        self._collect(cell, state)
                        if (figures := self.folder.figures(cell.wanted.cell.key)) is not None:
                            finished[cell.wanted.cell.key] = figures
                    wanted = plan.wanted(self.arms, seeds, finished, list(state.failed))
                    # What an earlier call finished may be known to be needed only now.
                    state.done |= {one.cell.key for one in wanted if one.cell.key in finished}
        finally:
            _end(list(state.running.values()))

    def _check_memory(self, one: Wanted) -> None:
        needed = self._needed(one)
        if needed > self.limits.memory:
            raise ConfigError(
                f"a cell of {one.experiments[0]} needs about {needed / 2**30:.1f} GiB, more than the "
                f"{self.limits.memory / 2**30:.1f} GiB that it may have; raise --memory or choose a smaller --size"
            )

    def _needed(self, one: Wanted) -> int:
        part = one.cell.part
        schema = self.schema if part is None else Schema.read(self.folder.data(part))
        return estimated_bytes(one.cell.config, schema, self.rows if part is None else part)

    def _start(self, wanted: list[Wanted], state: State) -> None:
        for one in wanted:
            key = one.cell.key
            if key in state.done or key in state.failed or key in state.running:
                continue
            if len(state.running) >= self.limits.jobs:
                return
            if self._beyond_budget(state, one):
                state.out_of_budget = True
                return
            needed = self._needed(one)
            if sum(other.memory for other in state.running.values()) + needed > self.limits.memory:
                if not state.running:
                    self._check_memory(one)
                return
            state.running[key] = self._spawn(one, needed)

    def _rows_of(self, part: int | None) -> int:
        return self.rows if part is None else part

    def _beyond_budget(self, state: State, one: Wanted) -> bool:
        """Whether one more cell, taking as long as the others did, would use more than the budget."""
        limit = self.limits.core_seconds
        if limit is None:
            return False
        begun = [*(other.wanted for other in state.running.values()), one]
        return state.core_seconds + sum(self._typical(state, each) for each in begun) > limit

    def _typical(self, state: State, one: Wanted) -> float:
        """Core-seconds of a cell: the mean of those here, or of parts of a log by their rows."""
        if not state.here:
            return 0.0
        if not state.by_part.keys() - {None}:
            return sum(state.here) / len(state.here) * self.limits.threads
        part = one.cell.part
        nearest = part if part in state.by_part else max(state.by_part, key=self._rows_of)
        seconds = state.by_part[nearest]
        return sum(seconds) / len(seconds) * self._rows_of(part) / self._rows_of(nearest) * self.limits.threads

    def _spawn(self, one: Wanted, memory: int) -> Running:
        cell = self.folder.make_cell(one.cell)
        command = [
            sys.executable,
            "-m",
            "dmoe.experiments.cell",
            str(cell),
            "--data",
            str(self.folder.data(one.cell.part)),
        ]
        command += ["--threads", str(self.limits.threads)]
        if one.cell.part is not None:
            command += ["--part", str(one.cell.part)]
        if self.asked.truth is not None:
            command += ["--truth", self.asked.truth]
        if self.limits.keep_weights:
            command.append("--keep-weights")
        log = (cell / "log.txt").open("wb")
        # A session of its own: Ctrl-C is for the runner, which then stops its cells in good order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment_of(self.limits.threads),
            start_new_session=True,
        )
        return Running(one, process, log, memory, time.monotonic())

    def _collect(self, one: Running, state: State) -> None:
        one.log.close()
        key = one.wanted.cell.key
        del state.running[key]
        seconds = time.monotonic() - one.began
        state.core_seconds += seconds * self.limits.threads
        failure = None
        if one.process.returncode == 0 and self.folder.figures(key) is not None:
            state.done.add(key)
            state.here.append(seconds)
            state.by_part.setdefault(one.wanted.cell.part, []).append(seconds)
        else:
            failure = _reason(one.process.returncode, self.folder.cell(key) / "log.txt")
            state.failed[key] = failure
            write_json(self.folder.cell(key) / FAILED, {"reason": failure})
        self.display.ended(one, seconds, failure)


def _reason(code: int, log: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + ("; probably out of memory" if code == -signal.SIGKILL else "")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}"


def _end(running: list[Running]) -> None:
    """Asks the cells to stop after their present step, and waits until they have."""
    for one in running:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)
    for one in running:
        one.process.wait()
        one.log.close()
