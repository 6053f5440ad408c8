"""How a model scores the rows with values that training never saw, and the others.

Shape suffixes: B rows of a batch, R rows of the split, C id columns, F categorical fields.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.metrics.scores import auc, logloss
from dmoe.schema import OOV_ID, Schema
from dmoe.shards.batch import Batch
from dmoe.tokens.unseen import ValueCounts, merging_fields

# Fields whose rows are scored apart, those with the largest shares of unseen values.
SCORED_FIELDS = 8


class UnseenRows:
    """Which rows of a split have an unseen value, field by field."""

    def __init__(self, schema: Schema) -> None:
        self.counts = ValueCounts(schema)
        # Encoded missing values of these fields cannot be told from unseen ones.
        self._merging = merging_fields(schema)
        self._starts = [columns.start for columns in schema.id_columns]
        self._packed: list[npt.NDArray[np.uint8]] = []

    def update(self, batch: Batch) -> None:
        if not self._starts:
            return
        ids_BC = batch.ids_BC.numpy()
        self.counts.add(self.counts.tallied(ids_BC, np.zeros(len(self.counts.fields) - len(self._starts), np.int64)))
        unseen_BF = np.logical_or.reduceat(ids_BC == OOV_ID, self._starts, axis=1)
        self._packed.append(np.packbits(unseen_BF, axis=1))

    def result(self, labels_R: npt.NDArray[Any], logits_R: npt.NDArray[np.float64]) -> dict[str, Any] | None:
        """What `evaluation/<split>.json` says under `unseen`; None without categorical fields."""
        if not self._packed:
            return None
        packed = np.concatenate(self._packed)
        fields: list[dict[str, Any]] = [
            {
                "field": name,
                "values": int(values),
                "unseen": int(unseen),
                "with_missing": name in self._merging,
                "scores": None,
            }
            for name, values, unseen in zip(
                self.counts.categorical, self.counts.values_F, self.counts.unseen_F, strict=False
            )
        ]
        worst = sorted(fields, key=lambda one: -one["unseen"] / max(one["values"], 1))[:SCORED_FIELDS]
        for index, one in enumerate(fields):
            if one["unseen"] and one in worst:
                unseen_R = (packed[:, index // 8] >> (7 - index % 8) & 1).astype(bool)
                one["scores"] = _apart(unseen_R, labels_R, logits_R)
        return {
            "any": _apart(np.asarray(packed.any(axis=1)), labels_R, logits_R),
            "fields": fields,
            "far_above": [
                finding.values()
                for finding in self.counts.findings()
                if finding.kind == "unseen" and finding.field not in self._merging
            ],
        }


def _apart(
    unseen_R: npt.NDArray[np.bool_], labels_R: npt.NDArray[Any], logits_R: npt.NDArray[np.float64]
) -> dict[str, Any]:
    return {
        "with": _scores(labels_R[unseen_R], logits_R[unseen_R]),
        "without": _scores(labels_R[~unseen_R], logits_R[~unseen_R]),
    }


def _scores(labels_R: npt.NDArray[Any], logits_R: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Of some of the rows: what cannot be said of so few, or of one class, is None."""
    rows, positives = len(labels_R), int(labels_R.sum())
    predicted = float((1 / (1 + np.exp(-logits_R))).mean()) if rows else None
    return {
        "rows": rows,
        "auc": auc(labels_R, logits_R) if 0 < positives < rows else None,
        "logloss": logloss(labels_R, logits_R) if rows else None,
        "predicted": predicted,
        "observed": positives / rows if rows else None,
        "predicted_to_observed": predicted * rows / positives if predicted is not None and positives else None,
    }
