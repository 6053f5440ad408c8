"""CKA against the N×N formula, information abundance against an SVD, errors against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.experiments.similarity import LinearCKA, error_correlation, information_abundance


def naive_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. (JMLR 2012), eq. 5, with the kernel matrices written out."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    trace = np.trace(k @ l)
    return (trace + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)) / (
        n * (n - 3)
    )


def naive_cka(x: np.ndarray, y: np.ndarray) -> float:
    return naive_hsic(x, y) / np.sqrt(naive_hsic(x, x) * naive_hsic(y, y))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(5, 40), shift=st.sampled_from([0.0, 3.0, 1000.0]))
def test_cka_equals_the_kernel_formula_whatever_the_batches(seed: int, rows: int, shift: float) -> None:
    random = np.random.default_rng(seed)
    common = random.normal(size=(rows, 2))
    outputs = [random.normal(size=(rows, width)) + shift for width in (3, 4, 2)]
    outputs[1][:, :2] += 2 * common
    outputs[2] += common
    metric = LinearCKA(3)
    cut = int(random.integers(0, rows))
    for part in (slice(0, cut), slice(cut, rows)):
        metric.update([torch.from_numpy(one[part]) for one in outputs])
    matrix = metric.compute()
    for q in range(3):
        for p in range(q):
            # The kernel matrices lose digits with the shift; the origin that the metric takes does not.
            expected = naive_cka(outputs[p] - shift, outputs[q] - shift)
            assert matrix[q][p] == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_cka_knows_equal_rotated_and_independent_experts() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(4000, 5))
    rotation = np.linalg.qr(random.normal(size=(5, 5)))[0]
    metric = LinearCKA(3)
    metric.update([torch.from_numpy(one) for one in (x, 7 * x @ rotation, random.normal(size=(4000, 5)))])
    matrix = metric.compute()
    assert matrix[1][0] == pytest.approx(1.0, abs=1e-9)
    assert abs(matrix[2][0]) < 0.01


def test_cka_of_a_constant_expert_is_undefined() -> None:
    metric = LinearCKA(2)
    metric.update([torch.ones(10, 3), torch.randn(10, 3)])
    assert metric.compute()[1][0] is None
    with pytest.raises(ValueError, match="four rows"):
        LinearCKA(2).compute()
    with pytest.raises(ValueError, match="outputs of 2 experts"):
        metric.update([torch.ones(1, 3)])


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
