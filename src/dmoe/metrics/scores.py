"""How good predicted click probabilities are: ranking, logarithmic loss, calibration.

All functions take one-dimensional arrays (numpy, or tensors on the CPU) of N rows, compute in float64 and do
not depend on the order of rows beyond rounding. Labels are 0 or 1. Higher is better for AUC and relative
information gain, lower for logloss and calibration error. `weights`, 0 and up, count a row as often as they say.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from dmoe.errors import DataError

Floats = NDArray[np.float64]

EVALUATION_FORMAT = 1


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Rows of neighbouring predictions."""

    low: float
    """Smallest predicted probability in the bin."""
    high: float
    """Largest predicted probability in the bin."""
    rows: int
    mean_predicted: float
    click_rate: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far predicted probabilities are from click rates."""

    bins: tuple[CalibrationBin, ...]
    """By rising prediction."""
    expected_calibration_error: float
    """Σ_bins rows/N · |mean predicted - click rate|, 0 (best) to 1."""
    predicted_to_observed: float
    """Sum of predictions over number of clicks; 1 is right on average, above 1 predicts too many clicks."""


@dataclass(frozen=True, slots=True)
class GroupedAUC:
    """AUC inside groups, for example users, averaged with the groups' rows as weights."""

    auc: float
    groups: int
    """Groups with both classes, which the average is over."""
    rows: int
    """Rows in those groups."""
    skipped_groups: int
    """Groups of one class only: no AUC is defined for them."""
    skipped_rows: int


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the share of (click, no click) pairs that `scores` orders rightly, ties as half.

    Exact, 0 to 1, 0.5 for scores without information. Logits order at least as finely as probabilities, which
    saturate.

    Raises: DataError if only one class is present, or for arrays that do not fit.
    """
    labels_N, scores_N = _labels_and(scores, "scores", labels)
    _need_both_classes(labels_N, "AUC")
    return float(roc_auc_score(labels_N, scores_N, sample_weight=_weights(weights, labels_N)))


def logloss(labels: ArrayLike, logits: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean of -[y ln p + (1-y) ln(1-p)] in nats, p = sigmoid(logit); 0 and up.

    Computed as softplus(±logit): exact where p itself would round to 0 or 1, so nothing is clipped.

    Raises: DataError for arrays that do not fit or are empty.
    """
    labels_N, logits_N = _labels_and(logits, "logits", labels)
    losses_N = np.logaddexp(0.0, np.where(labels_N, -logits_N, logits_N))
    return float(losses_N.mean() if weights is None else np.average(losses_N, weights=_weights(weights, labels_N)))


