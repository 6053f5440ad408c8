"""Mutual information and divergence against closed forms and other libraries."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import mutual_info_score

from dmoe.inspection.information import chance_divergence, jensen_shannon, mutual_information


def test_a_value_that_is_the_label_tells_all_of_it() -> None:
    counts = np.array([3000, 1000, 0])
    entropy = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25)
    correction = 1 / (2 * 4000 * math.log(2))
    assert mutual_information(counts, np.array([0, 1000, 0])) == pytest.approx(entropy - correction)
    assert mutual_information(counts, np.array([300, 100, 0])) == 0.0
    assert mutual_information(np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)) == 0.0


def test_mutual_information_is_that_of_scikit_learn_without_the_correction() -> None:
    draw = np.random.default_rng(0)
    values = draw.integers(6, size=5000)
    labels = (draw.random(5000) < 0.1 + 0.1 * values).astype(int)
    got = mutual_information(np.bincount(values), np.bincount(values, weights=labels).astype(np.int64))
    correction = 5 / (2 * 5000)
    assert got == pytest.approx((mutual_info_score(values, labels) - correction) / math.log(2))


def test_values_seen_once_tell_nothing() -> None:
    draw = np.random.default_rng(0)
    assert mutual_information(np.ones(1000, dtype=np.int64), draw.integers(2, size=1000)) == 0.0
    # Half of the rows have such values: the other half alone counts, against those as one.
    counts = np.array([500] + [1] * 500)
    together = mutual_information(np.array([500, 500]), np.array([100, 250]))
    assert mutual_information(counts, np.array([100] + [0, 1] * 250)) == pytest.approx(together)


def test_divergence_is_that_of_scipy_and_lies_between_0_and_1() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.integers(100, size=30), draw.integers(100, size=30)
    assert jensen_shannon(first, second) == pytest.approx(jensenshannon(first, second, base=2) ** 2)
    assert jensen_shannon(first, 7 * first) == pytest.approx(0.0, abs=1e-12)
    assert jensen_shannon(np.array([5, 0]), np.array([0, 9])) == pytest.approx(1.0)
    assert jensen_shannon(np.array([0, 0]), np.array([0, 9])) == 0.0


@pytest.mark.parametrize(("values", "n", "m"), [(20, 400, 300), (200, 500, 8), (30, 40, 5), (2, 3, 1)])
def test_chance_is_the_mean_over_shuffles_also_where_counts_are_small(values: int, n: int, m: int) -> None:
    draw = np.random.default_rng(0)
    pool = np.minimum(draw.geometric(1.5 / values, n + m), values) - 1

    def divergence() -> float:
        dealt = draw.permutation(pool)
        return jensen_shannon(np.bincount(dealt[:n], minlength=values), np.bincount(dealt[n:], minlength=values))

    got = [divergence() for _ in range(600)]
    once = np.bincount(pool, minlength=values)
    first = np.bincount(pool[:n], minlength=values)
    assert chance_divergence(first, once - first) == pytest.approx(np.mean(got), abs=4 * np.std(got) / 600**0.5)
    assert chance_divergence(first, once - first) <= 1
