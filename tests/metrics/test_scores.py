"""Metrics against counts over pairs, exact arithmetic and planted calibration."""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit

from dmoe.errors import DataError
from dmoe.metrics import scores as metrics

rows_with_ties = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40)


def pair_count_auc(labels: Any, scores: Any) -> float:
    """The definition: every (click, no click) pair, ties half."""
    clicks = [score for label, score in zip(labels, scores, strict=True) if label]
    others = [score for label, score in zip(labels, scores, strict=True) if not label]
    won = sum(Fraction(int(a > b)) + Fraction(int(a == b), 2) for a in clicks for b in others)
    return float(won / (len(clicks) * len(others)))


@given(rows_with_ties)
def test_auc_counts_pairs(rows: list[tuple[bool, int]]) -> None:
    labels, scores = zip(*rows, strict=True)
    assume(0 < sum(labels) < len(labels))
    assert metrics.auc(labels, scores) == pytest.approx(pair_count_auc(labels, scores), abs=1e-12)
    assert metrics.auc(labels, [-score for score in scores]) == pytest.approx(
        1 - metrics.auc(labels, scores), abs=1e-12
    )


def test_auc_takes_tensors_and_float32() -> None:
    labels = torch.tensor([0, 1, 0, 1], dtype=torch.uint8)
    assert metrics.auc(labels, torch.tensor([0.1, 0.4, 0.35, 0.8])) == 1.0
    assert metrics.auc(labels, torch.zeros(4)) == 0.5


def test_logloss_is_stable_and_equals_exact_arithmetic() -> None:
    from mpmath import mp, mpf

    labels = [1, 0, 1, 0, 1, 1, 0]
    logits = [0.0, 2.5, -1.25, -40.0, 40.0, 800.0, 800.0]
    with mp.workdps(500):
        expected = sum(mp.log(1 + mp.exp(-mpf(z) if y else mpf(z))) for y, z in zip(labels, logits, strict=True))
        expected = float(expected / len(labels))
    assert metrics.logloss(labels, logits) == pytest.approx(expected, rel=1e-14)
    # Far out, the loss is exp(-|logit|), not 0 and not the spacing of floats near 1.
    assert metrics.logloss([1, 0], [50.0, -50.0]) == pytest.approx(math.exp(-50), rel=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.floats(-15, 15)), min_size=1, max_size=30))
