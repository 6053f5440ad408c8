"""Score drift against the formula written again, and at known points."""

import math

import numpy as np
import pytest

from dmoe.export.manifest import ScoreBin
from dmoe.schema import NumericField, Schema
from dmoe.serving.metrics import Metrics, ScoreDrift
from dmoe.tokens.unseen import ValueCounts

REFERENCE = [ScoreBin(upper=0.1, share=0.5), ScoreBin(upper=0.3, share=0.3), ScoreBin(upper=1.0, share=0.2)]

NONE = ValueCounts(Schema(label="y", fields=(NumericField(name="price"),)))


def test_scores_fall_into_their_bins() -> None:
    drift = ScoreDrift(REFERENCE)
    assert math.isnan(drift.stability_index())
    drift.add(np.array([[0.0], [0.1], [0.1001], [0.3], [0.9], [1.0]], np.float32))
    # 0.1 in float32 lies just above the bound in float64.
    assert drift.bins() == [(0.1, 1), (0.3, 2), (1.0, 3)]


def test_the_index_is_the_formula() -> None:
    drift = ScoreDrift(REFERENCE)
    counts = [40, 35, 25]
    for score, count in zip((0.05, 0.2, 0.7), counts, strict=True):
        drift.add(np.full((count, 1), score, np.float32))
    shares = [(count + 0.5) / 101.5 for count in counts]
    expected = sum((a - one.share) * math.log(a / one.share) for a, one in zip(shares, REFERENCE, strict=True))
    assert drift.stability_index() == pytest.approx(expected)
    same, other = ScoreDrift(REFERENCE), ScoreDrift(REFERENCE)
    for score, count in zip((0.05, 0.2, 0.7), (50_000, 30_000, 20_000), strict=True):
        same.add(np.full((count, 1), score, np.float32))
    other.add(np.full((1000, 1), 0.9, np.float32))
    assert same.stability_index() < 1e-6
    assert other.stability_index() > 0.25


def test_only_the_present_version_is_shown() -> None:
    metrics = Metrics()
    metrics.render("first", ScoreDrift(REFERENCE), NONE)
    text = metrics.render("second", ScoreDrift(REFERENCE), NONE).decode()
    assert "first" not in text
    assert 'dmoe_model_info{version="second"} 1.0' in text
    assert 'dmoe_scores{upper="0.3",version="second"} 0.0' in text
