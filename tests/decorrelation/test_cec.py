"""The cross-expert correlation metric against numpy, closed forms and its own sampling floor."""

import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dmoe.decorrelation import (
    CorrLoss,
    CrossExpertCorrelation,
    ExpertCorrelation,
    cross_expert_correlation,
    noise_floor,
)


def naive_pair(x: Tensor, y: Tensor) -> tuple[float, float]:
    """(mean |r|, rms r) from numpy's corrcoef."""
    stacked = np.corrcoef(torch.cat([x, y], 1).double().numpy(), rowvar=False)
    r = stacked[: x.shape[1], x.shape[1] :]
    return float(np.abs(r).mean()), float(np.sqrt((r**2).mean()))


def measure(batches: list[list[Tensor]]) -> ExpertCorrelation:
    metric = CrossExpertCorrelation(len(batches[0]))
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def assert_same(a: ExpertCorrelation, b: ExpertCorrelation, tolerance: float = 1e-9) -> None:
    assert (a.rows, a.columns, a.dead_columns, a.noise_floor) == (b.rows, b.columns, b.dead_columns, b.noise_floor)
    assert a.total == pytest.approx(b.total, abs=tolerance)
    for mine, theirs in ((a.matrix, b.matrix), (a.rms, b.rms)):
        for left, right in zip(sum(mine, ()), sum(theirs, ()), strict=True):
            assert (left is None) == (right is None)
            if left is not None:
                assert left == pytest.approx(right, abs=tolerance)


def test_matrix_total_and_rms_equal_numpy() -> None:
    common = torch.randn(5000, 1)
    outputs = [torch.relu(torch.randn(5000, width) + common) for width in (4, 7, 3)]
    result = measure([outputs])
    for q in range(3):
        for p in range(3):
            if p < q:
                mean, rms = naive_pair(outputs[p], outputs[q])
                assert result.matrix[q][p] == pytest.approx(mean, abs=1e-12)
                assert result.rms[q][p] == pytest.approx(rms, abs=1e-12)
            else:
                assert result.matrix[q][p] is None
                assert result.rms[q][p] is None
    expected = sum(naive_pair(outputs[p], outputs[q])[0] for p, q in ((0, 1), (0, 2), (1, 2)))
    assert result.total == pytest.approx(expected, abs=1e-12)
    assert (result.rows, result.columns, result.dead_columns) == (5000, (4, 7, 3), (0, 0, 0))
    assert result.total_noise_floor == pytest.approx(3 * result.noise_floor)


