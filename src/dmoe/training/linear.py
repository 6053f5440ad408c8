"""The share of a logistic regression in the logit of a trained mixture, by the valid split.

Shape suffixes: R rows.
"""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from dmoe.baselines.by_value import by_value
from dmoe.baselines.kept import kept_logistic
from dmoe.evaluation.tasks import TaskRows
from dmoe.metrics.scores import auc, logloss, relative_weights
from dmoe.nn.linear import LinearPart
from dmoe.shards.reader import read_once

Floats: TypeAlias = npt.NDArray[np.float64]

_BATCH_ROWS = 65_536
_SHARES = tuple(tenth / 10 for tenth in range(11))


def fit_linear(part: LinearPart, data: Path, memory_gb: float, label: str) -> dict[str, Any]:
    """Sets the regression of a label of the data set, fitted now if it has none, with no share yet. Gives what it is.

    Where its logit is no sum over values, the part stays empty; `used` says so.
    """
    with tempfile.TemporaryDirectory(prefix="dmoe-") as scratch:
        baseline = kept_logistic(data, Path(scratch), memory_gb, label=label)
        found = by_value(baseline.load_model())  # type: ignore[arg-type]
        facts: dict[str, Any] = {"used": found is not None, **baseline.facts.chosen}
    part.clear()
    if found is not None:
        part.set(torch.from_numpy(found.weights_V), found.bias, found.edges, found.steps, found.slopes, share=0.0)
        facts["fields"] = _spreads(part, data)
    return facts


def _spreads(part: LinearPart, data: Path) -> list[dict[str, Any]]:
    """How far each field moves the regression's logit from row to row: the standard deviation over `valid` of what it
    adds; the largest first."""
    reader = read_once(data, "valid", batch_size=_BATCH_ROWS)
    schema = reader.schema
    names = [*(field.name for field in schema.categorical), *(field.name for field in schema.numeric)]
    part, rows = copy.deepcopy(part).cpu(), 0
    mean_F, squares_F = np.zeros(len(names)), np.zeros(len(names))
    for batch in reader.batches():
        with torch.no_grad():
            added_BF = part.by_field(batch.ids_BC, batch.numeric_BN).numpy()
        # Chan, Golub and LeVeque (1983): the parts' moments make those of the whole.
        apart_F, count = added_BF.mean(0) - mean_F, len(added_BF)
        rows += count
        squares_F += added_BF.var(0) * count + apart_F**2 * count * (rows - count) / rows
        mean_F += apart_F * count / rows
    spreads = zip(names, np.sqrt(squares_F / rows).tolist(), strict=True)
    return [{"field": name, "spread": spread} for name, spread in sorted(spreads, key=lambda one: -one[1])]


def add_share(part: LinearPart, held_out: Mapping[str, TaskRows]) -> dict[str, Any]:
    """Gives the part the share that is best on `valid`; what linear.json says of it.

    `held_out`: labels, logits of the mixture and of the part, by split.
    """
    share = best_share(held_out["valid"])
    part.share.fill_(share)
    splits = {
        split: {
            name: {
                "auc": auc(rows.labels_R, logits_R, rows.weights_R),
                "logloss": logloss(rows.labels_R, logits_R, rows.weights_R),
            }
            for name, logits_R in (("mixture", rows.logits_R), ("linear", rows.linear_R))
            if logits_R is not None
        }
        for split, rows in held_out.items()
    }
    return {"share": share, "splits": splits}


def best_share(rows: TaskRows) -> float:
    """A share in tenths: one half if that gains on none, another one if that gains on it, beyond a standard error.

    Equal weights of two forecasts are hard to beat by estimated ones (Clemen, Int. J. Forecasting 1989).
    """
    signs_R = np.where(rows.labels_R > 0, -1.0, 1.0)
    each_R = relative_weights(rows.weights_R, len(rows))
    losses = {share: np.logaddexp(0.0, signs_R * mixed(rows, share)) * each_R for share in _SHARES}
    best = min(_SHARES, key=lambda share: float(losses[share].mean()))
    chosen = 0.0
    for share in (0.5, best):
        gains_R = losses[chosen] - losses[share]
        if gains_R.mean() > gains_R.std() / np.sqrt(len(gains_R)):
            chosen = share
    return chosen


def mixed(rows: TaskRows, share: float) -> Floats:
    """The logits of both with the regression's share."""
    return rows.logits_R if rows.linear_R is None else (1 - share) * rows.logits_R + share * rows.linear_R
