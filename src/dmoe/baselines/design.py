"""Encoded rows as the inputs of a simple model.

Shape suffixes: R rows, C id columns, N numeric fields, K columns of the design, E its entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse

from dmoe.schema import MISSING_ID, MultiValuedField, NumericField, Schema

Floats: TypeAlias = npt.NDArray[np.float64]
Ids: TypeAlias = npt.NDArray[np.int32]
Numbers: TypeAlias = npt.NDArray[np.float32]

# Beyond this many columns ids are hashed onto them: weights and the optimiser's history stay below a gigabyte.
MOST_COLUMNS = 1 << 22
BINS = 20
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio: Fibonacci hashing, Knuth TAOCP 6.4


@dataclass(frozen=True, slots=True)
class Design:
    """One column an id of each field, one a bin of each numeric field, and the number itself.

    Values of a multi-valued field weigh 1/their number, so that each field adds up to 1 in every row that has one.
    `edges` are the inner bounds of each numeric field's bins, float32 numbers between those of the rows.
    """

    schema: Schema
    edges: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(schema: Schema, numeric_RN: Numbers) -> "Design":
        """The design whose bins hold about equal numbers of these rows."""
        edges = (_between(numeric_RN[:, index], field) for index, field in enumerate(schema.numeric))
        return Design(schema, tuple(tuple(one.astype(float).tolist()) for one in edges))

    @property
    def id_columns(self) -> int:
        return min(sum(field.vocabulary_size for field in self.schema.categorical), MOST_COLUMNS)

    @property
    def columns(self) -> int:
        """K."""
        return self.id_columns + sum(len(edges) + 2 for edges in self.edges)

    def matrix(self, ids_RC: Ids, numeric_RN: Numbers) -> Any:
        """The (R, K) matrix in compressed rows, float64."""
        rows = len(ids_RC)
        columns, values = [], []
        offsets = accumulate((field.vocabulary_size for field in self.schema.categorical), initial=0)
        for field, offset, place in zip(self.schema.categorical, offsets, self.schema.id_columns, strict=False):
            columns.append(self._column_of(ids_RC[:, place].astype(np.int64) + offset))
            values.append(_weights(ids_RC[:, place], isinstance(field, MultiValuedField)))
        start = self.id_columns
        for index, edges in enumerate(self.edges):
            numbers_R = numeric_RN[:, index].astype(np.float64)
            bins_R = np.searchsorted(np.asarray(edges), numbers_R, side="left")
            columns.append(np.stack([start + bins_R, np.full(rows, start + len(edges) + 1)], axis=1))
            values.append(np.stack([np.ones(rows), _tamed(numbers_R)], axis=1))
            start += len(edges) + 2
        column_RE, value_RE = np.concatenate(columns, axis=1), np.concatenate(values, axis=1)
        present_RE = value_RE != 0
        ends = np.concatenate([[0], np.cumsum(present_RE.sum(1))])
        return scipy.sparse.csr_matrix(
            (value_RE[present_RE], column_RE[present_RE].astype(np.int32), ends), shape=(rows, self.columns)
        )

    def _column_of(self, place: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where an entry of all vocabularies stands: at its place, or at its hash if there are too many."""
        if sum(field.vocabulary_size for field in self.schema.categorical) <= MOST_COLUMNS:
            return place
        bits = MOST_COLUMNS.bit_length() - 1
        return ((place.astype(np.uint64) * _MULTIPLIER) >> np.uint64(64 - bits)).astype(np.int64)


# Of a number in units of its field's scale: far above what float64 rounds, far below what float32 tells apart.
_ROUNDING = 2.0**-44


def _between(numbers_R: Numbers, field: NumericField) -> Numbers:
    """The bounds of `BINS` bins of about equally many values, each bound between two of them.

    A bound at a value would part what is one but for rounding: the same number worked out by other operations, as an
    exported graph does, or encoded and turned back. Values that only rounding tells apart are not parted either.
    """
    values = np.unique(numbers_R)
    shares = np.arange(1, BINS) / BINS
    quantiles = np.unique(np.quantile(numbers_R, shares, method="inverted_cdf"))
    lower, upper = values[:-1], values[1:]
    reach = np.abs(lower.astype(np.float64)) + abs(field.mean) / field.scale
    gaps = np.flatnonzero(upper.astype(np.float64) - lower > _ROUNDING * reach)
    after = np.searchsorted(gaps, np.searchsorted(values, quantiles))  # the first gap at or above each quantile
    chosen = np.unique(gaps[after[after < len(gaps)]])
    middle = (0.5 * (lower[chosen].astype(np.float64) + upper[chosen])).astype(np.float32)
    bounds: Numbers = np.where(middle < upper[chosen], middle, lower[chosen])  # of neighbours in float32 the lower one
    return bounds


def _weights(ids_RL: Ids, several: bool) -> Floats:
    if not several:
        return np.ones(ids_RL.shape)
    present_RL = ids_RL != MISSING_ID
    weights_RL: Floats = present_RL / np.maximum(present_RL.sum(1, keepdims=True), 1)
    return weights_RL


def _tamed(numbers_R: Floats) -> Floats:
    """sign(x) log(1 + |x|): a raw number may be of any size."""
    return np.sign(numbers_R) * np.log1p(np.abs(numbers_R))


# Of a multi-valued field trees see how many values there are, and which of the most frequent ones.
_SHOWN_VALUES = 32


def tree_inputs(schema: Schema, ids_RC: Ids, numeric_RN: Numbers) -> npt.NDArray[np.float64]:
    """(R, inputs): ids of categorical fields, NaN where missing; numbers; values of multi-valued fields."""
    columns: list[npt.NDArray[Any]] = []
    for field, place in zip(schema.categorical, schema.id_columns, strict=True):
        ids_RL = ids_RC[:, place]
        if not isinstance(field, MultiValuedField):
            columns.append(np.where(ids_RL[:, 0] == MISSING_ID, np.nan, ids_RL[:, 0]))
            continue
        columns.append((ids_RL != MISSING_ID).sum(1))
        columns += [(ids_RL == token).any(1) for token in _shown_tokens(field)]
    columns += [numeric_RN[:, index] for index in range(numeric_RN.shape[1])]
    return np.stack([column.astype(np.float64) for column in columns], axis=1)


def tree_categories(schema: Schema) -> list[int]:
    """Which inputs of `tree_inputs` are categories."""
    found, place = [], 0
    for field in schema.categorical:
        if isinstance(field, MultiValuedField):
            place += 1 + len(_shown_tokens(field))
        else:
            found.append(place)
            place += 1
    return found


def _shown_tokens(field: MultiValuedField) -> Sequence[int]:
    return range(1, min(field.vocabulary_size, _SHOWN_VALUES + 2))
