"""What the best possible model would reach on a planted log, counted exactly in constant memory.

Shape suffix: R rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmoe.synthetic.logit import NUM_RANK_KEYS, PARTS, Floats, rank_key, sum_parts


def split_bounds(rows: int) -> dict[str, tuple[int, int]]:
    """First row, and row after the last, of each split that `dmoe prepare` makes in order with 0.8/0.1/0.1.

    Valid and test are a tenth of the rows, rounded half up; train is the rest.
    """
    tenth = (rows + 5) // 10
    return {
        "train": (0, rows - 2 * tenth),
        "valid": (rows - 2 * tenth, rows - tenth),
        "test": (rows - tenth, rows),
    }


class SplitTruth:
    """Accumulates the Bayes-optimal AUC and logloss of a split.

    AUC needs all rows in the order of their probabilities. There are only NUM_RANK_KEYS different ones, so
    counting clicks and non-clicks of each gives it exactly, ties as one half.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.positives = 0
        self._loss = 0.0
        self._entropy = 0.0
        self._expected = 0.0
        self._counts = np.zeros((2, NUM_RANK_KEYS), np.int64)

    def add(self, probability_R: NDArray[np.float32], clicked_R: NDArray[np.bool_]) -> None:
        p_R = probability_R.astype(np.float64)
        log_p_R, log_q_R = np.log(p_R), np.log1p(-p_R)
        self.rows += len(p_R)
        self.positives += int(clicked_R.sum())
        self._loss -= float(np.where(clicked_R, log_p_R, log_q_R).sum())
        self._entropy -= float((p_R * log_p_R + (1 - p_R) * log_q_R).sum())
        self._expected += float(p_R.sum())
        np.add.at(self._counts, (clicked_R.astype(np.int64), rank_key(probability_R)), 1)

    def result(self) -> dict[str, Any]:
        """Figures of the split; AUC is None when it has only one class."""
        if not self.rows:
            return {"rows": 0, "positives": 0}
        negatives, positives = self._counts
        below = np.cumsum(negatives) - negatives
        # Twice the number of rightly ordered pairs, a tie counting one: whole numbers, so exact.
        ordered = int((positives * (2 * below + negatives)).sum())
        pairs = self.positives * (self.rows - self.positives)
        return {
            "rows": self.rows,
            "positives": self.positives,
            "rate": self.positives / self.rows,
            "expected_rate": self._expected / self.rows,
            "bayes_auc": ordered / (2 * pairs) if pairs else None,
            "bayes_logloss": self._loss / self.rows,
            "entropy": self._entropy / self.rows,
        }


class PartVariances:
    """Accumulates the variance of each planted part of the logit and of their sum, over all rows."""

    def __init__(self) -> None:
        self._rows = 0
        self._sums = {name: np.zeros(2) for name in (*PARTS, "logit")}

    def add(self, parts: Mapping[str, Floats]) -> None:
        values = {**parts, "logit": sum_parts(parts)}
        self._rows += len(values["logit"])
        for name, value_R in values.items():
            self._sums[name] += value_R.sum(), np.square(value_R).sum()

    def result(self) -> dict[str, float]:
        return {
            name: float(square / self._rows - (total / self._rows) ** 2) for name, (total, square) in self._sums.items()
        }
