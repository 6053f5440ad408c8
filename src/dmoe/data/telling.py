"""How much a field says about the label, and how far two distributions are apart.

N rows, V distinct values of a field.
"""

import numpy as np
import numpy.typing as npt

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
