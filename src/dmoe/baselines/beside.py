"""The logistic regression that stands beside every trained model."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dmoe.baselines.folder import EVALUATED
from dmoe.baselines.kept import kept_logistic
from dmoe.baselines.models import NAMES, Tell
from dmoe.comparison import paired_scores, scored_rows
from dmoe.errors import DataError
from dmoe.files import read_json, write_json
from dmoe.training.run import Run
from dmoe.verdict import faults_of_run

FILE = "comparison.json"


def stand_beside(run: Run, data: Path, *, memory_gb: float = 4.0, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Compares a finished run with the logistic regression of its data set; writes RUN/comparison.json.

    `splits` holds, for each held-out split, the paired differences of AUC and logloss, run minus regression; `unseen`
    the regression's scores of the rows with and without values that training never saw, as an evaluation has them.
    """
    with tempfile.TemporaryDirectory(prefix="dmoe-") as scratch:
        baseline = kept_logistic(data, Path(scratch), memory_gb, tell)
        splits, unseen = {}, {}
        for split in EVALUATED:
            if (data / split).is_dir():
                (labels_R, first_R, _), (_, second_R, _) = (
                    scored_rows(one, (), split, data, ()) for one in (baseline, run)
                )
                splits[split] = {name: asdict(one) for name, one in paired_scores(labels_R, first_R, second_R).items()}
                unseen[split] = read_json(baseline.path / "evaluation" / f"{split}.json")["unseen"]
        facts = baseline.facts
        found = {
            "name": NAMES[facts.kind],
            "kind": facts.kind,
            "chosen": facts.chosen,
            "splits": splits,
            "unseen": unseen,
        }
    write_json(run.path / FILE, found)
    return found


def read_beside(run: Path) -> dict[str, Any] | None:
    """What `stand_beside` wrote, None if it did not.

    Raises: DataError if the file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "splits": dict(found["splits"]), "unseen": dict(found["unseen"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); train again, or remove it") from None


def run_faults(run: Path) -> list[str]:
    """What the figures of a run folder say against it; see `dmoe.verdict`.

    Raises: DataError if a file is damaged.
    """
    evaluations = {
        split: read_json(path) for split in EVALUATED if (path := run / "evaluation" / f"{split}.json").is_file()
    }
    return faults_of_run(evaluations, read_beside(run))
