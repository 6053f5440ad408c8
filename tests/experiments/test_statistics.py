"""Every statistic against a slow or independent form of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from dmoe.experiments import statistics
from dmoe.experiments.statistics import (
    CellScores,
    Spread,
    compare_auc,
    compare_logloss,
    compare_values,
    holm,
    trend,
)
from dmoe.metrics.paired import paired_auc, paired_logloss


def scores(seed: int, rows: int = 400, noise: float = 1.0, rounded: bool = False) -> CellScores:
    """All scores of one size have the same labels."""
    labels = np.random.default_rng(rows).random(rows) < 0.3
    random = np.random.default_rng(seed)
    logits = labels + noise * random.normal(size=rows)
    return CellScores(labels, np.round(logits, 1) if rounded else logits)


@pytest.mark.parametrize("rounded", [False, True])
def test_bootstrap_is_the_auc_of_resampled_rows(monkeypatch: pytest.MonkeyPatch, rounded: bool) -> None:
    monkeypatch.setattr(statistics, "BOOTSTRAP_DRAWS", 20)
    one = scores(1, rounded=rounded)
    random = np.random.default_rng(statistics.BOOTSTRAP_SEED)
    expected = []
    for _ in range(20):
        rows = random.integers(0, 400, 400)
        expected.append(roc_auc_score(one.labels_R[rows], one.logits_R[rows]))
    assert one.bootstrap_auc_K == pytest.approx(np.array(expected), abs=1e-12)


def test_one_seed_is_delong() -> None:
    first, second = scores(1), scores(2)
    found = compare_auc([(1, first, second)])
    known = paired_auc(first.labels_R, first.logits_R, second.logits_R)
    assert (found.difference, found.p, found.low, found.high) == pytest.approx(
        (known.difference, known.p, known.low, known.high)
    )
    assert found.seed_std is None
    # The bootstrap over the same rows says nearly the same.
    assert (found.rows_low, found.rows_high) == pytest.approx(
        (known.low, known.high), abs=0.25 * (known.high - known.low)
    )
    other = compare_logloss([(1, first, second)])
    loss = paired_logloss(first.labels_R, first.logits_R, second.logits_R)
    assert (other.difference, other.p) == pytest.approx((loss.difference, loss.p))


def test_logloss_of_rows_is_scikit_learns() -> None:
    one = scores(3)
    assert one.losses_R.mean() == pytest.approx(log_loss(one.labels_R, 1 / (1 + np.exp(-one.logits_R))))


def test_several_seeds_average_models_and_add_the_variance_of_seeds() -> None:
    firsts, seconds = [scores(seed) for seed in (1, 2, 3)], [scores(seed, noise=0.9) for seed in (11, 12, 13)]
    found = compare_auc([(seed, a, b) for seed, (a, b) in enumerate(zip(firsts, seconds, strict=True))])
    differences = [b.auc - a.auc for a, b in zip(firsts, seconds, strict=True)]
    labels = firsts[0].labels_R
    # DeLong's covariance of all six AUCs, written out; the mean difference is a linear form of them.
    weights = np.array([-1, -1, -1, 1, 1, 1]) / 3
    clicks = np.cov([one.components[0] for one in (*firsts, *seconds)]) / labels.sum()
    others = np.cov([one.components[1] for one in (*firsts, *seconds)]) / (~labels).sum()
    rows = weights @ (clicks + others) @ weights
    seeds = np.var(differences, ddof=1) / 3
    assert found.difference == pytest.approx(np.mean(differences))
    assert found.seed_std == pytest.approx(np.std(differences, ddof=1))
    assert found.rows_p == pytest.approx(2 * stats.norm.sf(abs(found.difference) / np.sqrt(rows)))
    freedom = 2 * ((rows + seeds) / seeds) ** 2
    half = stats.t.ppf(0.975, freedom) * np.sqrt(rows + seeds)
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))


def test_equal_models_do_not_differ() -> None:
    one = scores(4)
    found = compare_auc([(1, one, one), (2, one, one)])
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_large_splits_take_the_normal_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BOOTSTRAP_ROWS", 10)
    found = compare_auc([(1, scores(1), scores(2))])
    assert (found.rows_low, found.rows_high) == pytest.approx((found.low, found.high))


def test_false_alarms_are_as_rare_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of equal quality, fresh rows and seeds each time: p below 0.05 in about one of twenty, not more."""
    monkeypatch.setattr(statistics, "BOOTSTRAP_ROWS", 0)
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        labels = random.random(300) < 0.3
        shared = labels + random.normal(size=300)
        draw = [[CellScores(labels, shared + random.normal(size=300)) for _ in range(3)] for _ in range(2)]
        alarms += compare_auc([(s, a, b) for s, (a, b) in enumerate(zip(*draw, strict=True))]).p < 0.05
    assert alarms <= 300 * 0.05 + 2.5 * np.sqrt(300 * 0.05 * 0.95)


def test_values_are_compared_by_the_paired_t_test() -> None:
    first, second = [0.1, 0.3, 0.2, 0.4], [0.2, 0.3, 0.4, 0.5]
    found = compare_values(first, second)
    assert found is not None
    assert found.p == pytest.approx(stats.ttest_rel(second, first).pvalue)
    assert compare_values([0.1], [0.2]) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(p_values: list[float]) -> None:
    """An adjusted p below a level is the same as rejection by the procedure at that level."""
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for rank, index in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[index] * (len(p_values) - rank) >= level:
                break
            rejected.add(int(index))
        assert {index for index, value in enumerate(adjusted) if value < level} == rejected


def test_trend_is_spearmans() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=8)
    y = -x + 0.8 * random.normal(size=8)
    found = trend([[(a, b)] for a, b in zip(x, y, strict=True)])
    assert found is not None
    assert found[0] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found[1] == found[2] == pytest.approx(found[0])  # one seed: nothing to resample
    assert trend([[(1.0, 1.0)], [(2.0, 2.0)]]) is None
    assert trend([[(1.0, 1.0)]] * 4) is None


def test_spread_is_that_of_a_sample() -> None:
    assert Spread.of([1.0, 2.0, 4.0]).std == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert Spread.of([1.0]).std is None
