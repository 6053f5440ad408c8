"""The study folder: what was asked for, one folder a trial, and the best run.

study.json                     what the study is of: data, configuration, space, seed
trials/NNNN/trial.json         parameters, evaluations and what came of the trial; its presence says that it ended
trials/NNNN/run                the run folder, without weights unless it is the best so far
best                           the best run, an ordinary run folder, with its figures on test
test.json                      each time that the test split was read, and for which trial
report.html                    the page about it all
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from dmoe.config.run import RunConfig
from dmoe.disk.files import check_links, read_json, write_json
from dmoe.errors import DataError
from dmoe.runs.records import Figure, FinalScores, Number
from dmoe.tuning.space import Space
from dmoe.validation import validate_stored

FORMAT_VERSION: Literal[1] = 1
ASKED = "study.json"
DONE = "trial.json"
TEST = "test.json"
ATTEMPTS = "attempts.json"
# How often a trial is begun whose process is killed before it comes to an evaluation or a checkpoint.
MOST_ATTEMPTS = 3


class Asked(BaseModel):
    """`study.json`, and what the storage says of the study: `id` tells the two belong together.

    `config` are the values of the configuration that is varied, `space` the parameters by name; `data_digest` tells
    the rows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format_version: Literal[1] = FORMAT_VERSION
    id: str
    name: str
    data: str
    data_digest: str
    config: dict[str, Any]
    space: dict[str, dict[str, Any]]
    seed: int
    sampler: Literal["tpe", "random"]
    pruning: bool

    def differs(self, earlier: "Asked") -> str | None:
        """What is asked for now that the earlier study was not of, in words; None if nothing is."""
        if self.data_digest != earlier.data_digest:
            return f"its data hold other rows than {earlier.data} did"
        for key in ("seed", "sampler", "pruning", "name"):
            now, before = getattr(self, key), getattr(earlier, key)
            if now != before:
                return f"its {key} is {before}, not {now}"
        if path := _first_difference(earlier.config, self.config):
            return f"its configuration differs in {path}"
        if path := _first_difference(earlier.space, self.space, deep=False):
            return f"its space differs in '{path}'"
        if list(self.space) != list(earlier.space):
            return "its space has the parameters in another order"
        return None


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any], *, deep: bool = True) -> str | None:
    for key in {**before, **now}:
        one, two = before.get(key), now.get(key)
        if one == two and key in before and key in now:
            continue
        inner = _first_difference(one, two) if deep and isinstance(one, dict) and isinstance(two, dict) else None
        return f"{key}.{inner}" if inner else key
    return None


class Evaluation(BaseModel):
    """One evaluation of a trial: how far it was, in hundredths of an epoch, and what the study maximises."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    done: int
    value: Figure


class Record(BaseModel):
    """`trial.json`.

    `state`: pruned also stands for a trial that diverged or whose configuration cannot be; `reason` says why.
    `value`: what the study maximises, of the final figures on valid. `seconds`: what it took, on one job.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format_version: Literal[1] = FORMAT_VERSION
    number: int
    state: Literal["complete", "pruned", "abandoned"]
    params: dict[str, int | float | str]
    value: Number = None
    reason: str | None = None
    valid: FinalScores | None = None
    evaluations: list[Evaluation] = Field(default=[])
    seconds: Figure = 0.0
    threads: int = 1
    parameters: int | None = None
    best_epoch: int | None = None


