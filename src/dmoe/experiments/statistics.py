"""Whether one arm is better than another: seeds, test rows, and many comparisons at once.

Two things vary from one repetition of an experiment to the next: the seed, and the rows that happened to be the test
split. All runs here share their test rows, and two arms share their seeds; both are paired.

Shape suffixes: S seeds, R test rows, P clicks, Q other rows, K bootstrap draws.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dmoe.metrics.paired import SIGNIFICANCE, auc_components, variance_of_mean

Floats = NDArray[np.float64]

BOOTSTRAP_DRAWS = 1000
BOOTSTRAP_SEED = 20250523
# Beyond, the interval by bootstrap is the normal one, and takes 20 s a run at 200,000 rows.
BOOTSTRAP_ROWS = 50_000


@dataclass(frozen=True)
class CellScores:
    """The logits of one run on the test rows."""

    labels_R: NDArray[np.bool_]
    logits_R: Floats

    @cached_property
    def auc(self) -> float:
        return float(self.components[0].mean())

    @cached_property
    def components(self) -> tuple[Floats, Floats]:
        """Structural components of the AUC (DeLong): (P,) and (Q,), in the order of rows."""
        return auc_components(self.labels_R, self.logits_R)

    @cached_property
    def losses_R(self) -> Floats:
        """Logloss of each row."""
        return np.logaddexp(0.0, np.where(self.labels_R, -self.logits_R, self.logits_R))

    @cached_property
    def bootstrap_auc_K(self) -> Floats:
        """AUC on BOOTSTRAP_DRAWS samples of rows with replacement, the same samples for every run on these rows."""
        order = np.argsort(self.logits_R, kind="stable")
        sorted_R = self.logits_R[order]
        group_R = np.cumsum(np.r_[True, sorted_R[1:] != sorted_R[:-1]]) - 1  # rows of equal logits
        clicked_R = self.labels_R[order]
        random = np.random.default_rng(BOOTSTRAP_SEED)
        rows, groups = len(order), int(group_R[-1]) + 1
        drawn_K = np.empty(BOOTSTRAP_DRAWS)
        for draw in range(BOOTSTRAP_DRAWS):
            count_R = np.bincount(random.integers(0, rows, rows), minlength=rows)[order]
            clicks_G = np.bincount(group_R, count_R * clicked_R, groups)
            others_G = np.bincount(group_R, count_R * ~clicked_R, groups)
            below_G = np.cumsum(others_G) - others_G
            pairs = clicks_G.sum() * others_G.sum()
            drawn_K[draw] = (clicks_G * (below_G + others_G / 2)).sum() / pairs if pairs else np.nan
        return drawn_K


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation; None for one seed."""
    seeds: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        array = np.asarray(values, dtype=np.float64)
        return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


@dataclass(frozen=True, slots=True)
class Compared:
    """Second minus first, averaged over seeds that both have.

    `p` and the interval `low` to `high` count both kinds of chance: rows and seeds. `rows_low` to `rows_high` count
    rows alone, by bootstrap, and `rows_p` by DeLong: what another test split of the same size would show for these very
    models. For figures that are not means over rows (CEC), seeds alone.
    """

    difference: float
    low: float
    high: float
    p: float
    seeds: int
    seed_std: float | None
    rows_low: float | None = None
    rows_high: float | None = None
    rows_p: float | None = None


Pairs = Iterable[tuple[int, CellScores, CellScores]]


def compare_auc(pairs: Pairs, weights: Iterable[float] = repeat(1.0)) -> Compared:
    """AUC of two arms from (seed, run of the first, run of the second); several models of a seed are averaged.

    `weights` are by pair, the same for each seed, and multiply its difference.

    The variance over rows is that of DeLong, DeLong and Clarke-Pearson (1988), of the mean over runs of the structural
    components. That of the seeds is the variance of the paired differences over S; of one seed it is not known and
    left out. On more than BOOTSTRAP_ROWS rows the interval of rows is the normal one, which then is the same.
    """
    by_seed: dict[int, list[float]] = {}
    clicks: Floats | float = 0.0
    others: Floats | float = 0.0
    drawn: Floats | float = 0.0
    number = 0
    for (seed, first, second), weight in zip(pairs, weights, strict=False):
        number += 1
        by_seed.setdefault(seed, []).append(weight * (second.auc - first.auc))
        clicks = clicks + weight * (second.components[0] - first.components[0])
        others = others + weight * (second.components[1] - first.components[1])
        if len(first.labels_R) <= BOOTSTRAP_ROWS:
            drawn = drawn + weight * (second.bootstrap_auc_K - first.bootstrap_auc_K)
    variance = sum(variance_of_mean(np.asarray(one) / number) for one in (clicks, others))
    differences_S = np.array([np.mean(values) for values in by_seed.values()])
    if isinstance(drawn, float):
        return _compared(differences_S, variance, *_normal_interval(float(differences_S.mean()), variance))
    low, high = np.nanquantile(drawn / number, [SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2])
    return _compared(differences_S, variance, float(low), float(high))


