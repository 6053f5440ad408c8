"""The export beside the run it came from, on the rows of a data set.

R rows of a split, B rows of a batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmoe.evaluation.evaluate import scored_batches
from dmoe.export.check import Floats, Scorer
from dmoe.metrics.joint import joint_labels
from dmoe.metrics.scores import auc, logloss
from dmoe.nn.model import DMoE
from dmoe.outputs import TaskOutputs, probabilities
from dmoe.shards.batch import SCORING_ROWS, Batch
from dmoe.shards.reader import SplitReader, read_once
from dmoe.weights.served import served_logits, served_probabilities

_REFERENCE_ROWS = 100_000
_REFERENCE_BINS = 20

# A joint probability has no logit: its logloss is of the logit of itself, kept from the ends of float64.
_SMALLEST = 1e-300


def compare(model: DMoE, score: Scorer, data: Path, tasks: Sequence[TaskOutputs]) -> dict[str, dict[str, Any]]:
    """`Parity` of a scorer with the torch model, by probability, on the test split, or valid where there is none.

    `score` gives the tasks' probabilities and logits.
    """
    split = "test" if (data / "test").is_dir() else "valid"
    found = {name: _Pair() for name in probabilities(tasks)}
    for batch, output in scored_batches(
        model, read_once(data, split, batch_size=SCORING_ROWS).batches(), torch.device("cpu")
    ):
        ours = score(batch)
        logits = [one.double() for one in served_logits(model, [task.logit for task in output.tasks])]
        torches = served_probabilities(logits, tasks)
        for number, task in enumerate(tasks):
            label_B, known_B = _label(batch, (number,))
            one, theirs_B = found[task.probability], torches[task.probability].numpy()
            pair = (ours[task.logit], logits[number].numpy())
            one.add(batch, label_B, known_B, ours[task.probability], theirs_B, pair)
            if task.joint is not None:
                label_B, known_B = _label(batch, task.chain)
                found[task.joint].add(batch, label_B, known_B, ours[task.joint], torches[task.joint].numpy())
    return {name: {"split": split, **pair.result()} for name, pair in found.items()}


def _label(batch: Batch, chain: Sequence[int]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Of each row (B,): whether all tasks of a chain are 1, and whether that is known."""
    return joint_labels(batch.labels_BT.numpy()[:, chain] > 0, batch.known().numpy()[:, chain])


@dataclass
class _Pair:
    """One output of both, row by row."""

    rows: int = 0
    max_abs_probability: float = 0.0
    max_abs_logit: float | None = None
    labels: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    ours: list[Floats] = field(default_factory=list)
    theirs: list[Floats] = field(default_factory=list)
    weights: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def add(
        self,
        batch: Batch,
        label_B: npt.NDArray[np.bool_],
        known_B: npt.NDArray[np.bool_],
        ours_B: Floats,
        theirs_B: Floats,
        logits: tuple[Floats, Floats] | None = None,
    ) -> None:
        self.rows += len(label_B)
        self.max_abs_probability = max(self.max_abs_probability, float(np.abs(theirs_B - ours_B).max()))
        if logits is None:
            ours_B, theirs_B = (_logit(one_B) for one_B in (ours_B, theirs_B))
        else:
            ours_B, theirs_B = logits
            self.max_abs_logit = max(self.max_abs_logit or 0.0, float(np.abs(ours_B - theirs_B).max()))
        self.labels.append(label_B[known_B])
        self.ours.append(ours_B[known_B])
        self.theirs.append(theirs_B[known_B])
        if batch.weights_B is not None:
            self.weights.append(batch.weights_B.numpy()[known_B])

    def result(self) -> dict[str, Any]:
        labels_R, ours_R, theirs_R = (np.concatenate(one) for one in (self.labels, self.ours, self.theirs))
        weights_R = np.concatenate(self.weights).astype(np.float64) if self.weights else None
        known = {} if len(labels_R) == self.rows else {"known_rows": len(labels_R)}
        logit = {} if self.max_abs_logit is None else {"max_abs_logit": self.max_abs_logit}
        return {
            "rows": self.rows,
            **known,
            "max_abs_probability": self.max_abs_probability,
            **logit,
            "auc_torch": auc(labels_R, theirs_R, weights_R),
            "auc_export": auc(labels_R, ours_R, weights_R),
            "logloss_torch": logloss(labels_R, theirs_R, weights_R),
            "logloss_export": logloss(labels_R, ours_R, weights_R),
        }


def _logit(probability_B: Floats) -> Floats:
    found: Floats = np.log(np.maximum(probability_B, _SMALLEST)) - np.log1p(-np.minimum(probability_B, 1 - 1e-16))
    return found


def reference_scores(
    score: Scorer, data: Path, outputs: Sequence[str], memory_bytes: int
) -> dict[str, list[dict[str, float]]]:
    """By output, bins of about equal shares of the scores of training rows, a random 100,000 of them at most.

    `memory_bytes`: up to this the rows are drawn from all, beyond it from a window.
    """
    reader = SplitReader(data, "train", batch_size=SCORING_ROWS, shuffle=True, memory_bytes=memory_bytes)
    batches: Iterator[Batch] = islice(reader.batches(), math.ceil(_REFERENCE_ROWS / SCORING_ROWS))
    found = [score(batch) for batch in batches]
    return {name: _bins(np.concatenate([one[name] for one in found])) for name in outputs}


def _bins(scores: Floats) -> list[dict[str, float]]:
    edges = np.unique(np.quantile(scores, np.arange(1, _REFERENCE_BINS) / _REFERENCE_BINS))
    uppers = [*edges[edges < 1].tolist(), 1.0]
    counts = np.bincount(np.searchsorted(uppers, scores), minlength=len(uppers))
    return [
        {"upper": upper, "share": count / len(scores)} for upper, count in zip(uppers, counts.tolist(), strict=True)
    ]
