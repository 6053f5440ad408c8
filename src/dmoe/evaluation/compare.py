"""Two runs on the same labelled rows: is the difference more than chance, and where does it lie?

R rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.baselines.folder import Baseline
from dmoe.errors import DataError, UserError, nearest
from dmoe.evaluation.scored import Chain, Floats, Mask, ScoredRows, predicted, score_rows
from dmoe.evaluation.verdict import faults
from dmoe.metrics.paired import SIGNIFICANCE, paired_auc, paired_logloss, paired_scores
from dmoe.metrics.scores import calibration, logloss, probability_of, relative_information_gain
from dmoe.schema import FIRST_TOKEN_ID, MISSING_ID, OOV_ID, CategoricalField, MultiValuedField
from dmoe.tokens.lookup import open_tokens
from dmoe.tokens.unseen import ValueCounts
from dmoe.weights.run import Run

SEGMENT_VALUES = 12

# The mean of fewer rows' losses is too far from normal for its p to say anything.
LEAST_SEGMENT_ROWS = 100


@dataclass(frozen=True, slots=True)
class SharedRows:
    """Rows that both know the label of, with the logits of both; `weights_R` is None where all weigh 1."""

    labels_R: Mask
    logits: tuple[Floats, Floats]
    weights_R: Floats | None = None

    def __len__(self) -> int:
        return len(self.labels_R)

    @property
    def positives(self) -> int:
        return int(self.labels_R.sum())

    @property
    def has_both_classes(self) -> bool:
        return 0 < self.positives < len(self)

    def only(self, kept_R: Mask) -> "SharedRows":
        first_R, second_R = (logits_R[kept_R] for logits_R in self.logits)
        weights_R = None if self.weights_R is None else self.weights_R[kept_R]
        return SharedRows(self.labels_R[kept_R], (first_R, second_R), weights_R)

    def paired(self) -> dict[str, dict[str, Any]]:
        found = paired_scores(self.labels_R, *self.logits, self.weights_R)
        return {name: asdict(one) for name, one in found.items()}

    def calibrations(self) -> list[dict[str, float]]:
        return [_calibration(self.labels_R, logits_R, self.weights_R) for logits_R in self.logits]

    def faults(self) -> list[list[str]]:
        return [
            faults(
                "these rows",
                {
                    "positives": self.positives,
                    "logloss": logloss(self.labels_R, logits_R, self.weights_R),
                    "relative_information_gain": relative_information_gain(self.labels_R, logits_R, self.weights_R),
                    "calibration": _calibration(self.labels_R, logits_R, self.weights_R),
                },
            )
            for logits_R in self.logits
        ]


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
    split of the data set that both runs were trained on. They count by their weights, where these are known, and those
    of weight 0 not at all; numbers of rows and positives are those of rows.

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
    rows, kept_R = _both(scored, main, other_main)
    if not kept_R.any():
        raise DataError(f"{logs[0] if logs else split}: no row says its '{main[0]}'; comparing needs labels")
    ids_RS = scored[0].ids_RS[kept_R]
    chains = [chain for chain in scored[0].chains if chain in scored[1].chains]
    return {
        "rows": len(rows),
        "positives": rows.positives,
        "far_above": [[finding.values() for finding in one.findings()] for one in counts],
        **rows.paired(),
        "calibration": rows.calibrations(),
        "faults": rows.faults(),
        "segments": {
            segment: _segment(first, places[segment][0], ids_RS[:, index], rows)
            for index, segment in enumerate(segments)
        },
        **({"tasks": {"+".join(chain): _task(scored, chain) for chain in chains}} if len(chains) > 1 else {}),
    }


def _main_labels(first: Run | Baseline, second: Run | Baseline) -> tuple[Chain, Chain]:
    """The first one's main label, or that of a baseline, and that of the second one which is compared with it."""
    label, others = predicted(first)[0].name, [task.name for task in predicted(second)]
    if label not in others and len(others) == len(first.schema.tasks) == 1:
        return (label,), (others[0],)  # the rows' labels say whether it is the same
    if label not in others:
        known = ", ".join(others)
        raise UserError(
            f"{second.path}: does not predict '{label}', the {'main ' if first.schema.label == label else ''}label of "
            f"{first.path}; it predicts {known}"
        )
    return (label,), (label,)


def _both(scored: Sequence[ScoredRows], chain: Chain, other: Chain) -> tuple[SharedRows, Mask]:
    """The rows that know a label, or the outcome of a chain, in both; and which of all these are."""
    (labels_R, first_R, known_R), (other_labels_R, second_R, other_known_R) = (
        one.of(names) for one, names in zip(scored, (chain, other), strict=True)
    )
    if len(labels_R) == len(other_labels_R):
        both_R = known_R & other_known_R
        weights_R = _weights(scored)
        if np.array_equal(labels_R[both_R], other_labels_R[both_R]):
            return SharedRows(labels_R, (first_R, second_R), weights_R).only(both_R), both_R
    raise DataError("the runs gave the rows different labels; prepare both with the same label column")


def _weights(scored: Sequence[ScoredRows]) -> Floats | None:
    """Those of the rows by the run that reads weights, or by both."""
    found = [one.weights_R for one in scored if one.weights_R is not None]
    if len(found) > 1 and not np.array_equal(found[0], found[1]):
        raise DataError("the runs gave the rows different weights; prepare both with the same weight column")
    return found[0] if found else None


def _task(scored: Sequence[ScoredRows], chain: Chain) -> dict[str, Any]:
    rows, _ = _both(scored, chain, chain)
    both = rows.has_both_classes
    return {
        "rows": len(rows),
        "positives": rows.positives,
        **(rows.paired() if both else {"auc": None, "logloss": None}),
        "calibration": rows.calibrations() if both else None,
    }


def _calibration(labels_R: Mask, logits_R: Floats, weights_R: Floats | None) -> dict[str, float]:
    found = calibration(labels_R, probability_of(logits_R), weights=weights_R)
    return {
        "expected_calibration_error": found.expected_calibration_error,
        "predicted_to_observed": found.predicted_to_observed,
    }


def _segment(
    run: Run | Baseline, field: CategoricalField, ids_R: npt.NDArray[np.int32], rows: SharedRows
) -> list[dict[str, Any]]:
    """One entry a frequent value, and one for all others together; by falling number of rows."""
    values, counts = np.unique(ids_R, return_counts=True)
    frequent = values[np.argsort(-counts, kind="stable")][:SEGMENT_VALUES]
    tokens = frequent[frequent >= FIRST_TOKEN_ID]
    texts = {MISSING_ID: "(missing)", OOV_ID: "(out of vocabulary)"}
    texts |= zip(tokens.tolist(), open_tokens(run.path, field).texts(tokens), strict=True)
    groups: Iterable[tuple[str, Mask]] = [
        *((texts[value], ids_R == value) for value in frequent.tolist()),
        ("(all other values)", ~np.isin(ids_R, frequent)),
    ]
    return [_segment_row(value, rows.only(of)) for value, of in groups if of.any()]


def _segment_row(value: str, rows: SharedRows) -> dict[str, Any]:
    return {
        "value": value,
        "rows": len(rows),
        "click_rate": float(np.average(rows.labels_R, weights=rows.weights_R)),
        "predicted": [float(np.average(probability_of(logits_R), weights=rows.weights_R)) for logits_R in rows.logits],
        "logloss": asdict(paired_logloss(rows.labels_R, *rows.logits, rows.weights_R)),
        "auc": asdict(paired_auc(rows.labels_R, *rows.logits, rows.weights_R)) if rows.has_both_classes else None,
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
