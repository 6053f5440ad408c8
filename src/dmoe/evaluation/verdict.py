"""What a model's figures say against it, in plain words: it must not be served in silence.

Imports nothing but the standard library, so that every command can say the same.
"""

import math
from collections.abc import Mapping
from typing import Any

# Predictions and clicks may differ by this share before a word is said.
CALIBRATION_MARGIN = 0.05
_STANDARD_ERRORS = 2.0
_SIGNIFICANCE = 0.05
# Click rates that differ by chance, or by less than one in a hundred, are no drift.
_DRIFT_ERRORS = 3.0
_LEAST_DRIFT = 0.01


def faults(split: str, evaluation: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> list[str]:
    """Sentences on one evaluated split, none if nothing is wrong.

    Args:
        evaluation: with `rows`, `positives`, `logloss`, `relative_information_gain` and `calibration`, as in
            `evaluation/<split>.json`.
        beside: paired differences to a baseline on the same rows, model minus baseline, and its `name`.
    """
    found = []
    gain = evaluation.get("relative_information_gain")
    if gain is not None and gain < 0:
        found.append(
            f"on {split} its logloss {evaluation['logloss']:.4f} is worse than predicting the mean click rate for "
            f"every row ({evaluation['logloss'] / (1 - gain):.4f}); do not serve it as it is"
        )
    ratio = (evaluation.get("calibration") or {}).get("predicted_to_observed")
    positives = evaluation.get("positives") or 0
    if ratio is not None and positives:
        off = abs(ratio - 1)
        if off > CALIBRATION_MARGIN and off > _STANDARD_ERRORS / math.sqrt(positives):
            what = "more" if ratio > 1 else "fewer"
            found.append(f"on {split} it predicts {ratio:.3f} times the clicks that happened, {what} than there were")
    if beside is not None and (sentence := _beaten(split, beside)) is not None:
        found.append(sentence)
    return found


def _beaten(split: str, beside: Mapping[str, Any]) -> str | None:
    """A sentence if the baseline is the better one in AUC or logloss beyond chance."""
    worse = [
        f"{name} {one['first']:.4f} against {one['second']:.4f} of the model"
        for name, key, sign in (("AUC", "auc", 1), ("logloss", "logloss", -1))
        if (one := beside[key])["difference"] * sign < 0 and one["p"] < _SIGNIFICANCE
    ]
    if not worse:
        return None
    return f"on {split} the {beside['name']} is better beyond chance: {' and '.join(worse)}"


def faults_of_run(evaluations: Mapping[str, Mapping[str, Any]], beside: Mapping[str, Any] | None) -> list[str]:
    """`faults` of the last held-out split that there is, test, else valid: of the main label, then of the others.

    Args:
        evaluations: by split; `beside` what comparison.json of the run folder holds.
    """
    split = next((name for name in ("test", "valid") if name in evaluations), None)
    if split is None:
        return []
    paired = beside["splits"].get(split) if beside is not None else None
    named = None if beside is None or paired is None else {"name": beside["name"], **paired}
    found = faults(split, evaluations[split], named)
    by_task = (beside or {}).get("tasks") or {}
    for name, task in list((evaluations[split].get("tasks") or {}).items())[1:]:
        paired = by_task.get(name, {}).get(split)
        other = None if beside is None or paired is None else {"name": beside["name"], **paired}
        found += faults(f"{split}, {name},", task, other)
    drift = rate_drift(evaluations)
    return [*found, *([drift] if drift is not None else [])]


def rate_drift(evaluations: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A sentence where the click rate of test is another one than that of valid, which calibration is fitted on."""
    shown = [evaluations.get(split) or {} for split in ("valid", "test")]
    if not all(one.get("rows") and one.get("positives") for one in shown):
        return None
    valid, test = (one["positives"] / one["rows"] for one in shown)
    both = sum(one["positives"] for one in shown) / sum(one["rows"] for one in shown)
    error = math.sqrt(both * (1 - both) * sum(1 / one["rows"] for one in shown))
    if abs(test - valid) <= max(_DRIFT_ERRORS * error, _LEAST_DRIFT * valid):
        return None
    return (
        f"the click rate drifts: {valid:.2%} in valid, on which a model is calibrated, {test:.2%} in test; by that "
        f"alone a model right on all of valid predicts {valid / test:.3f} times the clicks of test"
    )


def against(beside: Mapping[str, Any]) -> list[str]:
    """One line a label and split: the baseline's scores, and how far the model is above them."""
    tasks = beside.get("tasks") or {"": beside["splits"]}
    return [
        f"{split:5} {name}{', ' if name else ''}{beside['name']}: AUC {paired['auc']['first']:.4f}  "
        f"logloss {paired['logloss']['first']:.4f}  "
        f"(the model: {paired['auc']['difference']:+.4f}, {paired['logloss']['difference']:+.4f})"
        for name, splits in tasks.items()
        for split, paired in splits.items()
    ]
