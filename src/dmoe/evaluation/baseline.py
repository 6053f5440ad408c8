"""The logistic regression that stands beside every trained model."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from dmoe.baselines.folder import EVALUATED
from dmoe.baselines.kept import kept_logistic
from dmoe.baselines.models import NAMES, Tell
from dmoe.disk.files import read_json, write_json
from dmoe.errors import ConfigError, DataError
from dmoe.evaluation import evaluate
from dmoe.evaluation.compare import paired_scores
from dmoe.evaluation.scored import score_rows
from dmoe.evaluation.verdict import faults_of_run
from dmoe.shards.reader import read_once
from dmoe.validation import validate
from dmoe.weights.run import Run

FILE = "comparison.json"


class Pair(BaseModel):
    """A figure of both on the same rows, as `dmoe.evaluation.compare` has it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    first: float
    second: float
    difference: float
    p: float


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


class Ratio(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    predicted_to_observed: float | None = None


class JudgedTask(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    logloss: float | None = None
    positives: int = 0
    relative_information_gain: float | None = None
    calibration: Ratio | None = None


class Judged(JudgedTask):
    """What `dmoe.evaluation.verdict` reads of `evaluation/<split>.json`."""

    tasks: dict[str, JudgedTask] = Field(default={})


def stand_beside(run: Run, data: Path, *, memory_gb: float = 4.0, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Compares a finished run with the logistic regression of its data set; writes RUN/comparison.json.

    `splits` holds, for each held-out split, the paired differences of AUC and logloss, run minus regression; `unseen`
    the regression's scores of the rows with and without values that training never saw, as an evaluation has them. Of
    several labels `tasks` has the same for each and a regression of its own.
    """
    with tempfile.TemporaryDirectory(prefix="dmoe-") as scratch:
        baseline = kept_logistic(data, Path(scratch), memory_gb, tell)
        splits, unseen = {}, {}
        for split in EVALUATED:
            if (data / split).is_dir():
                (labels_R, first_R, known_R), (_, second_R, _) = (
                    score_rows(one, (), split, data).of((run.schema.label,)) for one in (baseline, run)
                )
                labels_R, first_R, second_R = labels_R[known_R], first_R[known_R], second_R[known_R]
                splits[split] = {name: asdict(one) for name, one in paired_scores(labels_R, first_R, second_R).items()}
                unseen[split] = read_json(baseline.path / "evaluation" / f"{split}.json")["unseen"]
        tasks = _tasks_beside(run, data, Path(scratch), memory_gb, tell) if len(run.schema.tasks) > 1 else {}
        facts = baseline.facts
        found = {
            "name": NAMES[facts.kind],
            "kind": facts.kind,
            "chosen": facts.chosen,
            "splits": splits,
            "unseen": unseen,
            **({"tasks": tasks} if tasks else {}),
        }
    write_json(run.path / FILE, found)
    return found


def _tasks_beside(
    run: Run, data: Path, scratch: Path, memory_gb: float, tell: Tell
) -> dict[str, dict[str, dict[str, Any]]]:
    """Paired differences by label and split, on the rows that know the label."""
    model, device = run.load_model(), torch.device("cpu")
    rows = {
        split: evaluate.scored_rows(model, read_once(data, split, batch_size=evaluate.SCORING_ROWS), device)
        for split in EVALUATED
        if (data / split).is_dir()
    }
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for number, task in enumerate(run.schema.tasks):
        regression = kept_logistic(data, scratch, memory_gb, tell, label=task.name).load_model()
        found[task.name] = {}
        for split, own in rows.items():
            first_R = np.concatenate(
                [
                    regression.logits(batch.ids_BC.numpy(), batch.numeric_BN.numpy())
                    for batch in read_once(data, split, batch_size=evaluate.SCORING_ROWS).batches()
                ]
            )[own.known_R(number)]
            of = own.of_task(number)
            paired = paired_scores(of.labels_R > 0, first_R, of.logits_R)
            found[task.name][split] = {name: asdict(one) for name, one in paired.items()}
    return found


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
    evaluations = {}
    for split in EVALUATED:
        path = run / "evaluation" / f"{split}.json"
        if path.is_file():
            try:
                evaluations[split] = validate(Judged, read_json(path), str(path)).model_dump()
            except ConfigError as error:
                raise DataError(str(error)) from None
    return faults_of_run(evaluations, read_beside(run))
