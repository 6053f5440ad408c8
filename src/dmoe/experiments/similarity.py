"""How alike experts are, beyond CEC and CKA: errors in common, and the collapse of tables.

Shape suffixes: N rows, D width, V table rows.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dmoe.metrics.scores import probability_of

Floats = NDArray[np.float64]


def information_abundance(table_VD: Floats, weights_V: Floats | None = None) -> float | None:
    """Σ_k σ_k / max_k σ_k of the table's singular values, 1 (one direction) to D (all alike); None for a zero table.

    Guo et al., "On the Embedding Collapse when Scaling up Recommendation Models" (ICML 2024). With `weights_V` each row
    counts as often as given, so that rows which training never reached do not hide a collapse.
    """
    weighted_VD = table_VD if weights_V is None else table_VD * weights_V[:, None]
    eigenvalues = np.linalg.eigvalsh(weighted_VD.T @ table_VD)
    singular = np.sqrt(np.maximum(eigenvalues, 0.0))
    return float(singular.sum() / singular.max()) if singular.max() > 0 else None


def error_correlation(labels_N: NDArray[np.bool_], alone: Sequence[Floats]) -> float | None:
    """Mean over pairs of experts of the correlation of their errors y - p, from the logits of each expert alone.

    None if an expert's error is constant.
    """
    errors = np.stack([labels_N - probability_of(logits_N) for logits_N in alone])
    if (errors.std(axis=1) == 0).any():
        return None
    matrix: Floats = np.atleast_2d(np.corrcoef(errors))
    return float(matrix[np.triu_indices(len(alone), 1)].mean())
