"""Target encoding: each id by the click rate of earlier rows with it, shrunk towards the mean.

The rows to learn from come in `BLOCKS` blocks; a row is encoded by the blocks before its own, so it meets ids that are
new to it as often as a later row will. Rows to score are encoded by all of them.
Shape suffixes as in `dmoe.baselines.design`; V ids of a field.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from dmoe.baselines.design import Design, Floats, Ids, Numbers
from dmoe.schema import MISSING_ID, OOV_ID, Schema

BLOCKS = 10
# Rows that the mean rate counts for.
_PRIOR_ROWS = 20.0


@dataclass(frozen=True, slots=True)
class TargetEncoding:
    """`rows_V` and `clicks_V` of each field, from all rows to learn from, and their mean rate."""

    schema: Schema
    numbers: Design
    rate: float
    rows_V: tuple[Floats, ...]
    clicks_V: tuple[Floats, ...]

    @staticmethod
    def of(schema: Schema, ids_RC: Ids, numeric_RN: Numbers, labels_R: Floats) -> "TargetEncoding":
        rows, clicks = [], []
        for field, place in zip(schema.categorical, schema.id_columns, strict=True):
            ids_RL = ids_RC[:, place]
            present_RL = _present(ids_RL, field.length)
            weights = np.broadcast_to(labels_R[:, None], ids_RL.shape)[present_RL]
            rows.append(_counts(ids_RL[present_RL], None, field.vocabulary_size))
            clicks.append(_counts(ids_RL[present_RL], weights, field.vocabulary_size))
        bare = schema.model_copy(update={"fields": schema.numeric})
        return TargetEncoding(schema, Design.of(bare, numeric_RN), float(labels_R.mean()), tuple(rows), tuple(clicks))

    @property
    def columns(self) -> int:
        """K."""
        return 3 * len(self.schema.categorical) + self.numbers.columns

    def matrix(self, ids_RC: Ids, numeric_RN: Numbers) -> Any:
        """(R, K) for rows that are none of those learnt from."""
        return self._matrix(ids_RC, numeric_RN, self.rows_V, self.clicks_V)

    def training_matrix(self, ids_RC: Ids, numeric_RN: Numbers, labels_R: Floats) -> tuple[Any, int]:
        """(R - first, K) for the rows learnt from, each by the blocks before its own; the first block has none."""
        # Blocks of fewer rows than there are blocks would be empty.
        ends = np.unique(np.linspace(0, len(ids_RC), BLOCKS + 1).astype(np.int64))
        rows = [np.zeros_like(one) for one in self.rows_V]
        clicks = [np.zeros_like(one) for one in self.clicks_V]
        parts = []
        for begin, end in pairwise(ends.tolist()):
            if begin:
                parts.append(self._matrix(ids_RC[begin:end], numeric_RN[begin:end], tuple(rows), tuple(clicks)))
            for index, (field, place) in enumerate(zip(self.schema.categorical, self.schema.id_columns, strict=True)):
                ids_RL = ids_RC[begin:end, place]
                present_RL = _present(ids_RL, field.length)
                weights = np.broadcast_to(labels_R[begin:end, None], ids_RL.shape)[present_RL]
                rows[index] += _counts(ids_RL[present_RL], None, field.vocabulary_size)
                clicks[index] += _counts(ids_RL[present_RL], weights, field.vocabulary_size)
        return scipy.sparse.vstack(parts, format="csr"), int(ends[1])

    def _matrix(
        self, ids_RC: Ids, numeric_RN: Numbers, rows_V: tuple[Floats, ...], clicks_V: tuple[Floats, ...]
    ) -> Any:
        columns: list[Floats] = []
        for index, (field, place) in enumerate(zip(self.schema.categorical, self.schema.id_columns, strict=True)):
            ids_RL = ids_RC[:, place]
            present_RL = _present(ids_RL, field.length)
            rows_RL = np.where(present_RL, rows_V[index][ids_RL], 0.0)
            clicks_RL = np.where(present_RL, clicks_V[index][ids_RL], 0.0)
            rows_R, clicks_R = (one.sum(1) for one in (rows_RL, clicks_RL))
            columns += self._encoded(rows_R, clicks_R)
        encoded = scipy.sparse.csr_matrix(np.stack(columns, axis=1)) if columns else None
        if not self.numbers.columns:
            assert encoded is not None  # a schema has a field
            return encoded
        numbers = self.numbers.matrix(np.empty((len(ids_RC), 0), np.int32), numeric_RN)
        return numbers if encoded is None else scipy.sparse.hstack([encoded, numbers], format="csr")

    def weights_of_ids(self, weights_K: Floats) -> list[Floats]:
        """What each id of each single-valued field adds to the logit, (V,) a field."""
        found = []
        for index, (rows_V, clicks_V) in enumerate(zip(self.rows_V, self.clicks_V, strict=True)):
            columns = self._encoded(rows_V, clicks_V)
            found.append(sum(column_V * weights_K[3 * index + place] for place, column_V in enumerate(columns)))
        return found

    def _encoded(self, rows: Floats, clicks: Floats) -> list[Floats]:
        """Shrunk log-odds, how much they rest on, and whether on nothing."""
        rate = np.clip((clicks + _PRIOR_ROWS * self.rate) / (rows + _PRIOR_ROWS), 1e-6, 1 - 1e-6)
        return [np.log(rate / (1 - rate)), np.log1p(rows), (rows == 0).astype(np.float64)]


def _present(ids_RL: Ids, length: int) -> npt.NDArray[np.bool_]:
    """Where there is a value that evidence can be had of: id 1 stands for many values, and 0 pads lists."""
    present_RL: npt.NDArray[np.bool_] = ids_RL != OOV_ID
    return present_RL & (ids_RL != MISSING_ID) if length > 1 else present_RL


def _counts(ids: Ids, weights: Floats | None, size: int) -> Floats:
    return np.bincount(ids, weights=weights, minlength=size).astype(np.float64)
