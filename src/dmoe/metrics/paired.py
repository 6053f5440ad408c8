"""Two scores of the same rows: is the difference more than chance?

R rows, P of them clicks and Q not. Weights, above 0, say for how many rows of the whole log each row stands; errors are
those of rows drawn apart, each of its own weight.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmoe.metrics.scores import auc, logloss

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Differences are called real where chance alone would show them in less than this share of comparisons.
SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a paired metric, second minus first, with its 95% interval and two-sided p."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float

    @staticmethod
    def of(first: float, second: float, standard_error: float) -> "Difference":
        difference = second - first
        half = 1.959963984540054 * standard_error
        p = math.erfc(abs(difference) / standard_error / math.sqrt(2)) if standard_error > 0 else float(difference == 0)
        return Difference(first, second, difference, difference - half, difference + half, p)


def paired_auc(labels_R: Mask, first_R: Floats, second_R: Floats, weights_R: Floats | None = None) -> Difference:
    """AUC of two scores of the same rows; standard error by DeLong, DeLong and Clarke-Pearson (1988).

    With the midranks of Sun and Xu (2014), so in R log R time. Ties count half.

    Raises: DataError if only one class is present.
    """
    aucs = [auc(labels_R, scores_R, weights_R) for scores_R in (first_R, second_R)]
    first, second = (auc_components(labels_R, scores_R, weights_R) for scores_R in (first_R, second_R))
    own = (None, None) if weights_R is None else (weights_R[labels_R], weights_R[~labels_R])
    variance = sum(variance_of_mean(b - a, weights_P) for a, b, weights_P in zip(first, second, own, strict=True))
    return Difference.of(aucs[0], aucs[1], math.sqrt(variance))


def auc_components(labels_R: Mask, scores_R: Floats, weights_R: Floats | None = None) -> tuple[Floats, Floats]:
    """For each click, and for each other row, the share of the other class that it is ordered rightly against.

    The (weighted) mean of either is the AUC; the variance of a mean of differences of both adds up to that of an AUC
    difference.
    """
    each_R = np.ones(len(labels_R)) if weights_R is None else weights_R
    _, place_R = np.unique(scores_R, return_inverse=True)
    found = []
    for own_R, other_R in ((labels_R, ~labels_R), (~labels_R, labels_R)):
        mass_V = np.bincount(place_R[other_R], each_R[other_R], minlength=int(place_R.max()) + 1)
        below_R = (np.cumsum(mass_V) - mass_V / 2)[place_R[own_R]]
        found.append(below_R / each_R[other_R].sum())
    return found[0], 1 - found[1]


def paired_logloss(labels_R: Mask, first_R: Floats, second_R: Floats, weights_R: Floats | None = None) -> Difference:
    """Mean logloss of two logits of the same rows; standard error of the mean of their differences."""
    signs_R = np.where(labels_R, -1.0, 1.0)
    losses_R = np.logaddexp(0, signs_R * second_R) - np.logaddexp(0, signs_R * first_R)
    means = [logloss(labels_R, logits_R, weights_R) for logits_R in (first_R, second_R)]
    return Difference.of(means[0], means[1], math.sqrt(variance_of_mean(losses_R, weights_R)))


def paired_scores(
    labels_R: Mask, first_R: Floats, second_R: Floats, weights_R: Floats | None = None
) -> dict[str, Difference]:
    """AUC and logloss of two logits of the same rows."""
    return {
        "auc": paired_auc(labels_R, first_R, second_R, weights_R),
        "logloss": paired_logloss(labels_R, first_R, second_R, weights_R),
    }


def variance_of_mean(values_R: Floats, weights_R: Floats | None = None) -> float:
    """Of the (weighted) mean of independent values; 0 for a single one.

    With weights that of a ratio of two sums, by its linear part (Cochran, Sampling techniques, 1977, section 6.3).
    """
    if len(values_R) < 2:
        return 0.0
    if weights_R is None:
        return float(values_R.var(ddof=1) / len(values_R))
    shares_R = weights_R / weights_R.sum()
    spread = ((shares_R * (values_R - shares_R @ values_R)) ** 2).sum()
    return float(spread * len(values_R) / (len(values_R) - 1))
