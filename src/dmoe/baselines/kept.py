"""The logistic regression of a data set: it is kept there, `baselines/logistic`, for the next run."""

from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from dmoe.baselines.folder import Baseline, fit_baseline
from dmoe.baselines.models import Tell
from dmoe.errors import DataError
from dmoe.schema import Schema


def kept_logistic(data: Path, scratch: Path, memory_gb: float, tell: Tell = lambda _: None) -> Baseline:
    """The baseline of the data set, fitted now if it has none; in `scratch` where its folder cannot be written."""
    place = data / "baselines" / "logistic"
    try:
        place.parent.mkdir(exist_ok=True)
        lock = FileLock(place.parent / "lock")
        lock.acquire()
    except OSError:
        return fit_baseline("logistic", data, scratch / "logistic", memory_gb=memory_gb, tell=tell)
    try:
        with suppress(DataError):
            if Baseline.is_one(place) and Baseline.open(place).schema == Schema.read(data):
                return Baseline.open(place)
        return fit_baseline("logistic", data, place, overwrite=Baseline.is_one(place), memory_gb=memory_gb, tell=tell)
    finally:
        lock.release()
