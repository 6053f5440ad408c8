"""The map from logits to calibrated ones: its algebra, and its fits against closed forms and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from dmoe.metrics.scores import auc, calibration, logloss
from dmoe.nn.calibration import KNOTS, LogitMap
from dmoe.training.calibrate import KINDS, Fit, choose, fit, latest


def drawn(rows: int, slope: float, bias: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clicks of true logits t, and a model's logits z with t = slope · z + bias."""
    draw = np.random.default_rng(seed)
    logits_R = draw.normal(-1.5, 1.5, rows)
    labels_R = draw.random(rows) < 1 / (1 + np.exp(-(slope * logits_R + bias)))
    return labels_R.astype(np.int64), logits_R


@settings(max_examples=50)
@given(
    bias=st.floats(-3, 3),
    slope=st.floats(0.1, 5),
    knots=st.lists(st.floats(-5, 5), max_size=6, unique=True),
    data=st.data(),
)
def test_the_map_is_a_rising_line_with_bends(
    bias: float, slope: float, knots: list[float], data: st.DataObject
) -> None:
    slopes = [slope, *data.draw(st.lists(st.floats(0.05, 5), min_size=len(knots), max_size=len(knots)))]
    knots = sorted(knots)
    bends = np.diff(slopes).tolist()
    found = LogitMap()
    found.set(bias, slope, knots, bends)
    points = np.linspace(-8, 8, 101)
    want = []
    for point in points:  # walk from the left along each straight piece
        value, at = bias + slope * min(point, knots[0] if knots else point), knots[0] if knots else point
        for index, knot in enumerate(knots):
            end = knots[index + 1] if index + 1 < len(knots) else np.inf
            if point > knot:
                value += slopes[index + 1] * (min(point, end) - knot)
        assert at is not None
        want.append(value)
    got = found(torch.tensor(points)).numpy()
    np.testing.assert_allclose(got, want, atol=1e-9)
    np.testing.assert_allclose(Fit("isotonic", bias, slope, tuple(knots), tuple(bends))(points), want, atol=1e-9)
    assert (np.diff(got) > 0).all()


def test_a_new_map_changes_no_bit() -> None:
    logits = torch.randn(1000) * 20
    assert torch.equal(LogitMap()(logits), logits)
    assert torch.equal(LogitMap().served(logits), logits)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.0, -1.0), "must rise"),
        ((0.0, 1.0, [0.0], [-1.5]), "must rise"),
        ((0.0, 1.0, [0.0], []), "each with a bend"),
        ((0.0, 1.0, [0.0] * (KNOTS + 1), [0.0] * (KNOTS + 1)), "up to"),
    ],
)
def test_a_map_that_falls_is_refused(arguments: tuple, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LogitMap().set(*arguments)


@pytest.mark.parametrize(("kind", "slope", "bias"), [("temperature", 0.5, 0.0), ("platt", 0.6, -0.8)])
def test_temperature_and_platt_are_maximum_likelihood(kind: str, slope: float, bias: float) -> None:
    labels_R, logits_R = drawn(50_000, slope, bias)
    found = fit(kind, labels_R, logits_R)  # type: ignore[arg-type]

    def loss(numbers: np.ndarray) -> float:
        return logloss(labels_R, numbers[0] * logits_R + (numbers[1] if kind == "platt" else 0.0))

    want = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).x
    assert found.slope == pytest.approx(want[0], abs=1e-3)
    assert found.slope == pytest.approx(slope, abs=0.03)
    if kind == "platt":
        assert found.bias == pytest.approx(want[1], abs=1e-3)


