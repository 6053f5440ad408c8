"""Two runs on the same labelled rows: is the difference more than chance, and where does it lie?

R rows, P of them clicks and Q not.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.baselines.folder import Baseline
from dmoe.errors import DataError, UserError, nearest
from dmoe.evaluation.scored import Chain, ScoredRows, predicted, score_rows
from dmoe.evaluation.verdict import faults
from dmoe.metrics.scores import auc, calibration, logloss, probability_of, relative_information_gain
from dmoe.schema import CategoricalField, MultiValuedField
from dmoe.tokens.unseen import ValueCounts
from dmoe.tokens.vocabulary import read_vocabulary
from dmoe.weights.run import Run

Floats = npt.NDArray[np.float64]

# Differences are called real where chance alone would show them in less than this share of comparisons.
SIGNIFICANCE = 0.05

SEGMENT_VALUES = 12

# The mean of fewer rows' losses is too far from normal for its p to say anything.
LEAST_SEGMENT_ROWS = 100


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a paired metric, second minus first, with its 95% interval and two-sided p."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float

    @staticmethod
    def of(first: float, second: float, standard_error: float) -> "Difference":
        difference = second - first
        half = 1.959963984540054 * standard_error
        p = math.erfc(abs(difference) / standard_error / math.sqrt(2)) if standard_error > 0 else float(difference == 0)
        return Difference(first, second, difference, difference - half, difference + half, p)


def paired_auc(labels_R: npt.NDArray[np.bool_], first_R: Floats, second_R: Floats) -> Difference:
    """AUC of two scores of the same rows; standard error by DeLong, DeLong and Clarke-Pearson (1988).

    With the midranks of Sun and Xu (2014), so in R log R time. Ties count half.

    Raises: DataError if only one class is present.
    """
    aucs = [auc(labels_R, scores_R) for scores_R in (first_R, second_R)]
    first, second = (auc_components(labels_R, scores_R) for scores_R in (first_R, second_R))
    variance = sum(variance_of_mean(b - a) for a, b in zip(first, second, strict=True))
    return Difference.of(aucs[0], aucs[1], math.sqrt(variance))


def auc_components(labels_R: npt.NDArray[np.bool_], scores_R: Floats) -> tuple[Floats, Floats]:
    """For each click, and for each other row, the share of the other class that it is ordered rightly against.

    The mean of either is the AUC; the variance of a mean of differences of both adds up to that of an AUC difference.
    """
    ranks_R = _midranks(scores_R)
    clicks_P = (ranks_R[labels_R] - _midranks(scores_R[labels_R])) / (~labels_R).sum()
    others_Q = 1 - (ranks_R[~labels_R] - _midranks(scores_R[~labels_R])) / labels_R.sum()
    return clicks_P, others_Q


def paired_logloss(labels_R: npt.NDArray[np.bool_], first_R: Floats, second_R: Floats) -> Difference:
    """Mean logloss of two logits of the same rows; standard error of the mean of their differences."""
    signs_R = np.where(labels_R, -1.0, 1.0)
    losses_R = np.logaddexp(0, signs_R * second_R) - np.logaddexp(0, signs_R * first_R)
    return Difference.of(logloss(labels_R, first_R), logloss(labels_R, second_R), math.sqrt(variance_of_mean(losses_R)))


def paired_scores(labels_R: npt.NDArray[np.bool_], first_R: Floats, second_R: Floats) -> dict[str, Difference]:
    """AUC and logloss of two logits of the same rows."""
    return {
        "auc": paired_auc(labels_R, first_R, second_R),
        "logloss": paired_logloss(labels_R, first_R, second_R),
    }


def variance_of_mean(values: Floats) -> float:
    """Of the mean of independent `values`; 0 for a single one."""
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def _midranks(values: Floats) -> Floats:
    """Ranks from 1, ties at the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def _faults(labels_R: npt.NDArray[np.bool_], logits_R: Floats) -> list[str]:
    return faults(
        "these rows",
        {
            "positives": int(labels_R.sum()),
            "logloss": logloss(labels_R, logits_R),
            "relative_information_gain": relative_information_gain(labels_R, logits_R),
            "calibration": _calibration(labels_R, logits_R),
        },
    )


def compare_runs(
    first: Run | Baseline,
    second: Run | Baseline,
    *,
    logs: Sequence[Path] = (),
    split: str = "test",
    data: Path | None = None,
    segments: Sequence[str] = (),
) -> dict[str, Any]:
    """Metrics of both on the rows that know the first run's main label in both, their differences, and a table for each
    field of `segments`. Under `far_above` the fields of which the rows of `logs` have far more unseen or missing values
    than the training of either run showed; under `tasks`, if both predict several labels, each that both predict, and
    of each that is given another in both also what its chain says together (`click+watch`, on all rows that know it).

    Rows are those of `logs`, raw and labelled, which each run encodes with its own vocabularies; else those of a
    split of the data set that both runs were trained on. They count alike, whatever their weights.

    Raises: DataError if the rows have no labels or the runs were trained on different data sets and no log is
    given; UserError for a segment that is no categorical field of the first run, or if the second run does not predict
    the first one's main label.
    """
    schema = first.schema
    places = {
        field.name: (field, columns.start)
        for field, columns in zip(schema.categorical, schema.id_columns, strict=True)
        if not isinstance(field, MultiValuedField)
    }
    for segment in segments:
        if segment not in places:
            raise UserError(f"--segment {segment}: no categorical field of {first.path}{nearest(segment, places)}")
    columns = [places[segment][1] for segment in segments]
    counts = [ValueCounts(run.schema) for run in (first, second)]
    main, other_main = _main_labels(first, second)
    scored = [
        score_rows(run, logs, split, data, columns, one) for run, one in zip((first, second), counts, strict=True)
    ]
    labels_R, first_R, second_R, kept_R = _both(scored, main, other_main)
    if not kept_R.any():
        raise DataError(f"{logs[0] if logs else split}: no row says its '{schema.label}'; comparing needs labels")
    ids_RS = scored[0].ids_RS[kept_R]
    chains = [chain for chain in scored[0].chains if chain in scored[1].chains]
    return {
        "rows": len(labels_R),
        "positives": int(labels_R.sum()),
        "far_above": [[finding.values() for finding in one.findings()] for one in counts],
        **{name: asdict(one) for name, one in paired_scores(labels_R, first_R, second_R).items()},
        "calibration": [_calibration(labels_R, logits_R) for logits_R in (first_R, second_R)],
        "faults": [_faults(labels_R, logits_R) for logits_R in (first_R, second_R)],
        "segments": {
            segment: _segment(first, places[segment][0], ids_RS[:, index], labels_R, first_R, second_R)
            for index, segment in enumerate(segments)
        },
        **({"tasks": {"+".join(chain): _task(scored, chain) for chain in chains}} if len(chains) > 1 else {}),
    }