def test_a_million_independent_rows_show_the_noise_floor() -> None:
    rows, width = 1_000_000, 40
    generator = torch.Generator().manual_seed(1)
    metric = CrossExpertCorrelation(2)
    first = [torch.randn(rows // 100, width, generator=generator) for _ in range(2)]
    metric.update(first)
    assert metric.compute().matrix[1][0] == pytest.approx(naive_pair(*first)[0], abs=1e-12)
    for _ in range(99):
        metric.update([torch.randn(rows // 100, width, generator=generator) for _ in range(2)])
    result = metric.compute()
    assert result.rows == rows
    assert result.noise_floor == pytest.approx(math.sqrt(2 / (math.pi * rows)), rel=1e-5)
    assert result.matrix[1][0] == pytest.approx(result.noise_floor, rel=0.05)


@pytest.mark.parametrize("rows", [2, 3, 10, 100])
def test_noise_floor_is_the_mean_of_simulated_correlations(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, y = (torch.randn(200_000, rows, generator=generator, dtype=torch.float64) for _ in range(2))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    r = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
    assert r.abs().mean().item() == pytest.approx(noise_floor(rows), rel=0.01)


def test_noise_floor_of_the_papers_batch() -> None:
    assert noise_floor(2) == pytest.approx(1.0)
    assert noise_floor(10_000) == pytest.approx(0.0080, abs=5e-5)
    assert noise_floor(4_040_000) == pytest.approx(0.00040, abs=5e-6)
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        noise_floor(1)


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(2, 300),
    cuts=st.lists(st.integers(0, 300), max_size=6),
    mean=st.sampled_from([0.0, 1.0, 1e6]),
    block=st.sampled_from([1, 2, 7, 64, 2048]),
)
def test_batches_order_and_merging_change_nothing(
    seed: int, rows: int, cuts: list[int], mean: float, block: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = [torch.randn(rows, width, generator=generator, dtype=torch.float64) + mean for width in (3, 1, 4)]
    outputs[1] = outputs[0][:, :1] + 0.5 * outputs[1]
    outputs[2][:, 0] = 0.1
    whole = measure([outputs])
    edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    parts = [[output[start:end] for output in outputs] for start, end in pairwise(edges)]
    assert measure(parts) == whole  # to the bit
    order = torch.randperm(rows, generator=generator)
    assert_same(measure([[output[order] for output in outputs]]), whole)

    merged = CrossExpertCorrelation(3)
    for part in parts:
        other = CrossExpertCorrelation(3)
        other.BLOCK_ROWS = block
        other.update(part)
        merged.merge(other)
    assert_same(merged.compute(), whole)
    for q, p in ((1, 0), (2, 1)):
        alive = outputs[q] if q == 1 else outputs[q][:, 1:]
        mean_r, rms = naive_pair(outputs[p], alive)
        assert whole.matrix[q][p] == pytest.approx(mean_r, abs=1e-7)
        assert whole.rms[q][p] == pytest.approx(rms, abs=1e-7)
    assert whole.dead_columns == (0, 0, 1)


def test_merge_leaves_the_other_alone_and_takes_more_rows() -> None:
    first, second = ([torch.randn(50, 3), torch.randn(50, 2)] for _ in range(2))
    a, b = CrossExpertCorrelation(2), CrossExpertCorrelation(2)
    a.update(first)
    b.update(second)
    before = b.compute()
    a.merge(b)
    assert b.compute() == before
    a.update(first)
    assert_same(a.compute(), measure([first, second, first]))
    empty = CrossExpertCorrelation(2)
    a.merge(empty)
    assert a.compute().rows == 150
    empty.merge(b)
    assert_same(empty.compute(), before)
    empty.update(first)
    assert_same(empty.compute(), measure([second, first]))


def test_large_mean_is_stable() -> None:
    noise = torch.randn(20_000, 6, dtype=torch.float64)
    x, y = noise[:, :3], noise[:, 3:] + noise[:, :3]
    expected = cross_expert_correlation(x, y)
    assert cross_expert_correlation(x + 1e6, y - 1e6) == pytest.approx(expected, abs=1e-9)
    # A mean that moves between batches: a fixed shift would lose digits here.
    drift = torch.arange(20_000, dtype=torch.float64)[:, None] * 100
    drifted = [x + drift, y - drift]
    assert cross_expert_correlation(*drifted) == pytest.approx(naive_pair(*drifted)[0], abs=1e-12)


def test_identical_and_flipped_experts() -> None:
    column = torch.randn(100, 1)
    copies = column * torch.tensor([1.0, 2.0, -3.0])
    for sign in (1, -1):
        result = measure([[copies, sign * copies]])
        assert result.matrix[1][0] == pytest.approx(1.0, abs=1e-12)
        assert result.rms[1][0] == pytest.approx(1.0, abs=1e-12)
    identity = torch.eye(4, dtype=torch.float64).repeat(5, 1)  # r = -1/3 between different columns
    result = measure([[identity, identity]])
    assert result.matrix[1][0] == pytest.approx((4 + 12 / 3) / 16)
    assert result.rms[1][0] == pytest.approx(math.sqrt((4 + 12 / 9) / 16))


def test_rms_is_what_the_loss_lowers() -> None:
    outputs = [torch.relu(torch.randn(500, 6, dtype=torch.float64)) for _ in range(2)]
    loss = CorrLoss(scale="dimension-free", eps=0)(outputs) / 499
    assert measure([outputs]).rms[1][0] == pytest.approx(loss.item(), abs=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1 / 3, 1e-30, 12345.678])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_columns_are_counted_and_left_out(constant: float, dtype: torch.dtype) -> None:
    rows = 7001
    x, y = torch.randn(rows, 5).to(dtype), torch.randn(rows, 4).to(dtype)
    alive = cross_expert_correlation(x, y)
    dead = torch.full((rows, 2), constant, dtype=dtype)
    batches = [[torch.cat([x, dead], 1)[i : i + 700], y[i : i + 700]] for i in range(0, rows, 700)]
    result = measure(batches)
    assert result.dead_columns == (2, 0)
    assert result.columns == (7, 4)
    assert result.matrix[1][0] == pytest.approx(alive, abs=1e-12)


def test_a_column_is_judged_over_all_rows() -> None:
    x, y = torch.zeros(10_000, 2), torch.randn(10_000, 2)
    x[9_999, 0] = 1e-6  # alive in one row of one block
    result = measure([[x, y]])
    assert result.dead_columns == (1, 0)
    assert result.matrix[1][0] == pytest.approx(naive_pair(x[:, :1], y)[0], abs=1e-12)
    # One unit in the last place of float32 around a large mean is signal; of float64, rounding.
    z = torch.full((4000, 1), 0.1)
    z[::2] = torch.nextafter(z[::2], torch.tensor(1.0))
    assert measure([[z, y[:4000]]]).dead_columns == (0, 0)
    z = torch.full((4000, 1), 0.1, dtype=torch.float64)
    z[::2] = torch.nextafter(z[::2], torch.tensor(1.0, dtype=torch.float64))
    assert measure([[z, y[:4000]]]).dead_columns == (1, 0)


def test_an_expert_of_dead_columns_only_has_no_correlation() -> None:
    result = measure([[torch.zeros(10, 3), torch.randn(10, 2), torch.randn(10, 2)]])
    assert result.matrix[1][0] is None
    assert result.matrix[2][0] is None
    assert result.matrix[2][1] is not None
    assert result.total == result.matrix[2][1]
    assert result.dead_columns == (3, 0, 0)
    assert json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))["matrix"][1] == [None] * 3
    with pytest.raises(ValueError, match="no column that varies"):
        cross_expert_correlation(torch.zeros(10, 3), torch.randn(10, 2))


def test_too_few_rows() -> None:
    metric = CrossExpertCorrelation(2)
    with pytest.raises(ValueError, match="at least two rows, got 0"):
        metric.compute()
    metric.update([torch.ones(0, 3), torch.ones(0, 3)])
    with pytest.raises(ValueError, match="at least two rows, got 0"):
        metric.compute()
    metric.update([torch.ones(1, 3), torch.ones(1, 3)])
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        metric.compute()
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        cross_expert_correlation(torch.ones(1, 3), torch.ones(1, 3))
    metric.update([torch.zeros(1, 3), torch.zeros(1, 3)])
    assert metric.compute().matrix[1][0] == pytest.approx(1.0)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(poison: float) -> None:
    x, y = torch.randn(30, 3), torch.randn(30, 3)
    y[17, 2] = poison
    metric = CrossExpertCorrelation(2)
    metric.update([x, y])
    with pytest.raises(ValueError, match="expert 1 gave an output that is not finite"):
        metric.compute()


def test_wrong_use_is_named() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="num_experts must be at least 2, got 1"):
        CrossExpertCorrelation(1)
    metric = CrossExpertCorrelation(2)
    with pytest.raises(ValueError, match="outputs of 2 experts, got 3"):
        metric.update([x, x, x])
    with pytest.raises(ValueError, match=r"outputs\[1\] has 3 rows"):
        metric.update([x, x[:3]])
    metric.update([x, x])
    with pytest.raises(ValueError, match=r"widths \[3, 2\]; earlier batches had \[3, 3\]"):
        metric.update([x, x[:, :2]])
    with pytest.raises(ValueError, match="cannot merge 3 experts into 2"):
        metric.merge(CrossExpertCorrelation(3))
    other = CrossExpertCorrelation(2)
    other.update([x, x[:, :2]])
    with pytest.raises(ValueError, match=r"widths \[3, 2\] into widths \[3, 3\]"):
        metric.merge(other)


def test_inference_mode_gradients_and_half_precision() -> None:
    x, y = torch.randn(40, 3), torch.randn(40, 3)
    metric = CrossExpertCorrelation(2)
    with torch.inference_mode():
        metric.update([x[:20] * 1, y[:20] * 1])
    metric.update([x[20:].requires_grad_(), y[20:]])
    assert_same(metric.compute(), measure([[x.detach(), y]]))
    half = measure([[x.detach().bfloat16(), y.bfloat16()]])
    assert half.matrix[1][0] == pytest.approx(naive_pair(x.detach().bfloat16(), y.bfloat16())[0], abs=1e-12)
