"""Every figure of an evaluation against a slow recomputation from the model's own outputs, row by row."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from dmoe.errors import DataError, UserError
from dmoe.evaluation.evaluate import correlate_run, evaluate_run
from dmoe.shards.reader import SplitReader
from dmoe.training.loop import train
from dmoe.weights.run import Run
from tests.small_runs import SIZES, small_config


@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory) -> Run:
    return train(small_config("training.epochs=2"), small_data, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def outputs(run, small_data):
    """The whole test split through the model in float64, in one batch."""
    (batch,) = SplitReader(small_data, "test", batch_size=10_000).batches()
    model = run.load_model().double()
    with torch.inference_mode():
        return model, batch, model(batch.ids_BC, batch.numeric_BN.double())


def test_auc_logloss_and_calibration(run, outputs):
    _, batch, output = outputs
    found = evaluate_run(run, splits=["test"])["test"]
    labels, probability = batch.labels_B.numpy(), torch.sigmoid(output.logit).numpy()
    assert found["auc"] == pytest.approx(roc_auc_score(labels, probability), abs=1e-4)
    assert found["logloss"] == pytest.approx(log_loss(labels, probability), abs=1e-6)
    assert (found["rows"], found["positives"]) == (300, int(labels.sum()))
    bins = found["calibration"]["bins"]
    assert sum(one["rows"] for one in bins) == 300
    assert sum(one["rows"] * one["click_rate"] for one in bins) == pytest.approx(labels.sum())
    assert sum(one["rows"] * one["mean_predicted"] for one in bins) == pytest.approx(probability.sum(), rel=1e-5)
    assert found["calibration"]["predicted_to_observed"] == pytest.approx(probability.sum() / labels.sum(), rel=1e-5)


def test_correlation_equals_numpy_over_the_live_columns(run, outputs):
    _, _, output = outputs
    found = evaluate_run(run, splits=["test"])["test"]["correlation"]
    for location, tensors in (("output", output.expert_outputs), ("pre-activation", output.pre_activations)):
        first, second = (tensor.numpy() for tensor in tensors)
        dead = [int((one.std(0) == 0).sum()) for one in (first, second)]
        alive_first, alive_second = first[:, first.std(0) > 0], second[:, second.std(0) > 0]
        both = np.corrcoef(alive_first.T, alive_second.T)[: alive_first.shape[1], alive_first.shape[1] :]
        one = found[location]
        assert one["dead_columns"] == dead
        assert one["matrix"][1][0] == pytest.approx(np.abs(both).mean(), rel=1e-4)
        assert one["matrix"][0] == [None, None]
        assert one["noise_floor"] == pytest.approx(0.8 / math.sqrt(300), rel=0.02)


def test_gate_usage_over_all_rows_and_by_field_value(run, outputs):
    _, batch, output = outputs
    gate = output.gate_weights.numpy()
    found = evaluate_run(run, splits=["test"])["test"]["gate"]
    assert found["mean"] == pytest.approx(gate.mean(0), abs=1e-6)
    assert found["std"] == pytest.approx(gate.std(0), abs=1e-5)
    assert found["argmax_share"] == pytest.approx(np.bincount(gate.argmax(1), minlength=2) / 300)
    assert found["mean_entropy"] == pytest.approx(-(gate * np.log(gate)).sum(1).mean(), abs=1e-6)
    assert {field["field"] for field in found["by_field"]} == set(SIZES)
    for field in found["by_field"]:
        ids = batch.ids_BC[:, list(SIZES).index(field["field"])].numpy()
        names = {0: "(missing)", 1: "(out of vocabulary)"}
        names |= {index: f"{field['field']}{index - 2}" for index in range(2, SIZES[field["field"]])}
        expected = {names[value]: ids == value for value in np.unique(ids)}
        assert {one["value"] for one in field["values"]} == set(expected)
        for one in field["values"]:
            rows = expected[one["value"]]
            assert one["rows"] == rows.sum()
            assert one["click_rate"] == pytest.approx(batch.labels_B.numpy()[rows].mean())
            assert one["mean_weights"] == pytest.approx(gate[rows].mean(0), abs=1e-6)
    spreads = [field["spread"] for field in found["by_field"]]
    assert spreads == sorted(spreads, reverse=True)


def test_removing_an_expert_renormalises_the_gate_over_the_rest(small_data, tmp_path):
    config = small_config(
        "model.experts=[{kind: fm}, {kind: crossnet, layers: 1}, {kind: dnn, hidden_units: [5]}]", "training.epochs=1"
    )
    run = train(config, small_data, tmp_path / "run")
    found = evaluate_run(run, splits=["test"])["test"]
    (batch,) = SplitReader(small_data, "test", batch_size=10_000).batches()
    model = run.load_model().double()
    with torch.inference_mode():
        output = model(batch.ids_BC, batch.numeric_BN.double())
        for removed in range(3):
            kept = [index for index in range(3) if index != removed]
            logits = []
            for row in range(300):
                weights = [float(output.gate_weights[row, index]) for index in kept]
                mixed = sum(
                    weight / sum(weights) * output.expert_outputs[index][row]
                    for weight, index in zip(weights, kept, strict=True)
                )
                logits.append(float(model.heads()[0].predict(mixed[None])[0]))
            probability = 1 / (1 + np.exp(-np.array(logits)))
            assert found["removal"][removed]["logloss"] == pytest.approx(
                log_loss(batch.labels_B, probability), abs=1e-5
            )
            alone = torch.sigmoid(model.heads()[0].predict(output.expert_outputs[removed]))
            assert found["alone"][removed]["logloss"] == pytest.approx(log_loss(batch.labels_B, alone), abs=1e-5)


def test_all_locations_of_a_run(run, outputs):
    _, _, output = outputs
    found = correlate_run(run, split="test")
    # One cross layer pairs with CIN's one pooled map; CrossNet's second has no partner.
    assert set(found["correlation"]) == {"output", "pre-activation", "intermediate", "input"}
    similar = found["similarity"]["output"]["matrix"]
    assert [[value is None for value in row] for row in similar] == [[True, True], [False, True]]
    assert -0.1 < similar[1][0] <= 1
    first, second = (tensor.numpy() for tensor in output.inputs)
    both = np.corrcoef(first.T, second.T)[: first.shape[1], first.shape[1] :]
    assert found["correlation"]["input"]["matrix"][1][0] == pytest.approx(np.abs(both).mean(), rel=1e-4)
    json.dumps(found, allow_nan=False)


def test_one_expert_has_no_gate_and_nothing_to_correlate(small_data, tmp_path):
    run = train(
        small_config("model.experts=[{kind: fm}]", "decorrelation=[]", "training.epochs=1"),
        small_data,
        tmp_path / "run",
    )
    found = evaluate_run(run)
    assert set(found) == {"train", "valid", "test"}
    assert (found["test"]["gate"], found["test"]["removal"], found["test"]["correlation"]) == (None, [], {})
    with pytest.raises(UserError, match="one expert"):
        correlate_run(run, split="test")
    with pytest.raises(DataError, match="nosuch"):
        evaluate_run(run, splits=["nosuch"])
