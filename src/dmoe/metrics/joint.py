"""What labels of a chain, each given the one before, say together.

Shape suffixes: R rows, K links of the chain.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def joint_labels(positive_RK: Mask, known_RK: Mask) -> tuple[Mask, Mask]:
    """Of each row (R,): whether all links are 1, and whether that is known: one is known to be 0, or all to be 1."""
    all_R: Mask = np.all(positive_RK & known_RK, axis=1)
    known_R: Mask = all_R | np.any(~positive_RK & known_RK, axis=1)
    return all_R, known_R


def joint_logits(logits: Sequence[Floats]) -> Floats:
    """The logit (R,) of `Π_k σ(a_k)`, from those of K links."""
    log_p_R = -np.sum([np.logaddexp(0.0, -logits_R) for logits_R in logits], axis=0)
    # ln(1 - p) = ln Σ_k (1 - σ(a_k)) Π_{j<k} σ(a_j): a sum of what is not negative keeps its digits.
    before_R = np.zeros_like(log_p_R)
    log_not_R = np.full_like(log_p_R, -np.inf)
    for logits_R in logits:
        log_not_R = np.logaddexp(log_not_R, before_R - np.logaddexp(0.0, logits_R))
        before_R = before_R - np.logaddexp(0.0, -logits_R)
    joint_R: Floats = log_p_R - log_not_R
    return joint_R