def test_logloss_of_probabilities_agrees_with_logits(rows: list[tuple[bool, float]]) -> None:
    labels, logits = (np.array(column) for column in zip(*rows, strict=True))
    assert metrics.logloss_of_probabilities(labels, expit(logits)) == pytest.approx(
        metrics.logloss(labels, logits), rel=1e-6, abs=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_are_clipped_at_their_own_rounding(dtype: Any) -> None:
    eps = float(np.finfo(dtype).eps)
    assert metrics.logloss_of_probabilities([0, 1], np.array([1, 0], dtype)) == pytest.approx(-math.log(eps))
    assert metrics.logloss_of_probabilities([1, 0], np.array([1, 0], dtype)) == pytest.approx(eps, rel=0.01)


def test_relative_information_gain_at_known_points() -> None:
    labels = np.array([1, 0, 0, 0] * 25)
    rate_logit = math.log(0.25 / 0.75)
    assert metrics.relative_information_gain(labels, np.full(100, rate_logit)) == pytest.approx(0, abs=1e-12)
    assert metrics.relative_information_gain(labels, np.where(labels, 60.0, -60.0)) == pytest.approx(1)
    assert metrics.relative_information_gain(labels, np.where(labels, -3.0, 3.0)) < 0
    # Two groups with known rates: entropy by hand.
    logits = np.where(np.arange(100) < 50, math.log(0.4 / 0.6), math.log(0.1 / 0.9))
    planted = np.array([1] * 20 + [0] * 30 + [1] * 5 + [0] * 45)

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    expected = 1 - (entropy(0.4) + entropy(0.1)) / 2 / entropy(0.25)
    assert metrics.relative_information_gain(planted, logits) == pytest.approx(expected, rel=1e-12)


def test_calibration_by_hand() -> None:
    probabilities = np.array([0.5, 0.1, 0.4, 0.2, 0.8, 0.6])
    labels = np.array([1, 0, 0, 1, 1, 1])
    result = metrics.calibration(labels, probabilities, bins=3)
    assert [(bin_.low, bin_.high, bin_.rows) for bin_ in result.bins] == [(0.1, 0.2, 2), (0.4, 0.5, 2), (0.6, 0.8, 2)]
    assert [bin_.mean_predicted for bin_ in result.bins] == pytest.approx([0.15, 0.45, 0.7])
    assert [bin_.click_rate for bin_ in result.bins] == [0.5, 0.5, 1.0]
    assert result.expected_calibration_error == pytest.approx((0.35 + 0.05 + 0.3) / 3)
    assert result.predicted_to_observed == pytest.approx(2.6 / 4)


def test_calibration_of_the_truth_and_of_a_planted_bias() -> None:
    generator = np.random.default_rng(0)
    truth = generator.beta(2, 8, 400_000)
    labels = generator.random(len(truth)) < truth
    right = metrics.calibration(labels, truth, bins=20)
    assert [bin_.rows for bin_ in right.bins] == [20_000] * 20
    # Each bin's click rate has a standard error below 0.0036; the mean of 20 is far below that.
    assert right.expected_calibration_error < 0.004
    assert right.predicted_to_observed == pytest.approx(1, abs=0.01)
    clipped = np.minimum(truth * 1.5, 1)
    biased = metrics.calibration(labels, clipped, bins=20)
    assert biased.predicted_to_observed == pytest.approx(clipped.sum() / labels.sum())
    assert biased.expected_calibration_error == pytest.approx(abs(clipped - truth).mean(), rel=0.02)


@given(rows_with_ties, st.integers(1, 12), st.randoms(use_true_random=False))
def test_calibration_keeps_ties_together_and_ignores_order(
    rows: list[tuple[bool, int]], bins: int, random: Any
) -> None:
    assume(any(label for label, _ in rows))
    result = _calibration(rows, bins)
    assert sum(bin_.rows for bin_ in result.bins) == len(rows)
    assert len(result.bins) <= bins
    for left, right in pairwise(result.bins):
        assert left.low <= left.high < right.low
    total = sum(bin_.rows * bin_.click_rate for bin_ in result.bins)
    assert total == pytest.approx(sum(label for label, _ in rows))
    assert 0 <= result.expected_calibration_error <= 1
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = _calibration(shuffled, bins)
    assert again.expected_calibration_error == pytest.approx(result.expected_calibration_error, abs=1e-12)
    assert [bin_.rows for bin_ in again.bins] == [bin_.rows for bin_ in result.bins]


def _calibration(rows: list[tuple[bool, int]], bins: int) -> metrics.Calibration:
    labels, scores = zip(*rows, strict=True)
    return metrics.calibration(labels, [(score + 3) / 6 for score in scores], bins)


@given(st.lists(st.tuples(st.booleans(), st.integers(-2, 2), st.integers(0, 4)), min_size=1, max_size=60))
def test_grouped_auc_is_the_weighted_mean_of_each_groups_auc(rows: list[tuple[bool, int, int]]) -> None:
    labels, scores, groups = (np.array(column) for column in zip(*rows, strict=True))
    weighted, used, skipped, skipped_rows, counted = 0.0, 0, 0, 0, 0
    for group in np.unique(groups):
        inside = groups == group
        if labels[inside].all() or not labels[inside].any():
            skipped, skipped_rows = skipped + 1, skipped_rows + int(inside.sum())
            continue
        weighted += inside.sum() * pair_count_auc(labels[inside], scores[inside])
        used, counted = used + int(inside.sum()), counted + 1
    if not used:
        with pytest.raises(DataError, match="group with both classes"):
            metrics.grouped_auc(labels, scores, groups)
        return
    for names in (groups, np.array([f"user {group}" for group in groups])):
        result = metrics.grouped_auc(labels, scores, names)
        assert result.auc == pytest.approx(weighted / used, abs=1e-12)
        assert (result.groups, result.rows) == (counted, used)
        assert (result.skipped_groups, result.skipped_rows) == (skipped, skipped_rows)


METRICS: list[Callable[[Any, Any], Any]] = [
    metrics.auc,
    metrics.logloss,
    metrics.logloss_of_probabilities,
    metrics.relative_information_gain,
    metrics.calibration,
    lambda labels, scores: metrics.grouped_auc(labels, scores, np.zeros(len(scores))),
]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("labels", "values", "message"),
    [
        ([0, 1], [0.5], r"labels have shape \(2,\) and \w+ \(1,\)"),
        ([[0], [1]], [[0.5], [0.5]], "must be one-dimensional"),
        ([], [], "there are no rows"),
        ([0, 2], [0.5, 0.5], "labels must be 0 or 1, got 2 in row 1"),
        ([0, math.nan], [0.5, 0.5], "labels must be 0 or 1, got nan in row 1"),
        ([0, 1], [math.nan, 0.5], r"\w+ must be finite, got nan in row 0"),
        ([0, 1], [0.5, math.inf], r"\w+ must be finite, got inf in row 1"),
    ],
)
def test_wrong_arrays_are_named(metric: Callable[[Any, Any], Any], labels: Any, values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        metric(labels, values)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_said_with_its_rows(label: int) -> None:
    labels, scores = np.full(7, label), np.linspace(0.1, 0.9, 7)
    for metric, name in ((metrics.auc, "AUC"), (metrics.relative_information_gain, "relative information gain")):
        with pytest.raises(DataError, match=f"{name} needs rows of both classes: all 7 rows have label {label}"):
            metric(labels, scores)
    with pytest.raises(DataError, match="group with both classes"):
        metrics.grouped_auc(labels, scores, np.zeros(7))
    if label == 0:
        with pytest.raises(DataError, match="calibration needs clicks: all 7 rows have label 0"):
            metrics.calibration(labels, scores)


def test_other_wrong_use_is_named() -> None:
    for metric in (metrics.calibration, metrics.logloss_of_probabilities):
        with pytest.raises(DataError, match=r"probabilities must be from 0 to 1, got 1.5 in row 1"):
            metric([0, 1], [0.5, 1.5])
    with pytest.raises(ValueError, match="at least one bin, got 0"):
        metrics.calibration([0, 1], [0.5, 0.5], bins=0)
    with pytest.raises(DataError, match=r"groups have shape \(3,\) and labels \(2,\)"):
        metrics.grouped_auc([0, 1], [0.5, 0.5], [1, 2, 3])


@given(
    rows=st.lists(st.tuples(st.booleans(), st.floats(-5, 5), st.integers(0, 3)), min_size=2, max_size=30).filter(
        lambda rows: len({label for label, _, weight in rows if weight}) == 2
    )
)
def test_a_weight_counts_the_row_as_often(rows: list[tuple[bool, float, int]]) -> None:
    labels, logits, weights = (np.array(column) for column in zip(*rows, strict=True))
    many = np.repeat(np.arange(len(rows)), weights)
    for name in ("auc", "logloss", "relative_information_gain"):
        measure = getattr(metrics, name)
        assert measure(labels, logits, weights) == pytest.approx(measure(labels[many], logits[many]), abs=1e-12)
    found, expected = (
        metrics.scores_of_rows(labels[kept], logits[kept], of)
        for kept, of in ((np.arange(len(rows)), weights.astype(float)), (many, None))
    )
    assert found.pop("rows") == len(rows)
    assert expected.pop("rows") == weights.sum()
    assert found == pytest.approx(expected)
    one = metrics.calibration(labels, expit(logits), 1, weights)
    other = metrics.calibration(labels[many], expit(logits[many]), 1)
    assert one.predicted_to_observed == pytest.approx(other.predicted_to_observed)
    assert one.expected_calibration_error == pytest.approx(other.expected_calibration_error)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [np.nan, 1.0], [0.0, 0.0]])
def test_weights_that_are_none(weights: list[float]) -> None:
    with pytest.raises(DataError, match="weights"):
        metrics.logloss([0, 1], [0.0, 0.0], weights)
