"""How much a field says about the label, and how far two distributions are apart.

N rows, V distinct values of a field.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

Floats = npt.NDArray[np.float64]
RARE_ROWS = 10

Integers = npt.NDArray[np.int64]


def mutual_information(counts_V: Integers, positives_V: Integers) -> float:
    """Bits that knowing the value saves in telling the label: at most the label's entropy, 0 for independence.

    `counts_V` are the rows of each value, `positives_V` those of label 1. Values with fewer than `RARE_ROWS`
    rows count as one: each would seem to know its own label. Corrected for the chance agreement of the others:
    (values - 1) / (2 rows) nats less (Miller and Madow 1955), and not below 0.
    """
    rows = int(counts_V.sum())
    if not rows:
        return 0.0
    often = counts_V >= RARE_ROWS
    counts = np.append(counts_V[often], counts_V[~often].sum())
    positives = np.append(positives_V[often], positives_V[~often].sum())
    counts, positives = counts[counts > 0], positives[counts > 0]
    gain = _entropy(np.array([positives.sum()]), np.array([rows])) - _entropy(positives, counts)
    return float(max(gain - (len(counts) - 1) / (2 * rows) / np.log(2), 0.0))


def _entropy(positives: Integers, counts: Integers) -> float:
    """Mean entropy of the label over the rows, in bits."""
    rate = positives / counts
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -np.nan_to_num(rate * np.log2(rate)) - np.nan_to_num((1 - rate) * np.log2(1 - rate))
    return float((bits * counts).sum() / counts.sum())


def jensen_shannon(first_V: Integers, second_V: Integers) -> float:
    """Jensen–Shannon divergence of two tables of counts, in bits: 0 if their shares are equal, at most 1."""
    if not first_V.sum() or not second_V.sum():
        return 0.0
    p, q = first_V / first_V.sum(), second_V / second_V.sum()
    return max((_divergence(p, (p + q) / 2) + _divergence(q, (p + q) / 2)) / 2, 0.0)


def _divergence(p: Floats, middle: Floats) -> float:
    used = p > 0
    return float((p[used] * np.log2(p[used] / middle[used])).sum())


def chance_divergence(first_V: Integers, second_V: Integers) -> float:
    """The mean of `jensen_shannon` over all ways to deal these values out to two tables of the same sizes, in bits.

    Exact: the count of a value in the first table is hypergeometric, also where counts are small and the
    asymptotic (values - 1) (1/n + 1/m) / 8 nats would pass the most that a divergence can be.
    """
    n, m = int(first_V.sum()), int(second_V.sum())
    if not n or not m:
        return 0.0
    counts, times = np.unique(first_V + second_V, return_counts=True)
    return float(sum(_mean_term(int(c), n, m) * t for c, t in zip(counts, times, strict=True) if c))


def _mean_term(count: int, n: int, m: int) -> float:
    """What a value with `count` of n + m draws adds to the divergence, on average."""
    mean = count * n / (n + m)
    # Beyond ten standard deviations nothing is left that a float could hold.
    reach = 10 * np.sqrt(mean * m / (n + m)) + 20
    low, high = max(0, count - m, int(mean - reach)), min(count, n, int(mean + reach) + 1)
    k = np.arange(low, high + 1, dtype=np.float64)
    log_odds = -gammaln(k + 1) - gammaln(n - k + 1) - gammaln(count - k + 1) - gammaln(m - count + k + 1)
    chances = np.exp(log_odds - log_odds.max())
    p, q = k / n, (count - k) / m
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.nan_to_num(p * np.log2(2 * p / (p + q))) + np.nan_to_num(q * np.log2(2 * q / (p + q)))
    return float((terms * chances).sum() / chances.sum() / 2)
