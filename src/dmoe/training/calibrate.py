"""Fitting the map from logits to calibrated logits on held-out rows.

Shape suffixes: R rows, K knots.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from dmoe.evaluation.tasks import TaskRows
from dmoe.metrics.scores import calibration, logloss, probability_of, relative_weights
from dmoe.nn.calibration import KNOTS, LogitMap

Floats: TypeAlias = npt.NDArray[np.float64]
Kind: TypeAlias = Literal["none", "temperature", "platt", "isotonic"]
KINDS: tuple[Kind, ...] = ("none", "temperature", "platt", "isotonic")

# Blocks of neighbouring rows that `auto` judges each kind on, fitted on the others.
_FOLDS = 5
# How much of valid, from its end, `auto` may fit on instead of all; judged on the blocks after, from the fifth on.
_WINDOWS = (0.5, 0.25)
_BLOCKS, _FIRST_JUDGED = 10, 4
_LEAST_ROWS = 10_000
_SURE = 3.0  # standard errors: neighbouring rows are alike
# A step of the isotonic regression stands on at least so many rows of the rarer class.
_STEP_ROWS = 25
_STEEPEST = 20.0
_FLATTEST = 1e-3


@dataclass(frozen=True, slots=True)
class Fit:
    """The numbers of a `LogitMap`."""

    kind: Kind
    bias: float = 0.0
    slope: float = 1.0
    knots: tuple[float, ...] = ()
    bends: tuple[float, ...] = ()

    def __call__(self, logits_R: Floats) -> Floats:
        """The map in numpy."""
        mapped_R: Floats = self.bias + self.slope * logits_R
        for knot, bend in zip(self.knots, self.bends, strict=True):
            mapped_R += bend * np.maximum(0.0, logits_R - knot)
        return mapped_R


def fit(kind: Kind, labels_R: npt.NDArray[Any], logits_R: Floats, weights_R: Floats | None = None) -> Fit:
    """The map of one kind that is likeliest on these rows.

    `temperature`: z/T (Guo et al., ICML 2017, section 4.2); `platt`: a·z + b (Platt 1999), both by maximum
    likelihood; `isotonic`: the non-decreasing step function of Zadrozny and Elkan (KDD 2002), its steps joined by
    straight lines in the logit. Where rows cannot say (one class, equal logits), the identity.
    """
    labels_R = labels_R.astype(np.int64)
    if kind == "none" or len(np.unique(labels_R)) < 2 or np.ptp(logits_R) < 1e-9:
        return Fit("none")
    return _FITS[kind](labels_R, logits_R, weights_R)


def _platt(labels_R: npt.NDArray[np.int64], logits_R: Floats, weights_R: Floats | None) -> Fit:
    slope, bias = _regression(labels_R, logits_R, weights_R, intercept=True)
    return Fit("none") if slope is None else Fit("platt", bias, slope)


def _temperature(labels_R: npt.NDArray[np.int64], logits_R: Floats, weights_R: Floats | None) -> Fit:
    slope, _ = _regression(labels_R, logits_R, weights_R, intercept=False)
    return Fit("none") if slope is None else Fit("temperature", 0.0, slope)


def _regression(
    labels_R: npt.NDArray[np.int64], logits_R: Floats, weights_R: Floats | None, *, intercept: bool
) -> tuple[float | None, float]:
    # The penalty is as good as none; it keeps rows that are told apart wholly from an infinite slope.
    model = LogisticRegression(C=1e6, fit_intercept=intercept, tol=1e-8, max_iter=1000)
    model.fit(logits_R.reshape(-1, 1), labels_R, sample_weight=weights_R)
    slope = float(model.coef_[0, 0])
    bias = float(model.intercept_[0]) if intercept else 0.0
    return (slope, bias) if _FLATTEST <= slope <= _STEEPEST else (None, 0.0)


def _isotonic(labels_R: npt.NDArray[np.int64], logits_R: Floats, weights_R: Floats | None) -> Fit:
    order = np.argsort(logits_R, kind="stable")
    each_R = np.ones(len(order)) if weights_R is None else weights_R[order]
    weights = None if weights_R is None else each_R
    steps_R = IsotonicRegression(out_of_bounds="clip").fit_transform(
        logits_R[order], labels_R[order], sample_weight=weights
    )
    ends = np.append(np.flatnonzero(np.diff(steps_R) > 0) + 1, len(steps_R))
    blocks = _merged(ends, labels_R[order])
    while len(blocks) > KNOTS:
        blocks = [(first[0], second[1]) for first, second in _pairs(blocks)]
    middles = np.array([logits_R[order][start:stop].mean() for start, stop in blocks])
    clicks = np.array([(labels_R[order] * each_R)[start:stop].sum() for start, stop in blocks], dtype=np.float64)
    rows = np.array([each_R[start:stop].sum() for start, stop in blocks], dtype=np.float64)
    # The rate with one row of prior weight, so that no logit is infinite.
    rates = (clicks + clicks.sum() / rows.sum()) / (rows + 1)
    heights = np.log(rates) - np.log1p(-rates)
    if len(blocks) < 2:
        return Fit("none")
    slopes = np.clip(np.diff(heights) / np.maximum(np.diff(middles), 1e-9), _FLATTEST, _STEEPEST)
    # Beyond the outermost steps the line goes on as the model's own: slope 1.
    all_slopes = np.concatenate([[1.0], slopes, [1.0]])
    bias = float(heights[0] - middles[0])
    return Fit("isotonic", bias, 1.0, tuple(middles.tolist()), tuple(np.diff(all_slopes).tolist()))


def _pairs(blocks: list[tuple[int, int]]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Neighbours two by two; an odd last one with itself."""
    return [(blocks[index], blocks[min(index + 1, len(blocks) - 1)]) for index in range(0, len(blocks), 2)]