def test_isotonic_is_near_scikit_learns_and_keeps_the_order() -> None:
    labels_R, logits_R = drawn(40_000, 1.0, 0.0, seed=3)
    bent_R = np.where(
        logits_R > -1, 3 * logits_R + 2, 0.4 * logits_R - 0.6
    )  # rises; its inverse is what is to be found
    found = fit("isotonic", labels_R, bent_R)
    mapped_R = found(bent_R)
    rates_R = 1 / (1 + np.exp(-mapped_R))
    peer_R = IsotonicRegression(out_of_bounds="clip").fit_transform(bent_R, labels_R)
    assert np.abs(rates_R - peer_R).mean() < 0.02
    assert np.abs(mapped_R - logits_R).mean() < 0.15, "the planted map was not found"
    assert auc(labels_R, mapped_R) == pytest.approx(auc(labels_R, bent_R), abs=1e-12)
    assert calibration(labels_R, rates_R).expected_calibration_error < 0.01
    LogitMap().set(found.bias, found.slope, found.knots, found.bends)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        (np.ones(10, int), np.arange(10.0)),
        (np.array([0, 1] * 5), np.zeros(10)),
        (np.array([0, 1]), np.array([-1.0, 1.0])),
        (np.array([1, 0] * 50), np.arange(100.0)),
    ],
)
def test_rows_that_cannot_say_give_a_map_that_can_be_set(kind: str, labels: np.ndarray, logits: np.ndarray) -> None:
    found = fit(kind, labels, logits)  # type: ignore[arg-type]
    LogitMap().set(found.bias, found.slope, found.knots, found.bends)
    assert np.isfinite(found(logits)).all()


def test_auto_takes_the_simplest_that_is_right() -> None:
    assert choose(*drawn(20_000, 1.0, 0.0)) == "none"
    assert choose(*drawn(20_000, 0.5, 0.0)) in ("temperature", "platt")
    assert choose(*drawn(20_000, 1.0, -1.0)) == "platt"
    labels_R, logits_R = drawn(40_000, 1.0, 0.0, seed=3)
    assert choose(labels_R, np.where(logits_R > -1, 8 * logits_R + 7, 0.1 * logits_R - 0.9)) == "isotonic"


@pytest.mark.parametrize(("drop", "want"), [(0.0, 1.0), (2.0, 0.25)])
def test_auto_fits_on_the_latest_rows_where_they_foretell_better(drop: float, want: float) -> None:
    """A click rate that falls half way makes old rows mislead; rows of one kind keep all."""
    draw = np.random.default_rng(3)
    logits_R = draw.normal(size=20_000)
    shift_R = -drop * np.linspace(0, 1, len(logits_R))
    labels_R = (draw.random(len(logits_R)) < 1 / (1 + np.exp(-logits_R - shift_R))).astype(int)
    kind, rows = latest("platt", labels_R, logits_R)
    assert (kind, rows) == ("platt", want * len(labels_R))
    assert latest("platt", labels_R[:9999], logits_R[:9999]) == ("platt", 9999)
    mixed_R = draw.permutation(len(labels_R))
    assert latest("platt", labels_R[mixed_R], logits_R[mixed_R]) == ("platt", len(labels_R))
    later_R = draw.normal(size=100_000)
    clicks = (1 / (1 + np.exp(-later_R + drop))).sum()
    off = [
        abs((1 / (1 + np.exp(-fit("platt", labels_R[-count:], logits_R[-count:])(later_R)))).sum() / clicks - 1)
        for count in (rows, len(labels_R))
    ]
    assert off[0] < 0.5 * off[1] or drop == 0


def test_a_map_of_the_latest_rows_where_none_is_worth_it_on_all() -> None:
    """The level is right in the mean of all rows and too high in the later half; mixed up, nothing is to be mended."""
    draw = np.random.default_rng(5)
    logits_R = draw.normal(size=20_000)
    shift_R = np.where(np.arange(len(logits_R)) < 10_000, 0.6, -0.6)
    labels_R = (draw.random(len(logits_R)) < 1 / (1 + np.exp(-logits_R - shift_R))).astype(int)
    assert choose(labels_R, logits_R) == "none"
    kind, rows = latest("none", labels_R, logits_R)
    assert (kind, rows) == ("platt", 5000)
    assert fit(kind, labels_R[-rows:], logits_R[-rows:]).bias == pytest.approx(-0.6, abs=0.1)
    mixed_R = draw.permutation(len(labels_R))
    assert latest("none", labels_R[mixed_R], logits_R[mixed_R]) == ("none", len(labels_R))
