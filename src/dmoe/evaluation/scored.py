"""The rows of a split or a log with what a run or a baseline says of each label.

Shape suffixes: B rows of a batch, R rows, T tasks, S chosen id columns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from dmoe.baselines.folder import Baseline
from dmoe.errors import DataError
from dmoe.metrics.joint import joint_labels, joint_logits
from dmoe.schema import Task, links
from dmoe.shards.batch import SCORING_ROWS
from dmoe.shards.reader import read_once
from dmoe.tokens.encoder import RawBatch, RawEncoder
from dmoe.tokens.unseen import ValueCounts
from dmoe.weights.run import Run

Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
# A label by itself, or the labels that one is given and itself last.
Chain: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """All rows: `labels_RT` and `known_RT` bool, `logits_RT` float64, the ids of the chosen columns, (R, S), and
    `weights_R` float64, None where there are none."""

    tasks: tuple[Task, ...]
    labels_RT: Mask
    known_RT: Mask
    logits_RT: Floats
    ids_RS: npt.NDArray[np.int32]
    weights_R: Floats | None = None

    @property
    def chains(self) -> list[Chain]:
        """Each label by itself, and behind it, if it is given another, with all above it."""
        above = {task.name: task.given for task in self.tasks}
        found: list[Chain] = []
        for task in self.tasks:
            found.append((task.name,))
            chain = links(above, task.name)
            found += [tuple(chain)] if len(chain) > 1 else []
        return found

    def of(self, chain: Chain) -> tuple[Mask, Floats, Mask]:
        """Labels and logits of all rows (R,), and which of them know the label and weigh anything.

        That all of a chain are 1 is known where one is known to be 0, or all are known.
        """
        names = [task.name for task in self.tasks]
        places = [names.index(name) for name in chain]
        all_R, known_R = joint_labels(self.labels_RT[:, places], self.known_RT[:, places])
        logits_R = self.logits_RT[:, places[0]]
        if len(chain) > 1:
            logits_R = joint_logits([self.logits_RT[:, place] for place in places])
        return all_R, logits_R, known_R if self.weights_R is None else known_R & (self.weights_R > 0)


def open_scored(folder: Path) -> Run | Baseline:
    """A run folder, or one of `dmoe baseline`.

    Raises: DataError if it is neither.
    """
    return Baseline.open(folder) if Baseline.is_one(folder) else Run.open(folder)


def predicted(run: Run | Baseline) -> tuple[Task, ...]:
    """The labels that it predicts: a baseline its own alone."""
    return (Task(name=run.schema.tasks[run.task].name),) if isinstance(run, Baseline) else run.schema.tasks


def score_rows(
    run: Run | Baseline,
    logs: Sequence[Path],
    split: str,
    data: Path | None,
    columns: Sequence[int] = (),
    counts: ValueCounts | None = None,
) -> ScoredRows:
    """Scores the rows of `logs`, raw and labelled, or else of a split of the run's data set.

    Raises: DataError if there are none, or they have no labels.
    """
    tasks, score = predicted(run), _scorer(run)
    own = [run.schema.task_number(task.name) for task in tasks]
    labels, known, logits, ids, weights = [], [], [], [], []
    with torch.inference_mode():
        for batch in _batches(run, logs, split, data, counts):
            if batch.labels_BT is None:
                raise DataError(f"{logs[0]}: has no column '{run.schema.label}'; comparing needs labels")
            labels_BT = batch.labels_BT.numpy()[:, own] > 0
            labels.append(labels_BT)
            known.append(np.ones_like(labels_BT) if batch.known_BT is None else batch.known_BT.numpy()[:, own])
            logits.append(score(batch))
            ids.append(batch.ids_BC.numpy()[:, list(columns)])
            if batch.weights_B is not None:
                weights.append(batch.weights_B.double().numpy())
    if not labels:
        raise DataError(f"{logs[0]}: holds no rows to compare on")
    weights_R = np.concatenate(weights) if weights else None
    labels_RT, known_RT, logits_RT, ids_RS = (np.concatenate(one) for one in (labels, known, logits, ids))
    return ScoredRows(tasks, labels_RT, known_RT, logits_RT, ids_RS, weights_R)


def _scorer(run: Run | Baseline) -> Callable[[RawBatch], Floats]:
    """The function from encoded rows to their logits (B, T)."""
    if isinstance(run, Baseline):
        simple = run.load_model()
        return lambda batch: simple.logits(batch.ids_BC.numpy(), batch.numeric_BN.numpy())[:, None]
    model = run.load_model()

    def logits(batch: RawBatch) -> Floats:
        found = [task.logit.double().numpy() for task in model(batch.ids_BC, batch.numeric_BN).tasks]
        return np.stack(found, axis=1)

    return logits


def _batches(
    run: Run | Baseline, logs: Sequence[Path], split: str, data: Path | None, counts: ValueCounts | None
) -> Iterator[RawBatch]:
    """`counts` is added to by rows of raw logs only: those of a split are in the data set that was trained on."""
    if logs:
        yield from RawEncoder(run.path).encode_files(logs, batch_size=SCORING_ROWS, labels=True, counts=counts)
        return
    for batch in read_once(run.data_folder(data), split, batch_size=SCORING_ROWS).batches():
        yield RawBatch(batch.ids_BC, batch.numeric_BN, batch.labels_BT, batch.known_BT, batch.weights_B)
