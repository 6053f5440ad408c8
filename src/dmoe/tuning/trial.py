"""One trial: a training on train, watched on valid; the test split is not read."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmoe.config.run import RunConfig
from dmoe.disk.files import read_json
from dmoe.errors import ConfigError, Interrupted, NonFiniteLossError
from dmoe.evaluation.watch import CorrelationWatch
from dmoe.experiments.runner import estimated_bytes
from dmoe.schema import Schema
from dmoe.shards.files import count_rows, find_parts
from dmoe.training.callbacks import Callback
from dmoe.training.loop import train
from dmoe.training.objective import monitored_value
from dmoe.training.progress import Silent
from dmoe.tuning.folder import Evaluation, Record
from dmoe.tuning.study import Study, Taken

Told = Callable[[str], None]
CallbacksOf = Callable[[int], Sequence[Callback]]


class _GivenUp(Interrupted):
    """The pruner ends the trial."""


@dataclass(frozen=True)
class Trials:
    """What all trials of a study share.

    Args:
        base: the configuration that they vary.
        memory: bytes that one of them may take.
        callbacks: for a trial's number, who is told of its training.
    """

    study: Study
    base: RunConfig
    data: Path
    schema: Schema
    rows: int
    memory: int | None
    tell: Told
    callbacks: CallbacksOf = lambda _: ()

    @staticmethod
    def of(
        study: Study, base: RunConfig, data: Path, memory: int | None, tell: Told, callbacks: CallbacksOf
    ) -> "Trials":
        schema = Schema.read(data)
        rows = count_rows(find_parts(data, "train", schema))
        return Trials(study, base, data, schema, rows, memory, tell, callbacks)

    def run(self, taken: Taken) -> Record:
        """Brings a trial to its end, from wherever it stopped.

        Raises: Interrupted if a stop is asked for, DataError if the data are at fault; the trial is then gone on with
            next time.
        """
        began = time.monotonic()
        watcher = _Reporter(self, taken)
        outcome = self._outcome(taken, watcher)
        seconds = max(time.monotonic() - began, outcome.pop("seconds", 0.0))
        record = Record(
            number=taken.number,
            params=taken.drawn,
            evaluations=[Evaluation(done=done, value=value) for done, value in sorted(taken.reported.items())],
            seconds=seconds,
            threads=torch.get_num_threads(),
            **outcome,
        )
        self.study.end(taken, record)
        return record

    def _outcome(self, taken: Taken, watcher: "_Reporter") -> dict[str, Any]:
        output = self.study.folder.run(taken.number)
        try:
            config = self.study.space.config(self.base, taken.drawn)
            needed = estimated_bytes(config, self.schema, self.rows)
            if self.memory is not None and needed > self.memory:
                return _given_up(f"needs about {needed / 2**30:.1f} GiB, more than it may have")
            if not (output / "metrics.json").is_file():
                callbacks = self.callbacks(taken.number)
                train(
                    config, self.data, output,
                    resume=True, watcher=watcher, splits=("valid",), callbacks=callbacks,
                    on_evaluation=CorrelationWatch(self.data) if callbacks else None,
                )  # fmt: skip
        except _GivenUp:
            return _given_up(f"below the median of trials at {watcher.done / 100:g} epochs") | {
                "seconds": watcher.seconds
            }
        except NonFiniteLossError as error:
            return _given_up(f"diverged: {error}")
        except ConfigError as error:
            return _given_up(str(error))
        except (MemoryError, torch.OutOfMemoryError):
            return _given_up("out of memory")
        final = read_json(output / "metrics.json")
        return {
            "state": "complete",
            "value": self.value(final["valid"]),
            "valid": final["valid"],
            "parameters": final["parameters"],
            "best_epoch": final["best_epoch"],
            "seconds": final["seconds"],
        }

    def value(self, valid: dict[str, Any]) -> float:
        """What the study maximises."""
        return monitored_value(valid, self.base.training.monitor, self.base.training.monitor_tasks)


def _given_up(reason: str) -> dict[str, Any]:
    return {"state": "pruned", "reason": reason}


class _Reporter(Silent):
    """Tells the study of each evaluation, and ends the training where the pruner says so."""

    def __init__(self, trials: Trials, taken: Taken) -> None:
        self.trials, self.taken = trials, taken
        self.done, self.seconds = 0, 0.0

    def evaluated(self, line: dict[str, Any]) -> None:
        self.done, self.seconds = round(100 * line["rows"] / self.trials.rows), line["seconds"]
        value = self.trials.value(line["valid"])
        if self.trials.study.report(self.taken, self.done, value):
            raise _GivenUp

    def warn(self, text: str) -> None:
        self.trials.tell(f"warning: trial {self.taken.number}: {text}")
