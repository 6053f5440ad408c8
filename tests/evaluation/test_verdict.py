"""What is said against a model, and when nothing is."""

from typing import Any

import pytest

from dmoe.evaluation.verdict import faults, faults_of_run, rate_drift


def evaluation(**changes: Any) -> dict[str, Any]:
    return {
        "positives": 10_000,
        "logloss": 0.5,
        "relative_information_gain": 0.1,
        "calibration": {"predicted_to_observed": 1.01},
    } | changes


def paired(difference: float, p: float) -> dict[str, Any]:
    one = {"first": 0.7, "second": 0.7 + difference, "difference": difference, "p": p}
    return {"name": "logistic regression", "auc": one, "logloss": {**one, "difference": 0.0}}


def test_a_sound_model_has_no_fault() -> None:
    assert faults("test", evaluation(), paired(0.01, 0.001)) == []
    assert faults("test", evaluation(), paired(-0.01, 0.2)) == [], "not beyond chance"


def test_worse_than_the_mean_is_said_with_the_means_logloss() -> None:
    (line,) = faults("test", evaluation(relative_information_gain=-0.25))
    assert "worse than predicting the mean" in line
    assert "0.5000" in line
    assert "0.4000" in line  # 0.5 / (1 + 0.25)


@pytest.mark.parametrize(("ratio", "positives", "said"), [(1.06, 10_000, True), (1.04, 10_000, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_calibration_off_by_more_than_five_percent_is_said(ratio: float, positives: int, said: bool, sign: int) -> None:
    off = 1 + sign * (ratio - 1)
    found = faults("test", evaluation(positives=positives, calibration={"predicted_to_observed": off}))
    assert bool(found) == said
    assert not said or ("more" in found[0]) == (sign > 0)


def test_few_clicks_say_nothing_of_calibration() -> None:
    assert faults("test", evaluation(positives=25, calibration={"predicted_to_observed": 1.3})) == []
    assert faults("test", evaluation(positives=25, calibration={"predicted_to_observed": 1.5})) != []


def test_a_better_baseline_is_named_with_both_figures() -> None:
    (line,) = faults("valid", evaluation(), paired(-0.02, 0.001))
    assert line == ("on valid the logistic regression is better beyond chance: AUC 0.7000 against 0.6800 of the model")


def test_test_is_judged_before_valid() -> None:
    bad = evaluation(relative_information_gain=-1.0)
    assert faults_of_run({"valid": bad, "test": evaluation()}, None) == []
    assert len(faults_of_run({"valid": bad}, None)) == 1
    assert faults_of_run({}, None) == []


def test_click_rates_that_drift_are_said_and_chance_is_not() -> None:
    def of(rows: int, positives: int) -> dict[str, int]:
        return {"rows": rows, "positives": positives}

    said = rate_drift({"valid": of(193_959, 88_059), "test": of(193_959, 86_227)})
    assert said is not None
    assert "45.40% in valid, on which a model is calibrated, 44.46% in test" in said
    assert "1.021 times" in said
    assert rate_drift({"valid": of(1000, 454), "test": of(1000, 444)}) is None, "chance"
    assert rate_drift({"valid": of(10**8, 50_000_000), "test": of(10**8, 50_200_000)}) is None, "too little to matter"
    assert rate_drift({"test": of(1000, 10)}) is None
    assert rate_drift({"valid": of(1000, 300), "test": of(1000, 0)}) is None


def test_every_label_is_judged_by_its_own_figures() -> None:
    bad = evaluation(relative_information_gain=-0.25)
    beside = {"name": "logistic regression", "splits": {}, "tasks": {"like": {"test": paired(-0.02, 0.001)}}}
    found = faults_of_run({"test": evaluation(tasks={"click": bad, "buy": bad, "like": evaluation()})}, beside)
    assert len(found) == 2, "the main label is judged by the figures on top"
    assert found[0].startswith("on test, buy, its logloss 0.5000 is worse than predicting the mean")
    assert found[1].startswith("on test, like, the logistic regression is better beyond chance")
