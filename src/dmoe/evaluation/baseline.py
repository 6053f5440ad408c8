"""The logistic regression that stands beside every trained model."""

import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dmoe.baselines.folder import Baseline
from dmoe.baselines.kept import kept_logistic
from dmoe.baselines.models import NAMES, Tell
from dmoe.config.data import HELD_OUT
from dmoe.disk.files import read_json, write_json
from dmoe.errors import ConfigError, DataError
from dmoe.evaluation.compare import SharedRows
from dmoe.evaluation.scored import ScoredRows, score_rows
from dmoe.evaluation.verdict import faults_of_run
from dmoe.runs.records import Figure, read_evaluations
from dmoe.validation import validate
from dmoe.weights.run import Run

FILE = "comparison.json"


class Pair(BaseModel):
    """A figure of both on the same rows, as `dmoe.evaluation.compare` has it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    first: Figure
    second: Figure
    difference: Figure
    low: Figure
    high: Figure
    p: Figure


class PairedScores(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    auc: Pair
    logloss: Pair


class Beside(BaseModel):
    """What comparison.json holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    kind: str
    chosen: dict[str, float | int | str]
    splits: dict[str, PairedScores]
    tasks: dict[str, dict[str, PairedScores]] = Field(default={})
    unseen: dict[str, dict[str, Any] | None]


def stand_beside(run: Run, data: Path, *, memory_gb: float = 4.0, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Compares a finished run with the logistic regression of its data set; writes RUN/comparison.json.

    `splits` holds, for each held-out split, the paired differences of AUC and logloss, run minus regression; `unseen`
    the regression's scores of the rows with and without values that training never saw, as an evaluation has them. Of
    several labels `tasks` has the same for each and a regression of its own.
    """
    with tempfile.TemporaryDirectory(prefix="dmoe-") as scratch:
        rows = {split: score_rows(run, (), split, data) for split in HELD_OUT if (data / split).is_dir()}
        baselines = {
            task.name: kept_logistic(data, Path(scratch), memory_gb, tell, label=task.name) for task in run.schema.tasks
        }
        tasks = {
            name: {split: _paired(baseline, name, split, data, own) for split, own in rows.items()}
            for name, baseline in baselines.items()
        }
        main = baselines[run.schema.label]
        found = {
            "name": NAMES[main.facts.kind],
            "kind": main.facts.kind,
            "chosen": main.facts.chosen,
            "splits": tasks[run.schema.label],
            "unseen": {split: read_json(main.path / "evaluation" / f"{split}.json")["unseen"] for split in rows},
            **({"tasks": tasks} if len(tasks) > 1 else {}),
        }
    write_json(run.path / FILE, found)
    return found


def _paired(baseline: Baseline, label: str, split: str, data: Path, own: ScoredRows) -> dict[str, dict[str, Any]]:
    """Paired differences on the rows of a split that know the label, by their weights.

    `own`: what the run says of all rows.
    """
    labels_R, second_R, kept_R = own.of((label,))
    first_R = score_rows(baseline, (), split, data).logits_RT[:, 0]
    return SharedRows(labels_R, (first_R, second_R), own.weights_R).only(kept_R).paired()


def read_beside(run: Path) -> dict[str, Any] | None:
    """What `stand_beside` wrote, None if it did not.

    Raises: DataError if the file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        return validate(Beside, read_json(path), str(path)).model_dump(mode="json", exclude_defaults=True)
    except (ConfigError, DataError) as error:
        raise DataError(f"{error}; train again, or remove it") from None


def run_faults(run: Path) -> list[str]:
    """What the figures of a run folder say against it; see `dmoe.evaluation.verdict`.

    Raises: DataError if a file is damaged.
    """
    evaluations = {split: one.model_dump() for split, one in read_evaluations(run).items()}
    return faults_of_run(evaluations, read_beside(run))
