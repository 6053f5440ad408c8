"""Works through the trials of a study: in this process, or in several that share its storage."""

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from dmoe.config.run import RunConfig
from dmoe.errors import DmoeError, Interrupted
from dmoe.machine.limits import environment_of
from dmoe.machine.stopping import stop_requests
from dmoe.tuning.folder import Record, best_of
from dmoe.tuning.study import Study
from dmoe.tuning.trial import CallbacksOf, Told, Trials

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a call goes.

    Args:
        trials: of the study in all, None for as many as the rest allows.
        seconds: of this call; no trial begins that would, taking as long as the others did, end after them.
        core_seconds: of all trials of the study, in the same way.
        memory: bytes that one trial may take.
        threads: of one trial.
    """

    trials: int | None
    seconds: float | None = None
    core_seconds: float | None = None
    memory: int | None = None
    threads: int = 1

    def allow(self, records: list[Record], since: float) -> bool:
        """Whether one more trial fits in, this call having begun `since` on the monotonic clock."""
        typical = sum(one.seconds for one in records) / len(records) if records else 0.0
        if self.seconds is not None and records and time.monotonic() - since + typical > self.seconds:
            return False
        used = sum(one.seconds * one.threads for one in records)
        return self.core_seconds is None or not records or used + typical * self.threads <= self.core_seconds


def work(
    study: Study, base: RunConfig, data: Path, limits: Limits, tell: Told, callbacks: CallbacksOf = lambda _: ()
) -> None:
    """Takes trials one after another while there are any and the limits allow them.

    Raises: Interrupted if a stop is asked for.
    """
    torch.set_num_threads(limits.threads)
    began = time.monotonic()
    trials = Trials.of(study, base, data, limits.memory, tell, callbacks)
    with stop_requests() as requests:
        while True:
            if requests.made:
                raise Interrupted(f"interrupted after {study.counted()} trials; the same command continues")
            if not limits.allow(study.folder.records(), began) or (taken := study.next(limits.trials)) is None:
                return
            try:
                record = trials.run(taken)
            except Interrupted:
                study.folder.forget_attempts(taken.number)
                raise
            finally:
                taken.lock.release()
            tell(line_of(record, study.folder.records()))


def line_of(record: Record, records: list[Record]) -> str:
    """What is said of a trial that has ended."""
    best = best_of(records)
    params = ", ".join(f"{name} {_short(value)}" for name, value in record.params.items())
    if record.state == "complete" and record.valid is not None:
        what = f"valid AUC {_score(record.valid.auc)}  logloss {_score(record.valid.logloss)}"
    else:
        what = f"given up: {record.reason}"
    leader = "" if best is None else "  best so far" if best.number == record.number else f"  best: trial {best.number}"
    return f"trial {record.number}: {params}\n  {what}  {record.seconds:.0f} s{leader}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker process reads on its standard input; configuration and space are those of the folder.

    Args:
        trackers: the words of each --track.
    """

    output: str
    storage: str
    data: str
    limits: Limits
    trackers: tuple[str, ...] = ()

    def text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str) -> "Order":
        values = json.loads(text)
        limits, trackers = Limits(**values.pop("limits")), tuple(values.pop("trackers"))
        return Order(limits=limits, trackers=trackers, **values)


def work_together(jobs: int, command: Sequence[str], order: Order, tell: Told) -> None:
    """Has so many processes of `command` work by the order, and waits for them; one that is killed is replaced.

    Raises: Interrupted if a stop is asked for, DmoeError if a worker fails.
    """
    began = time.monotonic()
    with stop_requests() as requests:
        workers = [_spawn(command, order, began) for _ in range(jobs)]
        try:
            while workers:
                if requests.made:
                    raise Interrupted("interrupted; the same command continues")
                time.sleep(_POLL_SECONDS)
                for one in [one for one in workers if one.poll() is not None]:
                    workers.remove(one)
                    if one.returncode < 0:
                        name = signal.Signals(-one.returncode).name
                        tell(f"warning: a worker was killed by {name}; another one goes on with its trial")
                        workers.append(_spawn(command, order, began))
                    elif one.returncode:
                        raise DmoeError("a worker failed, as it says above; the same command continues")
        finally:
            for one in workers:
                one.send_signal(signal.SIGTERM)
            for one in workers:
                one.wait()


def _spawn(command: Sequence[str], order: Order, began: float) -> "subprocess.Popen[bytes]":
    seconds = order.limits.seconds
    left = None if seconds is None else max(seconds - (time.monotonic() - began), 0.0)
    order = replace(order, limits=replace(order.limits, seconds=left))
    environment = environment_of(order.limits.threads)
    # A session of its own: Ctrl-C is for this process, which then stops them in good order.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
    assert process.stdin is not None
    process.stdin.write(order.text().encode())  # not as arguments: the storage may hold a password
    process.stdin.close()
    return process