def compare_logloss(pairs: Pairs, weights: Iterable[float] = repeat(1.0)) -> Compared:
    """Mean logloss of two arms, as `compare_auc`; a mean of as many rows is normal enough for no bootstrap."""
    by_seed: dict[int, list[float]] = {}
    losses: Floats | float = 0.0
    number = 0
    for (seed, first, second), weight in zip(pairs, weights, strict=False):
        number += 1
        difference_R = weight * (second.losses_R - first.losses_R)
        by_seed.setdefault(seed, []).append(float(difference_R.mean()))
        losses = losses + difference_R
    variance = variance_of_mean(np.asarray(losses) / number)
    differences_S = np.array([np.mean(values) for values in by_seed.values()])
    return _compared(differences_S, variance, *_normal_interval(float(differences_S.mean()), variance))


def slope_weights(rows: Sequence[int]) -> list[float]:
    """What each part's difference counts in the slope of the least-squares line over log10 of its rows, times the
    number of parts: `compare_auc` of the pairs of all parts, so weighted, is the growth for ten times the rows."""
    x_K = np.log10(np.asarray(rows, dtype=np.float64))
    centred_K = x_K - x_K.mean()
    return [float(value) for value in len(x_K) * centred_K / (centred_K**2).sum()]


def compare_values(first: Sequence[float], second: Sequence[float]) -> Compared | None:
    """A figure with one value a run, by the paired t-test over seeds; None for fewer than two seeds."""
    differences_S = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    return _compared(differences_S, 0.0, None, None) if len(differences_S) > 1 else None


def _normal_interval(mean: float, variance: float) -> tuple[float, float]:
    half = _quantile(math.inf) * math.sqrt(variance)
    return mean - half, mean + half


def _compared(differences_S: Floats, rows_variance: float, low: float | None, high: float | None) -> Compared:
    mean, seeds = float(differences_S.mean()), len(differences_S)
    seeds_variance = variance_of_mean(differences_S)
    variance = rows_variance + seeds_variance
    # Satterthwaite: seeds are few, rows many.
    freedom = math.inf if seeds_variance == 0 else (seeds - 1) * (variance / seeds_variance) ** 2
    half = _quantile(freedom) * math.sqrt(variance)
    return Compared(
        difference=mean,
        low=mean - half,
        high=mean + half,
        p=_two_sided(mean, variance, freedom),
        seeds=seeds,
        seed_std=float(differences_S.std(ddof=1)) if seeds > 1 else None,
        rows_low=low,
        rows_high=high,
        rows_p=None if low is None else _two_sided(mean, rows_variance, math.inf),
    )


def _quantile(freedom: float) -> float:
    probability = 1 - SIGNIFICANCE / 2
    return float(stats.norm.ppf(probability) if math.isinf(freedom) else stats.t.ppf(probability, freedom))


def _two_sided(mean: float, variance: float, freedom: float) -> float:
    if variance == 0:
        return float(mean == 0)
    statistic = abs(mean) / math.sqrt(variance)
    return float(2 * (stats.norm.sf(statistic) if math.isinf(freedom) else stats.t.sf(statistic, freedom)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm (1979): below 0.05 in any place with chance 0.05 at most, if nothing differs at all."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(order)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def trend(points: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float, float] | None:
    """Spearman's rank correlation of (x, y) over arms, each at its mean over seeds, with a 95 % interval.

    `points[arm][seed]`; the interval is that of BOOTSTRAP_DRAWS samples of seeds, all arms together. None for fewer
    than three arms, or arms that do not differ.
    """
    array_ASX = np.asarray(points, dtype=np.float64)
    if len(array_ASX) < 3:
        return None
    value = _spearman(array_ASX.mean(axis=1))
    if math.isnan(value):
        return None
    random = np.random.default_rng(BOOTSTRAP_SEED)
    seeds = array_ASX.shape[1]
    drawn_K = [_spearman(array_ASX[:, random.integers(0, seeds, seeds)].mean(axis=1)) for _ in range(BOOTSTRAP_DRAWS)]
    low, high = np.nanquantile(drawn_K, [SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2])
    return value, float(low), float(high)


def _spearman(points_AX: Floats) -> float:
    ranks = stats.rankdata(points_AX, axis=0)
    if (ranks.std(axis=0) == 0).any():
        return math.nan
    correlations: Floats = np.atleast_2d(np.corrcoef(ranks.T))
    return float(correlations[0, 1])
