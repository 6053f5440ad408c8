"""The drawings: what they draw, checked on the SVG that comes out."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoe.report import figures
from dmoe.report.svg import drawing
from dmoe.runs.records import CalibrationBinRecord, CorrelationRecord

VALUES = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=700)


@given(VALUES)
def test_thinned_curve_keeps_the_mean_and_the_last_point(values: list[float | None]) -> None:
    x, y = figures.thinned(list(range(len(values))), values)
    kept = [(place, value) for place, value in enumerate(values) if value is not None]
    assert len(x) == len(y) <= figures.MAX_POINTS
    if kept:
        assert x[-1] == kept[-1][0]
        shown = [value for value in y if value is not None]
        assert min(v for _, v in kept) - 1e-6 <= min(shown)
        assert max(shown) <= max(v for _, v in kept) + 1e-6
    if 0 < len(kept) <= figures.MAX_POINTS:
        assert list(zip(x, y, strict=True)) == [(float(a), b) for a, b in kept]


def test_interval_of_the_click_rate_is_wilsons() -> None:
    # Wilson (1927) at 10 of 100, z = 1.96: roots of (p - q)² = z² q (1 - q) / n.
    low, high = figures._wilson(np.array([0.1]), np.array([100]))
    roots = np.sort(np.roots([1 + 1.96**2 / 100, -(2 * 0.1 + 1.96**2 / 100), 0.1**2]))
    assert [low[0], high[0]] == pytest.approx(roots.tolist(), rel=1e-9)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_interval_holds_the_rate_and_stays_a_probability(rows: int, share: float) -> None:
    rate = np.array([round(share * rows) / rows])
    low, high = figures._wilson(rate, np.array([rows]))
    assert 0 <= low[0] <= rate[0] <= high[0] <= 1


def test_heat_map_draws_the_lower_triangle_by_value() -> None:
    measured = CorrelationRecord(matrix=((None, None, None), (0.1, None, None), (0.2, 0.05, None)))
    with drawing():
        svg = figures.heat_map("k", "Output", measured, ["cin", "fm", "dnn"], 0.2)
    texts = [text.text for text in ElementTree.fromstring(svg).iter("text")]
    ticks_and_title = {"cin", "fm", "dnn", "Output"}
    assert [text for text in texts if text not in ticks_and_title] == ["0.1000", "0.2000", "0.0500"]
    opacities = [float(found) for found in re.findall(r"fill: var\(--heat\); opacity: ([\d.]+)", svg)]
    assert opacities == pytest.approx([figures.FULL_HEAT * part for part in (0.5, 1.0, 0.25)])
    assert 'aria-label="Cross-expert correlation, Output: fm and cin 0.1000, dnn and cin 0.2000' in svg


def test_no_colour_is_fixed_so_that_both_themes_are_legible() -> None:
    bins = [
        CalibrationBinRecord(low=0, high=0.1, rows=900, mean_predicted=0.05, click_rate=0.04),
        CalibrationBinRecord(low=0.1, high=1, rows=3, mean_predicted=0.3, click_rate=1.0),
        CalibrationBinRecord(low=0.9, high=1, rows=0),
    ]
    curve = figures.Curve(name="a $b$ run", slot=0, x=[1, 2, 3], y=[0.5, None, 0.7], best=2)
    with drawing():
        drawings = [
            figures.curves("c", "Validation AUC", "epoch", [curve, curve]),
            figures.calibration("b", "run", 1, bins),
            figures.expert_effects("e", "run", ["cin", "fm"], [-0.1, None], [-0.2, 0.01]),
            figures.heat_map("h", "Output", CorrelationRecord(matrix=((None, None), (None, None))), ["a", "b"], 0.0),
        ]
    for svg in drawings:
        assert svg is not None
        assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
        for element in ElementTree.fromstring(svg).iter("text"):
            assert "var(--" in element.get("style", "")
    assert "a $b$ run" in (drawings[0] or "")


def test_nothing_to_draw_is_no_drawing() -> None:
    with drawing():
        assert figures.curves("c", "t", "epoch", [figures.Curve(name="r", slot=0, x=[1], y=[None])]) is None
        assert figures.calibration("b", "run", 0, [CalibrationBinRecord(low=0, high=1, rows=0)]) is None
        assert figures.expert_effects("e", "run", ["a", "b"], [None, None], [None, None]) is None
