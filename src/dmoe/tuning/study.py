"""A study in Optuna's storage: which trial comes next, and what came of one.

What is drawn hangs on the seed and the trials before alone, never on how often the study was killed and continued:
each trial has a sampler of its own, and a trial whose process is gone is gone on with, not drawn anew. Whose process
is gone is told by a lock on its folder, which the system takes from the dead.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock

from dmoe.errors import ConfigError, MissingExtraError
from dmoe.tuning.folder import Asked, Record, StudyFolder
from dmoe.tuning.space import Drawn, Number, Parameter, Space

if TYPE_CHECKING:
    import optuna

# Trials that the sampler draws blindly, and that the pruner lets go to their end, before either judges.
_BLIND_TRIALS = 8
_FREE_TRIALS = 5
# No trial is pruned before it is so far, in hundredths of an epoch.
_FREE_SHARE = 50
_STORAGE_SECONDS = 60.0
_MARK = "dmoe"


def optuna_module() -> Any:
    """Raises: MissingExtraError if Optuna is absent."""
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("`dmoe tune` needs Optuna: pip install 'dmoe[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def storage_url(storage: str) -> str:
    """The URL of a storage that is given as one, or as the path of an SQLite file."""
    return storage if "://" in storage else f"sqlite:///{Path(storage).resolve()}"


@dataclass(slots=True)
class Taken:
    """A trial that this process works on, and the lock that says so; `reported`: the evaluations that the storage has
    of it from before a kill."""

    trial: "optuna.Trial"
    drawn: Drawn
    lock: FileLock
    reported: dict[int, float]

    @property
    def number(self) -> int:
        return self.trial.number


class Study:
    """The study of a folder; its connection to the storage is closed behind a `with`.

    Raises: ConfigError if the storage cannot be used, or does not hold the study of this folder.
    """

    def __init__(self, folder: StudyFolder, space: Space, storage: str) -> None:
        self.folder, self.space, self.storage = folder, space, storage
        self.asked = folder.asked
        self._optuna = optuna_module()
        with _storage_errors(storage), ExitStack() as stack:
            self._study: optuna.Study = self._optuna.load_study(
                study_name=self.asked.name,
                storage=stack.enter_context(_opened(self._optuna, storage)),
                pruner=self._optuna.pruners.MedianPruner(_FREE_TRIALS, _FREE_SHARE)
                if self.asked.pruning
                else self._optuna.pruners.NopPruner(),
            )
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def next(self, most: int | None) -> Taken | None:
        """A trial to work on: one whose process is gone, or a new one while there are fewer than `most`."""
        with self.folder.lock():
            frozen = self._study.get_trials(deepcopy=False)
            states = self._optuna.trial.TrialState
            for one in frozen:
                if one.state == states.RUNNING and (taken := self._adopt(one)) is not None:
                    return taken
            counted = self.counted()
            if most is not None and counted >= most:
                return None
            self._study.sampler = self._sampler(counted)
            trial = self._study.ask()
            lock = self.folder.take(trial.number)
            assert lock is not None  # nobody else has heard of it
            drawn = self.space.draw(lambda parameter: _suggest(trial, parameter))
            trial.set_user_attr("drawn", True)
            self.folder.attempt(trial.number, 0)
            return Taken(trial, drawn, lock, {})

    def _adopt(self, one: "optuna.trial.FrozenTrial") -> Taken | None:
        """A running trial, if nobody works on it; what cannot be gone on with is ended."""
        lock = self.folder.take(one.number)
        if lock is None:
            return None
        trial = self._optuna.Trial(self._study, one._trial_id)
        if not one.user_attrs.get("drawn"):  # killed while it was drawn
            if fixed := one.system_attrs.get("fixed_params"):
                self._study.enqueue_trial(fixed)
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        elif (record := self.folder.record(one.number)) is not None:
            self._tell(trial, record)
        else:
            drawn = {name: one.params[name] for name in one.params}
            taken = Taken(trial, drawn, lock, dict(one.intermediate_values))
            if self.folder.attempt(one.number, len(one.intermediate_values)):
                return taken
            reason = "its process was killed again and again, each time before it came further; probably out of memory"
            self._end(taken, Record(number=one.number, state="pruned", params=drawn, reason=reason))
        lock.release()
        return None

    def report(self, taken: Taken, done: int, value: float) -> bool:
        """Notes an evaluation; True if the trial is to be given up."""
        if done not in taken.reported:
            taken.reported[done] = value
            taken.trial.report(value, done)
        return bool(taken.trial.should_prune())

    def end(self, taken: Taken, record: Record) -> None:
        """Notes what came of a trial; of all runs the best one keeps its weights."""
        with self.folder.lock():
            self._end(taken, record)
        taken.lock.release()

    def _end(self, taken: Taken, record: Record) -> None:
        self.folder.end(record)  # first: a kill after it loses nothing
        self._tell(taken.trial, record)
        best = self.best()
        self.folder.keep_only(best)

    def _tell(self, trial: "optuna.Trial", record: Record) -> None:
        shown = {"run": str(self.folder.run(record.number)), "seconds": record.seconds, "reason": record.reason}
        if record.valid:
            shown |= {"valid auc": record.valid.auc, "valid logloss": record.valid.logloss}
        for key, value in shown.items():
            if value is not None:
                trial.set_user_attr(key, value)
        states = self._optuna.trial.TrialState
        if record.state == "complete":
            self._study.tell(trial, record.value)
        else:
            self._study.tell(trial, state=states.PRUNED)

    def counted(self) -> int:
        """The trials that there are, ended or not; those that were cut off while they were drawn are none."""
        states = self._optuna.trial.TrialState
        return sum(one.state not in (states.FAIL, states.WAITING) for one in self._study.get_trials(deepcopy=False))

    def running(self) -> int:
        """The trials that a living process works on."""
        states = (self._optuna.trial.TrialState.RUNNING,)
        found = 0
        for one in self._study.get_trials(deepcopy=False, states=states):
            if (lock := self.folder.take(one.number)) is None:
                found += 1
            else:
                lock.release()
        return found

    def best(self) -> int | None:
        """The number of the trial with the highest value, None while none is complete."""
        complete = (self._optuna.trial.TrialState.COMPLETE,)
        if not self._study.get_trials(deepcopy=False, states=complete):
            return None
        return int(self._study.best_trial.number)

    def _sampler(self, ordinal: int) -> "optuna.samplers.BaseSampler":
        seed = (self.asked.seed * 1_000_003 + ordinal) % 2**32
        if self.asked.sampler == "random":
            return self._optuna.samplers.RandomSampler(seed)  # type: ignore[no-any-return]
        return self._optuna.samplers.TPESampler(n_startup_trials=_BLIND_TRIALS, seed=seed)  # type: ignore[no-any-return]


def create(asked: Asked, storage: str, first: Drawn | None) -> None:
    """Makes the study in the storage; `first` is its first trial, by default drawn as the others.

    Raises: ConfigError if the storage cannot be used or holds a study of this name.
    """
    optuna = optuna_module()
    with _storage_errors(storage), _opened(optuna, storage) as opened:
        try:
            study = optuna.create_study(study_name=asked.name, storage=opened, direction="maximize")
        except optuna.exceptions.DuplicatedStudyError:
            raise ConfigError(
                f"--storage {_shown(storage)}: holds a study '{asked.name}' whose runs are not in this --output; name "
                "its folder, or choose another --name or --storage"
            ) from None
        study.set_user_attr(_MARK, asked.model_dump(mode="json"))
        if first is not None:
            study.enqueue_trial(dict(first))


def check_stored(asked: Asked, storage: str) -> None:
    """Whether the storage holds the study of a folder.

    Raises: ConfigError if it does not.
    """
    optuna = optuna_module()
    with _storage_errors(storage), _opened(optuna, storage) as opened:
        try:
            marked = optuna.load_study(study_name=asked.name, storage=opened).user_attrs.get(_MARK, {})
        except KeyError:
            raise ConfigError(
                f"--storage {_shown(storage)}: holds no study '{asked.name}', but the folder does; name the storage "
                "that it was begun with, or choose another --output"
            ) from None
    if marked.get("id") != asked.id:
        raise ConfigError(
            f"--storage {_shown(storage)}: its study '{asked.name}' is not the one of this folder; choose another "
            "--name, --storage or --output"
        )


@contextmanager
def _opened(optuna: Any, storage: str) -> Iterator[Any]:
    url = storage_url(storage)
    wait = {"connect_args": {"timeout": _STORAGE_SECONDS}} if url.startswith("sqlite") else {}
    opened = optuna.storages.RDBStorage(url, engine_kwargs=wait)
    try:
        yield opened
    finally:
        opened.remove_session()
        opened.engine.dispose()


@contextmanager
def _storage_errors(storage: str) -> Iterator[None]:
    """Raises: ConfigError in one sentence for whatever the storage cannot do."""
    import sqlalchemy

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, ImportError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
        raise ConfigError(f"--storage {_shown(storage)}: cannot be used as one of Optuna ({reason})") from None


def _shown(storage: str) -> str:
    """A storage without the password that its URL may hold."""
    scheme, mark, rest = storage.partition("://")
    return f"{scheme}://…@{rest.rpartition('@')[2]}" if mark and "@" in rest else storage


def _suggest(trial: "optuna.Trial", parameter: Parameter) -> Number | str:
    name = parameter.name
    if parameter.kind == "choice":
        return trial.suggest_categorical(name, parameter.labels)
    if parameter.kind == "int":
        step = int(parameter.step or 1)
        return trial.suggest_int(name, int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)