def _merged(ends: npt.NDArray[np.int64], sorted_R: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Steps of enough rows of either class, as (start, stop)."""
    blocks: list[tuple[int, int]] = []
    start = 0
    for end in ends.tolist():
        clicks = int(sorted_R[start:end].sum())
        if min(clicks, end - start - clicks) >= _STEP_ROWS:
            blocks.append((start, end))
            start = end
    if start < len(sorted_R):  # what is left joins the last
        blocks = [*blocks[:-1], (blocks[-1][0], len(sorted_R))] if blocks else [(0, len(sorted_R))]
    return blocks


_FITS: dict[str, Callable[[npt.NDArray[np.int64], Floats, Floats | None], Fit]] = {
    "temperature": _temperature,
    "platt": _platt,
    "isotonic": _isotonic,
}


def choose(labels_R: npt.NDArray[Any], logits_R: Floats, weights_R: Floats | None = None) -> Kind:
    """The kind with the least logloss on rows that it was not fitted on; a simpler one unless that is beyond chance.

    Rows are judged in blocks as they come, so that a later block of a log in order of time stands for a later day.
    """
    blocks = np.array_split(np.arange(len(labels_R)), min(_FOLDS, len(labels_R)))
    losses: dict[Kind, Floats] = {}
    each_R = relative_weights(weights_R, len(labels_R))
    signs_R = np.where(labels_R > 0, -1.0, 1.0)
    for kind in KINDS:
        losses[kind] = np.empty(len(labels_R))
        for block in blocks:
            others = np.ones(len(labels_R), dtype=bool)
            others[block] = False
            mapped = fit(kind, labels_R[others], logits_R[others], _of(weights_R, others))(logits_R[block])
            losses[kind][block] = np.logaddexp(0.0, signs_R[block] * mapped) * each_R[block]
    chosen: Kind = "none"
    for kind in KINDS[1:]:
        gains_R = losses[chosen] - losses[kind]
        if gains_R.mean() > gains_R.std() / np.sqrt(len(gains_R)):
            chosen = kind
    return chosen


def latest(
    kind: Kind, labels_R: npt.NDArray[Any], logits_R: Floats, weights_R: Floats | None = None
) -> tuple[Kind, int]:
    """The map and how many of the last rows it is best fitted on: `kind` and all, or any map on the last half or
    quarter where the rows say so. Where the level moves, none may be worth fitting on all rows and one on the latest.

    Each is tried as it will be used: fitted on what lies before a block of rows and judged on the block (rolling
    origin; Tashman, Int. J. Forecasting 2000). A smaller window, and in it a map of more numbers, must gain by three
    standard errors, so that rows without an order keep all.
    """
    rows = len(labels_R)
    if rows < _LEAST_ROWS:
        return kind, rows
    blocks = np.array_split(np.arange(rows), _BLOCKS)[_FIRST_JUDGED:]
    each_R = relative_weights(weights_R, len(labels_R))
    signs_R = np.where(labels_R > 0, -1.0, 1.0)

    def judged(kind: Kind, window: float) -> Floats:
        losses = []
        for block in blocks:
            of = slice(int(block[0] * (1 - window)), int(block[0]))
            mapped = fit(kind, labels_R[of], logits_R[of], _of(weights_R, of))(logits_R[block])
            losses.append(np.logaddexp(0.0, signs_R[block] * mapped) * each_R[block])
        return np.concatenate(losses)

    chosen, least = (kind, rows), judged(kind, 1.0)
    for window in _WINDOWS:
        for other in KINDS[1:]:
            losses = judged(other, window)
            gains_R = least - losses
            if gains_R.mean() > _SURE * gains_R.std() / np.sqrt(len(gains_R)):
                chosen, least = (other, int(rows * window)), losses
    return chosen


def calibrate(of: LogitMap, how: Kind | Literal["auto"], held_out: Mapping[str, TaskRows]) -> dict[str, Any]:
    """Sets the map of one task from the `valid` rows of `held_out`, by split with uncalibrated logits.

    Gives what calibration.json holds: the kind, its numbers, how many of the last rows of valid it was fitted on, and
    the reliability of each split before and after.
    """
    valid = held_out["valid"]
    labels_R, logits_R, weights_R = valid.labels_R, valid.logits_R, valid.weights_R
    kind, rows = how, len(labels_R)
    if kind == "auto":
        kind = choose(labels_R, logits_R, weights_R)
        kind, rows = latest(kind, labels_R, logits_R, weights_R)
    last = slice(len(labels_R) - rows, None)
    found = fit(kind, labels_R[last], logits_R[last], _of(weights_R, last))
    of.set(found.bias, found.slope, found.knots, found.bends)
    return {
        "asked": how,
        **asdict(found),
        "rows": rows,
        "valid_rows": len(labels_R),
        "splits": {
            split: {"before": reliability(one), "after": reliability(replace(one, logits_R=found(one.logits_R)))}
            for split, one in held_out.items()
        },
    }


def reliability(rows: TaskRows) -> dict[str, float]:
    """Logloss and calibration of one set of logits."""
    found = calibration(rows.labels_R, probability_of(rows.logits_R), weights=rows.weights_R)
    return {
        "logloss": logloss(rows.labels_R, rows.logits_R, rows.weights_R),
        "expected_calibration_error": found.expected_calibration_error,
        "predicted_to_observed": found.predicted_to_observed,
    }


def _of(weights_R: Floats | None, rows: Any) -> Floats | None:
    return None if weights_R is None else weights_R[rows]
