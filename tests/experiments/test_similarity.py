"""Information abundance against an SVD, errors against numpy."""

import numpy as np
import pytest

from dmoe.experiments.similarity import error_correlation, information_abundance


def test_information_abundance_is_that_of_the_singular_values() -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(50, 4)) * [1.0, 0.5, 0.1, 0.01]
    singular = np.linalg.svd(table, compute_uv=False)
    assert information_abundance(table) == pytest.approx(singular.sum() / singular[0])
    assert information_abundance(np.eye(4)) == pytest.approx(4.0)
    assert information_abundance(np.outer(np.arange(5.0), np.ones(4))) == pytest.approx(1.0, abs=1e-6)
    assert information_abundance(np.zeros((5, 4))) is None


def test_weights_count_rows_as_often_as_they_come() -> None:
    random = np.random.default_rng(3)
    table, counts = random.normal(size=(6, 3)), np.array([1, 4, 0, 2, 7, 1])
    assert information_abundance(table, counts.astype(float)) == pytest.approx(
        information_abundance(np.repeat(table, counts, axis=0))
    )


def test_error_correlation_is_the_mean_over_pairs() -> None:
    random = np.random.default_rng(0)
    labels = random.random(500) < 0.3
    logits = [random.normal(size=500) for _ in range(3)]
    errors = [labels - 1 / (1 + np.exp(-one)) for one in logits]
    pairs = [np.corrcoef(errors[p], errors[q])[0, 1] for p, q in ((0, 1), (0, 2), (1, 2))]
    assert error_correlation(labels, logits) == pytest.approx(np.mean(pairs))
    assert error_correlation(labels, [logits[0], logits[0]]) == pytest.approx(1.0)
