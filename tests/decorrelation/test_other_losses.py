"""Losses and measures beside the paper's own: against loops, and where their values are known."""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmoe.config.run import DecorrelationConfig
from dmoe.decorrelation import BarlowTwinsLoss, CorrLoss, CovLoss, LinearCKA, VICRegLoss, moments
from dmoe.nn.build import build_terms
from dmoe.nn.experts import expert_class
from dmoe.nn.model import DMoE


def outputs_of(rows: int, widths: Sequence[int]) -> list[Tensor]:
    common = torch.randn(rows, 1, dtype=torch.float64)
    return [torch.randn(rows, width, dtype=torch.float64) * 0.6 + common * (m + 1) for m, width in enumerate(widths)]


def value_and_gradients(loss: Callable[[Sequence[Tensor]], Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [output.detach().clone().requires_grad_() for output in outputs]
    value = loss(leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def covariance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    return sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / (len(a) - 1)


def columns(output: Tensor) -> list[list[Tensor]]:
    return [[output[i, j] for i in range(len(output))] for j in range(output.shape[1])]


def naive_barlow(outputs: Sequence[Tensor]) -> Tensor:
    """Mean r² of each pair, times B - 1; each variance with its share of the expert's mean."""
    total = torch.zeros((), dtype=torch.float64)
    for x, y in itertools.combinations(outputs, 2):
        scales = []
        for output in (x, y):
            variances = [covariance(column, column) for column in columns(output)]
            floor = 1e-6 * sum(variances) / len(variances)
            scales.append([torch.sqrt(variance + floor) for variance in variances])
        squares = [
            (covariance(a, b) / scales[0][i] / scales[1][j]) ** 2
            for i, a in enumerate(columns(x))
            for j, b in enumerate(columns(y))
        ]
        total = total + sum(squares) / len(squares)
    return total * (len(outputs[0]) - 1)


def naive_vicreg(outputs: Sequence[Tensor], weight: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x, y in itertools.combinations(outputs, 2):
        squares = [covariance(a, b) ** 2 for a in columns(x) for b in columns(y)]
        total = total + sum(squares) / len(squares)
    for output in outputs:
        hinges = [torch.relu(1 - torch.sqrt(covariance(c, c) + 1e-4)) for c in columns(output)]
        total = total + weight * sum(hinges) / len(hinges)
    return total * (len(outputs[0]) - 1)


# Rows below the widths take the B×B products, the others the moments.
@pytest.mark.parametrize("rows", [4, 13])
@pytest.mark.parametrize("widths", [(5, 5), (6, 3), (4, 5, 7)])
@pytest.mark.parametrize(
    ("loss", "naive"),
    [
        (BarlowTwinsLoss(), naive_barlow),
        (VICRegLoss(), lambda outputs: naive_vicreg(outputs, 1.0)),
        (VICRegLoss(variance_weight=0.3), lambda outputs: naive_vicreg(outputs, 0.3)),
    ],
    ids=["barlow-twins", "vicreg", "vicreg-0.3"],
)
def test_value_and_gradient_equal_loops(
    loss: Callable[[Sequence[Tensor]], Tensor],
    naive: Callable[[Sequence[Tensor]], Tensor],
    widths: tuple[int, ...],
    rows: int,
) -> None:
    outputs = outputs_of(rows, widths)
    found, expected = value_and_gradients(loss, outputs), value_and_gradients(naive, outputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    single = value_and_gradients(loss, [output.float() for output in outputs])
    for one, other in zip(single, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_barlow_is_the_square_of_the_dimension_free_correlation_loss() -> None:
    outputs = outputs_of(50, (6, 4))
    rms = CorrLoss(scale="dimension-free")(outputs) / 49
    torch.testing.assert_close(BarlowTwinsLoss()(outputs) / 49, rms.square())


def test_vicreg_does_not_fall_when_outputs_vanish() -> None:
    outputs = outputs_of(50, (6, 4))
    small = [1e-3 * output for output in outputs]
    assert VICRegLoss()(small) / 49 > 1.9  # the hinge of either expert nears 1
    assert VICRegLoss(variance_weight=0.0)(small) < 1e-9 * VICRegLoss(variance_weight=0.0)(outputs)


@pytest.mark.parametrize(("name", "value"), [("variance_weight", -1.0), ("eps", math.inf)])
def test_wrong_options_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"VICRegLoss.{name} must be finite and at least 0"):
        VICRegLoss(**{name: value})


@pytest.mark.parametrize("loss", [CorrLoss(), CorrLoss("spectral"), CovLoss("l1"), BarlowTwinsLoss(), VICRegLoss()])
@pytest.mark.parametrize("widths", [(3, 3, 3, 3), (2, 5, 4, 1, 6)])
def test_gradient_of_all_pairs_at_once_equals_that_of_each_pair(
    loss: Callable[[Sequence[Tensor]], Tensor], widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = outputs_of(40, widths)
    found = []
    for at_once in (False, True):
        monkeypatch.setattr(moments, "one_product_is_cheaper", lambda _, at_once=at_once: at_once)
        found.append(value_and_gradients(loss, outputs))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_many_narrow_experts_are_taken_at_once_and_few_wide_ones_in_pairs() -> None:
    assert moments.one_product_is_cheaper([16] * 16)
    assert not moments.one_product_is_cheaper([500] * 16)
    assert not moments.one_product_is_cheaper([4, 4])


def naive_cka(x: Tensor, y: Tensor, *, unbiased: bool) -> float:
    """From the N×N kernels, entry by entry, as Song et al. write it."""
    rows = len(x)

    def hsic(a: Tensor, b: Tensor) -> float:
        kernel = [[float(a[i] @ a[j]) for j in range(rows)] for i in range(rows)]
        other = [[float(b[i] @ b[j]) for j in range(rows)] for i in range(rows)]
        indices = range(rows)
        if not unbiased:
            centre = [[(i == j) - 1 / rows for j in indices] for i in indices]
            k, h, m = (torch.tensor(values, dtype=torch.float64) for values in (kernel, centre, other))
            return float(torch.trace(k @ h @ m @ h))
        for i in indices:
            kernel[i][i] = other[i][i] = 0.0
        trace = sum(kernel[i][j] * other[j][i] for i in indices for j in indices)
        totals = sum(map(sum, kernel)) * sum(map(sum, other)) / ((rows - 1) * (rows - 2))
        crossed = sum(kernel[i][j] * other[j][k] for i in indices for j in indices for k in indices)
        return (trace + totals - 2 * crossed / (rows - 2)) / (rows * (rows - 3))

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def cka(outputs: Sequence[Tensor], *, unbiased: bool, batch: int | None = None) -> Tensor:
    metric = LinearCKA(len(outputs), unbiased=unbiased)
    for rows in torch.arange(len(outputs[0])).split(batch or len(outputs[0])):
        metric.update([output[rows] for output in outputs])
    matrix = metric.compute().matrix
    return torch.tensor([[math.nan if value is None else value for value in row] for row in matrix])


@settings(max_examples=40)
@given(
    rows=st.integers(6, 12), widths=st.tuples(*[st.integers(1, 4)] * 3), batch=st.integers(1, 7),
    unbiased=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_cka_in_one_pass_equals_the_kernels(
    rows: int, widths: tuple[int, ...], batch: int, unbiased: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    outputs = [output + 10 for output in outputs_of(rows, widths)]
    found = cka(outputs, unbiased=unbiased, batch=batch)
    for p, q in itertools.combinations(range(3), 2):
        expected = naive_cka(outputs[p], outputs[q], unbiased=unbiased)
        assert float(found[q, p]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert math.isnan(found[p, q])


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_ignores_rotation_shift_and_scale(unbiased: bool) -> None:
    x, y = outputs_of(60, (5, 4))
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    plain = cka([x, y], unbiased=unbiased)[1, 0]
    torch.testing.assert_close(cka([7 * x @ rotation - 3, y], unbiased=unbiased)[1, 0], plain)
    assert float(cka([x, 2 * x @ rotation], unbiased=unbiased)[1, 0]) == pytest.approx(1.0)


def test_few_rows_raise_the_biased_cka_of_independent_experts_only() -> None:
    biased, unbiased = [], []
    for _ in range(30):
        outputs = [torch.randn(40, 60), torch.randn(40, 60)]
        biased.append(float(cka(outputs, unbiased=False)[1, 0]))
        unbiased.append(float(cka(outputs, unbiased=True)[1, 0]))
    assert sum(biased) / 30 > 0.5
    assert abs(sum(unbiased) / 30) < 0.02


def test_a_constant_expert_has_no_cka() -> None:
    for unbiased in (False, True):
        metric = LinearCKA(2, unbiased=unbiased)
        metric.update([torch.ones(20, 3), torch.randn(20, 3)])
        assert metric.compute().matrix == ((None, None), (None, None))


def test_cka_names_what_does_not_fit() -> None:
    metric = LinearCKA(2)
    with pytest.raises(ValueError, match="num_experts must be at least 2"):
        LinearCKA(1)
    with pytest.raises(ValueError, match="CKA needs at least 4 rows, got 0"):
        metric.compute()
    metric.update([torch.randn(3, 2), torch.randn(3, 2)])
    with pytest.raises(ValueError, match="CKA needs at least 4 rows, got 3"):
        metric.compute()
    with pytest.raises(ValueError, match="earlier batches had"):
        metric.update([torch.randn(3, 2), torch.randn(3, 5)])
    with pytest.raises(ValueError, match="not finite"):
        metric.update([torch.full((3, 2), math.nan), torch.randn(3, 2)])
    with pytest.raises(ValueError, match="outputs of 2 experts, got 3"):
        metric.update([torch.randn(3, 2)] * 3)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DecorrelationConfig(loss="barlow-twins"), BarlowTwinsLoss),
        (DecorrelationConfig(loss="vicreg", variance_weight=0.25), VICRegLoss),
    ],
)
def test_configured_losses_act_on_a_model(config: DecorrelationConfig, expected: type[CorrLoss | CovLoss]) -> None:
    model = DMoE([5, 7], experts=[expert_class("crossnet")(2, 16), expert_class("dnn")(2, 16)], expert_units=6)
    output = model(torch.randint(0, 5, (9, 2)))
    (term,) = build_terms([config], model)
    assert type(term.loss) is expected
    assert getattr(term.loss, "variance_weight", 0.25) == 0.25
    loss = expected() if expected is BarlowTwinsLoss else VICRegLoss(0.25)
    torch.testing.assert_close(term(output, 0), loss(output.expert_outputs) / 8)


@pytest.mark.parametrize("rows", [4, 30])
@pytest.mark.parametrize("loss", [BarlowTwinsLoss(), VICRegLoss()])
def test_dead_columns_and_tiny_outputs_keep_finite_gradients(
    loss: Callable[[Sequence[Tensor]], Tensor], rows: int
) -> None:
    outputs = [output.float() for output in outputs_of(rows, (6, 5))]
    dead = [output.clone() for output in outputs]
    dead[0][:, 2] = 0.7
    dead[1][:] = 0.0
    tiny = [output * 1e-12 for output in outputs]
    for outputs_given in (dead, tiny):
        assert all(torch.isfinite(one).all() for one in value_and_gradients(loss, outputs_given))
    assert float(BarlowTwinsLoss()(dead)) == 0.0
    torch.testing.assert_close(BarlowTwinsLoss()(tiny), BarlowTwinsLoss()(outputs), rtol=1e-4, atol=1e-6)
