"""The end of a study: its best run as a folder of its own, and the one look at the test split."""

import shutil
from collections.abc import Callable
from pathlib import Path

from dmoe.disk.files import read_json, written_aside
from dmoe.errors import DmoeError
from dmoe.training.finish import measure
from dmoe.tuning.folder import Record, StudyFolder, best_of
from dmoe.weights.run import Run


def keep_best(folder: StudyFolder) -> Record:
    """Puts a copy of the best trial's run at `best`, unless it is there; an earlier best one makes way.

    Raises: DmoeError if no trial came to its end.
    """
    records = folder.records()
    best = best_of(records)
    if best is None:
        reasons = sorted({str(one.reason) for one in records if one.reason})
        raise DmoeError(f"{folder.path}: no trial came to its end: {'; '.join(reasons) or 'none was run'}")
    if _trial_of(folder.best) != best.number:
        with written_aside(folder.best, replace=True) as aside:
            shutil.copytree(folder.run(best.number), aside, ignore=shutil.ignore_patterns(".lock", "tensorboard"))
            Run(aside).update_environment(trial=best.number)
    return best


def look_at_test(folder: StudyFolder, data: Path, tell: Callable[[str], None]) -> None:
    """Measures the run at `best` on the test split, once; data without one have nothing to look at."""
    if not (data / "test").is_dir() or "test" in read_json(folder.best / "metrics.json"):
        return
    number = _trial_of(folder.best)
    assert number is not None
    tell(f"test split: read now, for trial {number} alone")
    measure(Run.open(folder.best), data)
    folder.note_reading(number, len(folder.records()))


def _trial_of(best: Path) -> int | None:
    """The trial whose run is at `best`."""
    return Run(best).environment.get("trial") if best.is_dir() else None