class Reading(BaseModel):
    """A time that the test split was read: for which trial, of how many."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    trial: int
    trials: int


class Readings(BaseModel):
    """`test.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    readings: tuple[Reading, ...]


class _Attempts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    reached: tuple[int, int]
    count: int


@dataclass(frozen=True)
class StudyFolder:
    """A study folder."""

    path: Path

    @staticmethod
    def is_one(path: Path) -> bool:
        return (path / ASKED).is_file()

    @staticmethod
    def open(path: Path) -> "StudyFolder":
        """Raises: DataError if it is no study folder."""
        if not StudyFolder.is_one(path):
            raise DataError(f"{path}: has no {ASKED}, so it is not a folder of `dmoe tune`")
        check_links(path)
        return StudyFolder(path)

    @property
    def asked(self) -> Asked:
        path = self.path / ASKED
        asked = validate_stored(Asked, read_json(path), str(path))
        validate_stored(RunConfig, asked.config, f"{path}: config")
        Space.of_facts(f"{path}: space", asked.space)
        return asked

    @property
    def best(self) -> Path:
        return self.path / "best"

    def lock(self) -> FileLock:
        """Held while a trial is taken or put down, by whichever process does so."""
        return FileLock(self.path / ".lock")

    def trial(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}"

    def run(self, number: int) -> Path:
        return self.trial(number) / "run"

    def take(self, number: int) -> FileLock | None:
        """The right to work on a trial, None while another living process has it."""
        self.trial(number).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.trial(number) / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def attempt(self, number: int, evaluations: int) -> bool:
        """Notes that work on a trial begins; False if it was begun too often since it last came further."""
        path = self.trial(number) / ATTEMPTS
        saved = self.run(number) / "checkpoint"
        reached = [evaluations, saved.stat().st_mtime_ns if saved.is_dir() else 0]
        earlier = validate_stored(_Attempts, read_json(path), str(path)) if path.is_file() else None
        count = earlier.count + 1 if earlier is not None and list(earlier.reached) == reached else 1
        write_json(path, {"reached": reached, "count": count})
        return bool(count <= MOST_ATTEMPTS)

    def forget_attempts(self, number: int) -> None:
        """Notes that work on a trial ended in good order."""
        (self.trial(number) / ATTEMPTS).unlink(missing_ok=True)

    def end(self, record: Record) -> None:
        """Notes that a trial has ended."""
        write_json(self.trial(record.number) / DONE, record.model_dump(mode="json", exclude_unset=True))
        self.forget_attempts(record.number)

    def record(self, number: int) -> Record | None:
        """What came of a trial, None while it has not ended. Raises: DataError if the file is damaged."""
        path = self.trial(number) / DONE
        return self._record(path, self._space()) if path.is_file() else None

    def _space(self) -> Space:
        return Space.of_facts(str(self.path / ASKED), self.asked.space)

    def _record(self, path: Path, space: Space) -> Record:
        record = validate_stored(Record, read_json(path), str(path))
        fault = space.fault(record.params)
        if fault is not None:
            raise DataError(f"{path}: 'params': {fault}")
        return record

    def records(self) -> list[Record]:
        """Of every trial that has ended, in their order."""
        ended = sorted(self.path.glob(f"trials/*/{DONE}"), key=lambda path: int(path.parent.name))
        if not ended:
            return []
        space = self._space()
        return [self._record(path, space) for path in ended]

    def keep_only(self, number: int | None) -> None:
        """Removes the weights of every ended trial but one; what else a run holds stays."""
        for record in self.records():
            if record.number == number:
                continue
            run = self.run(record.number)
            for name in ("model.safetensors", "start.safetensors"):
                (run / name).unlink(missing_ok=True)
            for name in ("vocabulary", "checkpoint"):
                shutil.rmtree(run / name, ignore_errors=True)

    def readings(self) -> tuple[Reading, ...]:
        """Each time that the test split was read. Raises: DataError if the file is damaged."""
        path = self.path / TEST
        return validate_stored(Readings, read_json(path), str(path)).readings if path.is_file() else ()

    def note_reading(self, trial: int, trials: int) -> None:
        noted = Readings(readings=(*self.readings(), Reading(trial=trial, trials=trials)))
        write_json(self.path / TEST, noted.model_dump(mode="json"))


def best_of(records: list[Record]) -> Record | None:
    """The complete trial of the highest value, the earliest of equals."""
    complete = [one for one in records if one.state == "complete" and one.value is not None]
    return max(complete, key=lambda one: (one.value, -one.number)) if complete else None
