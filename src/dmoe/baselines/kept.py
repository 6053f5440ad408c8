"""The logistic regression of a data set: it is kept there, `baselines/logistic`, for the next run."""

from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from dmoe.baselines.folder import Baseline, fit_baseline, rows_within
from dmoe.baselines.models import Tell
from dmoe.errors import DataError
from dmoe.schema import Schema


def kept_logistic(
    data: Path, scratch: Path, memory_gb: float, tell: Tell = lambda _: None, *, label: str | None = None
) -> Baseline:
    """The baseline of a label of the data set, by default the main one, fitted now if it has none; in `scratch` where
    its folder cannot be written.

    One that other rows made, as another `memory_gb` leaves them, is fitted again: what comes of a run must not hang on
    what was run before it.
    """
    number = Schema.read(data).task_number(label)
    name = "logistic" if number == 0 else f"logistic-{number}"
    place = data / "baselines" / name
    try:
        place.parent.mkdir(exist_ok=True)
        lock = FileLock(place.parent / "lock")
        lock.acquire()
    except OSError:
        return fit_baseline("logistic", data, scratch / name, label=label, memory_gb=memory_gb, tell=tell)
    try:
        with suppress(DataError):
            if Baseline.is_one(place) and (kept := Baseline.open(place)).schema == Schema.read(data):
                rows = [rows_within(data, split, memory_gb) for split in ("train", "valid")]
                if rows == [kept.facts.rows, kept.facts.valid_rows]:
                    return kept
                tell(
                    f"{place}: fitted on {kept.facts.rows:,} training rows; in {memory_gb:g} GB of memory it is fitted "
                    f"again, on {rows[0]:,}"
                )
        again = Baseline.is_one(place)
        return fit_baseline("logistic", data, place, label=label, overwrite=again, memory_gb=memory_gb, tell=tell)
    finally:
        lock.release()
