"""How a model scores the rows with values that training never saw, and the others.

Shape suffixes: B rows of a batch, R rows of the split, C id columns, F categorical fields.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.metrics.scores import scores_of_rows
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

    def result(
        self,
        labels_R: npt.NDArray[Any],
        logits_R: npt.NDArray[np.float64],
        scored_R: npt.NDArray[np.bool_] | None = None,
        weights_R: npt.NDArray[np.float64] | None = None,
    ) -> dict[str, Any] | None:
        """What `evaluation/<split>.json` says under `unseen`; None without categorical fields.

        `scored_R`: which rows of the split labels, logits and weights are of; by default all.
        """
        if not self._packed:
            return None
        packed = np.concatenate(self._packed)
        packed = packed if scored_R is None else packed[scored_R]
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
                one["scores"] = _apart(unseen_R, labels_R, logits_R, weights_R)
        return {
            "any": _apart(np.asarray(packed.any(axis=1)), labels_R, logits_R, weights_R),
            "fields": fields,
            "far_above": [
                finding.values()
                for finding in self.counts.findings()
                if finding.kind == "unseen" and finding.field not in self._merging
            ],
        }


def _apart(
    unseen_R: npt.NDArray[np.bool_],
    labels_R: npt.NDArray[Any],
    logits_R: npt.NDArray[np.float64],
    weights_R: npt.NDArray[np.float64] | None,
) -> dict[str, Any]:
    return {
        name: scores_of_rows(labels_R[kept_R], logits_R[kept_R], None if weights_R is None else weights_R[kept_R])
        for name, kept_R in (("with", unseen_R), ("without", ~unseen_R))
    }
