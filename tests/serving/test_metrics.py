"""Score drift against the formula written again, and at known points."""

import math

import numpy as np
import pytest

from dmoe.export.manifest import ScoreBin
from dmoe.schema import NumericField, Schema
from dmoe.serving.metrics import Drift, Metrics, ScoreDrift
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
    one = Drift({"probability": REFERENCE})
    metrics.render("first", one, NONE)
    text = metrics.render("second", one, NONE).decode()
    assert "first" not in text
    assert 'dmoe_model_info{version="second"} 1.0' in text
    assert 'dmoe_scores{upper="0.3",version="second"} 0.0' in text
    assert "dmoe_output" not in text


def test_each_probability_of_several_labels_has_a_mean_and_its_own_drift() -> None:
    drift = Drift({"probability.click": REFERENCE, "probability.watch": REFERENCE})
    drift.add({"probability.watch": np.array([[0.2], [0.6]], np.float32), "gate_weights.click": np.ones((2, 3))})
    metrics = Metrics()
    text = metrics.render("v", drift, NONE).decode()
    assert 'dmoe_output_mean{output="probability.watch",version="v"} 0.4' in text
    assert 'dmoe_output_mean{output="probability.click",version="v"} NaN' in text
    assert 'dmoe_output_scores{output="probability.watch",upper="1",version="v"} 1.0' in text
    index = drift.outputs["probability.watch"].stability_index()
    assert f'dmoe_output_stability_index{{output="probability.watch",version="v"}} {index}' in text
    # The main label's are also where those of a model of one label are; such a model, served next, shows no more.
    assert 'dmoe_scores{upper="1",version="v"} 0.0' in text
    assert "dmoe_output_mean{" not in metrics.render("w", Drift({"probability": REFERENCE}), NONE).decode()