def logloss_of_probabilities(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """`logloss` when only probabilities are at hand.

    They are clipped to [ε, 1-ε], ε being the spacing of the given floating type near 1 (1.2e-7 for float32,
    2.2e-16 for float64): a probability that was rounded to 0 or 1 carries no more than that.

    Raises: DataError for arrays that do not fit or are empty, or a probability outside [0, 1].
    """
    given = np.asarray(probabilities)
    epsilon = float(np.finfo(given.dtype).eps) if given.dtype.kind == "f" else float(np.finfo(np.float64).eps)
    labels_N, probabilities_N = _labels_and(given, "probabilities", labels)
    _need_probabilities(probabilities_N)
    clipped_N = np.clip(probabilities_N, epsilon, 1 - epsilon)
    return float(-np.where(labels_N, np.log(clipped_N), np.log1p(-clipped_N)).mean())


def relative_information_gain(labels: ArrayLike, logits: ArrayLike, weights: ArrayLike | None = None) -> float:
    """1 - logloss / entropy of the rows' own click rate; 1 is perfect, 0 no better than the click rate.

    Negative for predictions worse than that. One minus the normalised entropy of He et al., "Practical lessons
    from predicting clicks on ads at Facebook" (ADKDD 2014), section 2. Comparable between sets of different
    click rates, unlike logloss.

    Raises: DataError if only one class is present (the entropy is 0), or for arrays that do not fit.
    """
    labels_N = _labels_and(logits, "logits", labels)[0]
    _need_both_classes(labels_N, "relative information gain")
    rate = labels_N.mean() if weights is None else np.average(labels_N, weights=_weights(weights, labels_N))
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return float(1 - logloss(labels_N, logits, weights) / entropy)


def calibration(
    labels: ArrayLike, probabilities: ArrayLike, bins: int = 10, weights: ArrayLike | None = None
) -> Calibration:
    """Predictions against click rates in `bins` bins of (nearly) equal numbers of rows.

    Equal predictions always share a bin, whatever the order of rows; with few distinct predictions there are
    therefore fewer bins, and uneven ones. Weights change their means and shares, not which rows they hold. The
    expected calibration error is that of Naeini et al. (AAAI 2015) on such bins; it grows a little with their number.

    Raises: DataError if no row is positive (the ratio of predicted to observed clicks is undefined), for a
    probability outside [0, 1], or for arrays that do not fit. ValueError for fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"calibration needs at least one bin, got {bins}")
    labels_N, probabilities_N = _labels_and(probabilities, "probabilities", labels)
    _need_probabilities(probabilities_N)
    if not labels_N.any():
        raise DataError(
            f"calibration needs clicks: all {len(labels_N)} rows have label 0; evaluate on rows of both classes"
        )
    order = np.argsort(probabilities_N, kind="stable")
    sorted_N, clicks_N = probabilities_N[order], labels_N[order]
    # Each bin ends after the last row that has the value of its equal-count boundary.
    last = np.linspace(0, len(sorted_N), bins + 1)[1:].round().astype(np.int64) - 1
    ends = np.unique(np.searchsorted(sorted_N, sorted_N[np.maximum(last, 0)], side="right"))
    starts = np.concatenate([[0], ends[:-1]])
    rows = ends - starts
    found_N = _weights(weights, labels_N)
    each_N = np.ones(len(order)) if found_N is None else found_N[order]
    mass = np.add.reduceat(each_N, starts)
    safe = np.where(mass > 0, mass, 1.0)
    total, clicks = (one_N.sum() if found_N is None else one_N @ found_N for one_N in (probabilities_N, labels_N))
    predicted = np.add.reduceat(sorted_N * each_N, starts) / safe
    observed = np.add.reduceat(clicks_N * each_N, starts) / safe
    return Calibration(
        bins=tuple(
            CalibrationBin(float(low), float(high), int(count), float(mean), float(rate))
            for low, high, count, mean, rate in zip(
                sorted_N[starts], sorted_N[ends - 1], rows, predicted, observed, strict=True
            )
        ),
        expected_calibration_error=float((mass * np.abs(predicted - observed)).sum() / each_N.sum()),
        predicted_to_observed=float(total / clicks),
    )


def scores_of_split(
    split: str, labels_N: NDArray[Any], logits_N: NDArray[Any], weights_N: NDArray[Any] | None = None
) -> dict[str, Any]:
    """What `evaluation/<split>.json` begins with, whatever model it is of.

    Raises: DataError as the measures do.
    """
    return {
        "format_version": EVALUATION_FORMAT,
        "split": split,
        "rows": len(labels_N),
        "positives": int(labels_N.sum()),
        "auc": auc(labels_N, logits_N, weights_N),
        "logloss": logloss(labels_N, logits_N, weights_N),
        "relative_information_gain": relative_information_gain(labels_N, logits_N, weights_N),
        "calibration": asdict(calibration(labels_N, probability_of(logits_N), weights=weights_N)),
    }


def scores_of_rows(
    labels_N: NDArray[Any], logits_N: NDArray[Any], weights_N: NDArray[Any] | None = None
) -> dict[str, Any]:
    """Of some of the rows: what cannot be said of so few, or of one class, is None."""
    total, clicks = float(len(labels_N)), float(labels_N.sum())
    if weights_N is not None:
        total, clicks = float(weights_N.sum()), float(labels_N.astype(np.float64) @ weights_N)
    predicted = float(np.average(probability_of(logits_N), weights=weights_N)) if total else None
    return {
        "rows": len(labels_N),
        "auc": auc(labels_N, logits_N, weights_N) if 0 < clicks < total else None,
        "logloss": logloss(labels_N, logits_N, weights_N) if total else None,
        "predicted": predicted,
        "observed": clicks / total if total else None,
        "predicted_to_observed": predicted * total / clicks if predicted is not None and clicks else None,
    }


def relative_weights(weights_N: Floats | None, rows: int) -> Floats:
    """What each of N rows counts, 1 in the mean."""
    return np.ones(rows) if weights_N is None else weights_N / weights_N.mean()


def probability_of(logits_N: NDArray[Any]) -> Floats:
    """The sigmoid of logits."""
    probabilities_N: Floats = 1 / (1 + np.exp(-logits_N))
    return probabilities_N


def grouped_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> GroupedAUC:
    """Σ_g rows_g · AUC_g / Σ_g rows_g over the groups that hold both classes (GAUC).

    Impression-weighted as in Zhou et al., "Deep Interest Network" (KDD 2018), section 6.2: what a ranking for
    one user sees, free of differences between users. Ties count half; millions of groups are no trouble.

    Args:
        groups: one value a row, integers or text, for example a user id.
    Raises: DataError if no group holds both classes, or for arrays that do not fit.
    """
    labels_N, scores_N = _labels_and(scores, "scores", labels)
    values = np.asarray(groups)
    if values.shape != labels_N.shape:
        raise DataError(f"groups have shape {values.shape} and labels {labels_N.shape}; they must be equal")
    group_N = np.unique(values, return_inverse=True)[1]
    rows = np.bincount(group_N)
    positives = np.bincount(group_N, weights=labels_N)
    both = (positives > 0) & (positives < rows)
    if not both.any():
        raise DataError(
            f"grouped AUC needs a group with both classes: each of the {len(rows)} groups has one label only"
        )
    # Rank inside the group, ties at the mean of their ranks; then Mann and Whitney's count.
    order = np.lexsort((scores_N, group_N))
    group_N, scores_N, labels_N = group_N[order], scores_N[order], labels_N[order]
    new_run = np.ones(len(order), dtype=bool)
    new_run[1:] = (group_N[1:] != group_N[:-1]) | (scores_N[1:] != scores_N[:-1])
    starts = np.flatnonzero(new_run)
    lengths = np.diff(starts, append=len(order))
    mean_rank = np.repeat(starts + (lengths + 1) / 2, lengths) - (np.cumsum(rows) - rows)[group_N]
    rank_sum = np.bincount(group_N, weights=mean_rank * labels_N, minlength=len(rows))[both]
    clicks, others = positives[both], rows[both] - positives[both]
    group_auc = (rank_sum - clicks * (clicks + 1) / 2) / (clicks * others)
    used = int(rows[both].sum())
    return GroupedAUC(
        auc=float((group_auc * rows[both]).sum() / used),
        groups=int(both.sum()),
        rows=used,
        skipped_groups=int((~both).sum()),
        skipped_rows=len(order) - used,
    )


def _labels_and(values: ArrayLike, name: str, labels: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """Labels as booleans and `values` as float64, checked against each other."""
    labels_N: NDArray[Any] = np.asarray(labels)
    values_N = np.asarray(values).astype(np.float64, copy=False)
    if labels_N.ndim != 1 or labels_N.shape != values_N.shape:
        raise DataError(
            f"labels have shape {labels_N.shape} and {name} {values_N.shape}; both must be one-dimensional and equal"
        )
    if len(labels_N) == 0:
        raise DataError(f"there are no rows: labels and {name} are empty")
    wrong = np.flatnonzero((labels_N != 0) & (labels_N != 1))
    if len(wrong):
        raise DataError(f"labels must be 0 or 1, got {labels_N[wrong[0]]} in row {wrong[0]}")
    bad = np.flatnonzero(~np.isfinite(values_N))
    if len(bad):
        raise DataError(f"{name} must be finite, got {values_N[bad[0]]} in row {bad[0]}")
    return labels_N.astype(bool), values_N


def _weights(weights: ArrayLike | None, labels_N: NDArray[np.bool_]) -> Floats | None:
    """As float64, checked against the labels."""
    if weights is None:
        return None
    weights_N = np.asarray(weights).astype(np.float64, copy=False)
    if weights_N.shape != labels_N.shape:
        raise DataError(f"weights have shape {weights_N.shape} and labels {labels_N.shape}; they must be equal")
    if not (np.isfinite(weights_N) & (weights_N >= 0)).all() or not weights_N.any():
        raise DataError("weights must be finite and not below 0, and some of them above")
    return weights_N


def _need_both_classes(labels_N: NDArray[np.bool_], metric: str) -> None:
    if labels_N.all() or not labels_N.any():
        raise DataError(
            f"{metric} needs rows of both classes: all {len(labels_N)} rows have label {int(labels_N[0])}; "
            "evaluate on more rows or another split"
        )


def _need_probabilities(probabilities_N: Floats) -> None:
    outside = np.flatnonzero((probabilities_N < 0) | (probabilities_N > 1))
    if len(outside):
        raise DataError(
            f"probabilities must be from 0 to 1, got {probabilities_N[outside[0]]} in row {outside[0]}; "
            "logits go through a sigmoid first"
        )