def _main_labels(first: Run | Baseline, second: Run | Baseline) -> tuple[Chain, Chain]:
    """The first one's main label, and that of the second one which is compared with it."""
    label, others = first.schema.label, [task.name for task in predicted(second)]
    if label not in others and len(others) == len(first.schema.tasks) == 1:
        return (label,), (others[0],)  # the rows' labels say whether it is the same
    if label not in others:
        known = ", ".join(others)
        raise UserError(
            f"{second.path}: does not predict '{label}', the main label of {first.path}; it predicts {known}"
        )
    return (label,), (label,)


def _both(
    scored: Sequence[ScoredRows], chain: Chain, other: Chain
) -> tuple[npt.NDArray[np.bool_], Floats, Floats, npt.NDArray[np.bool_]]:
    """Labels and logits of the rows that know a label, or the outcome of a chain, in both; and which rows these are."""
    (labels_R, first_R, known_R), (other_labels_R, second_R, other_known_R) = (
        one.of(names) for one, names in zip(scored, (chain, other), strict=True)
    )
    if len(labels_R) == len(other_labels_R):
        both_R = known_R & other_known_R
        if np.array_equal(labels_R[both_R], other_labels_R[both_R]):
            return labels_R[both_R], first_R[both_R], second_R[both_R], both_R
    raise DataError("the runs gave the rows different labels; prepare both with the same label column")


def _task(scored: Sequence[ScoredRows], chain: Chain) -> dict[str, Any]:
    labels_R, first_R, second_R, _ = _both(scored, chain, chain)
    both = 0 < labels_R.sum() < len(labels_R)
    found = paired_scores(labels_R, first_R, second_R) if both else {}
    return {
        "rows": len(labels_R),
        "positives": int(labels_R.sum()),
        **{name: asdict(found[name]) if both else None for name in ("auc", "logloss")},
        "calibration": [_calibration(labels_R, logits_R) for logits_R in (first_R, second_R)] if both else None,
    }


def _calibration(labels_R: npt.NDArray[np.bool_], logits_R: Floats) -> dict[str, float]:
    found = calibration(labels_R, probability_of(logits_R))
    return {
        "expected_calibration_error": found.expected_calibration_error,
        "predicted_to_observed": found.predicted_to_observed,
    }


def _segment(
    run: Run | Baseline,
    field: CategoricalField,
    ids_R: npt.NDArray[np.int32],
    labels_R: npt.NDArray[np.bool_],
    first_R: Floats,
    second_R: Floats,
) -> list[dict[str, Any]]:
    """One entry a frequent value, and one for all others together; by falling number of rows."""
    texts = ["(missing)", "(out of vocabulary)", *read_vocabulary(run.path, field)]
    values, counts = np.unique(ids_R, return_counts=True)
    frequent = values[np.argsort(-counts, kind="stable")][:SEGMENT_VALUES]
    groups: Iterable[tuple[str, npt.NDArray[np.bool_]]] = [
        *((texts[value], ids_R == value) for value in frequent.tolist()),
        ("(all other values)", ~np.isin(ids_R, frequent)),
    ]
    return [_segment_row(value, labels_R[of], first_R[of], second_R[of]) for value, of in groups if of.any()]


def _segment_row(value: str, labels_R: npt.NDArray[np.bool_], first_R: Floats, second_R: Floats) -> dict[str, Any]:
    both = 0 < labels_R.sum() < len(labels_R)
    return {
        "value": value,
        "rows": len(labels_R),
        "click_rate": float(labels_R.mean()),
        "predicted": [float(probability_of(logits_R).mean()) for logits_R in (first_R, second_R)],
        "logloss": asdict(paired_logloss(labels_R, first_R, second_R)),
        "auc": asdict(paired_auc(labels_R, first_R, second_R)) if both else None,
    }


def worse_segments(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, value) where the second run's logloss is worse beyond chance, p times the number of segments looked at.

    Segments of fewer than 100 rows are not looked at.
    """
    rows = [
        (field, row) for field, table in found["segments"].items() for row in table if row["rows"] >= LEAST_SEGMENT_ROWS
    ]
    return [
        (field, row["value"])
        for field, row in rows
        if row["logloss"]["difference"] > 0 and row["logloss"]["p"] * len(rows) < SIGNIFICANCE
    ]
