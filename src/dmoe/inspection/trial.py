"""Readings of a column tried on rows: fitted on one part of them, judged on another.

N rows, J judged rows, E values of all rows (several of a row, of lists), V distinct values, K buckets.
Losses are in bits.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmoe.inspection.information import Floats, Integers
from dmoe.metrics.scores import auc, probability_of

_PRIORS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 1e6)
_RIDGE = 4.0
_STEPS = 60
# A numeric field is one number to a model, not a table: it can be told apart about this finely.
NUMBER_BUCKETS = 16
LEAST_OF_A_CLASS = 20


@dataclass(frozen=True, slots=True)
class Trial:
    """`scores_J` (rates as predicted) and `losses_J` of the judged rows; `unseen`: share of them with a value that the
    fitted rows do not have."""

    scores_J: Floats
    losses_J: Floats
    unseen: float


class ReadingTrial:
    """Fits readings on the rows of `fit_N` and judges them on the others."""

    def __init__(self, labels_N: npt.NDArray[np.integer], fit_N: npt.NDArray[np.bool_]) -> None:
        self.labels_N, self.fit_N = labels_N.astype(np.int64), fit_N
        self.labels_J = self.labels_N[~fit_N]
        fitted = self.labels_N[fit_N]
        self.rate = (float(fitted.sum()) + 0.5) / (len(fitted) + 1)
        classes = [int((part == one).sum()) for part in (fitted, self.labels_J) for one in (0, 1)]
        self.able = min(classes) >= LEAST_OF_A_CLASS
        self.base_J = _losses(np.full(len(self.labels_J), self.rate), self.labels_J)

    @staticmethod
    def of_rows(labels_N: npt.NDArray[np.integer]) -> "ReadingTrial":
        """The last 3 of 10 rows judge; every third row where one of these parts would lack a class."""
        rows = np.arange(len(labels_N))
        judge = ReadingTrial(labels_N, rows < 0.7 * len(labels_N))
        return judge if judge.able else ReadingTrial(labels_N, rows % 3 != 2)

    def gain(self, trial: Trial) -> float:
        """Bits a row that the reading saves, below 0 if it misleads."""
        return float((self.base_J - trial.losses_J).mean())

    def auc(self, trial: Trial) -> float:
        return auc(self.labels_J, trial.scores_J)

    def tokens(self, codes_N: npt.NDArray[np.integer], size: int) -> Trial:
        """One value a row, from 0 to `size` - 1: its smoothed rate, and the rate of all rows where it is new.

        How much it is smoothed is what would have told each fitted row best from the others (leave one out).
        """
        codes = codes_N[self.fit_N]
        counts_V = np.bincount(codes, minlength=size).astype(np.float64)
        positives_V = np.bincount(codes, weights=self.labels_N[self.fit_N], minlength=size).astype(np.float64)
        prior = min(_PRIORS, key=lambda one: _left_out_loss(counts_V, positives_V, one, self.rate))
        rates_V = (positives_V + prior * self.rate) / (counts_V + prior)
        judged = codes_N[~self.fit_N]
        return self._trial(rates_V[judged], float((counts_V[judged] == 0).mean()))

    def numbers(self, numbers_N: Floats, buckets: int = NUMBER_BUCKETS) -> Trial:
        """In buckets of equal fitted rows; NaN is one more."""
        given = numbers_N[self.fit_N & ~np.isnan(numbers_N)]
        edges = np.unique(np.quantile(given, np.arange(1, buckets) / buckets)) if len(given) else np.empty(0)
        codes = np.searchsorted(edges, numbers_N, side="left")
        codes[np.isnan(numbers_N)] = len(edges) + 1
        return self.tokens(codes, len(edges) + 2)

    def bag(self, values_E: npt.NDArray[np.integer], row_of_E: npt.NDArray[np.integer], size: int) -> Trial:
        """Several values a row: a logistic regression on them, `_RIDGE` times half the squared weights its penalty.

        Each step divides the gradient by a bound of the curvature (Böhning and Lindsay, 1988), so that it never
        overshoots.
        """
        rows = len(self.labels_N)
        fit_E = self.fit_N[row_of_E]
        values, row_of = values_E[fit_E], row_of_E[fit_E]
        lengths_N = np.maximum(np.bincount(row_of_E, minlength=rows), 1)
        bound_V = np.bincount(values, weights=(lengths_N[row_of] + 1) / 4, minlength=size) + _RIDGE
        start, bound = float(np.log(self.rate / (1 - self.rate))), float((lengths_N[self.fit_N] + 1).sum()) / 4
        weights_V = np.zeros(size)
        for _ in range(_STEPS):
            logits_N = start + np.bincount(row_of, weights=weights_V[values], minlength=rows)
            misses_N = self.labels_N - probability_of(logits_N)
            weights_V += (np.bincount(values, weights=misses_N[row_of], minlength=size) - _RIDGE * weights_V) / bound_V
            start += float(misses_N[self.fit_N].sum()) / bound
        logits_N = start + np.bincount(row_of_E, weights=weights_V[values_E], minlength=rows)
        judged = values_E[~fit_E]
        known_V = np.bincount(values, minlength=size) > 0
        unseen = float((~known_V[judged]).mean()) if len(judged) else 0.0
        return self._trial(probability_of(logits_N[~self.fit_N]), unseen)

    def _trial(self, scores_J: Floats, unseen: float) -> Trial:
        return Trial(scores_J, _losses(scores_J, self.labels_J), unseen)


def better(one: Trial, other: Trial) -> float:
    """By how many standard errors the judged rows are told better by `one`."""
    differences = other.losses_J - one.losses_J
    error = float(differences.std()) / max(len(differences), 1) ** 0.5
    mean = float(differences.mean())
    return mean / error if error > 0 else float(np.sign(mean)) * np.inf if mean else 0.0


def _losses(rates: Floats, labels: Integers) -> Floats:
    told = np.clip(np.where(labels == 1, rates, 1 - rates), 1e-9, 1)
    found: Floats = -np.log2(told)
    return found


def _left_out_loss(counts_V: Floats, positives_V: Floats, prior: float, rate: float) -> float:
    rest = counts_V - 1 + prior
    negatives_V = counts_V - positives_V
    with np.errstate(divide="ignore", invalid="ignore"):
        of_positives = positives_V * np.log(np.maximum(positives_V - 1, 0) + prior * rate) - positives_V * np.log(rest)
        of_negatives = negatives_V * (np.log(np.maximum(negatives_V - 1, 0) + prior * (1 - rate)) - np.log(rest))
    return -float(np.nansum(of_positives) + np.nansum(of_negatives))
