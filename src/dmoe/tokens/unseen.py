"""How many values of each field training never saw and how many rows have none, counted wherever rows are scored,
added or trained on from an earlier run; and when that is far more than the rows of training showed.

R rows, C id columns, F fields: the categorical ones, then the numeric ones.
"""

import math
import threading
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dmoe.config.stored import stored_config
from dmoe.schema import MISSING_ID, OOV_ID, Coverage, Schema

Counts = npt.NDArray[np.int64]
Tallied = tuple[int, Counts, Counts, Counts]  # rows; by field: rows without a value, values, unseen values

# Fewer values never warn.
LEAST_VALUES = 30
MARGIN = 0.1
CHANCE = 1e-6

_UNSEEN_HINT = (
    "Were the ids read or written differently? Compare the column with the data that was trained on: type, leading "
    "zeros, a trailing '.0', upper and lower case, spaces"
)
_MISSING_HINT = "Was the column filled and read as in the data that was trained on?"


class UnseenValuesWarning(UserWarning):
    """Far more values of a field were never seen in training, or are missing, than the rows of training showed."""


def limit(expected: float) -> float:
    """The largest share that is not far above an expected one.

    Twice the expected share, and at least ten points more; never beyond half of the way from it to all.
    """
    return min(max(expected + MARGIN, 2 * expected), (1 + expected) / 2)


def is_far_above(count: int, of: int, expected: float) -> bool:
    """Whether `count` of `of` values say that more than `limit(expected)` of all such values are of the kind.

    The chance of as many by a share no larger than the limit must be below one in a million, by the bound
    exp(-of KL(count / of, limit)) on a binomial tail (Chernoff 1952; Hoeffding 1963, theorem 1).
    """
    bound = limit(expected)
    if of < LEAST_VALUES or count <= of * bound:
        return False
    share = count / of
    divergence = share * math.log(share / bound)
    if share < 1:
        divergence += (1 - share) * math.log((1 - share) / (1 - bound))
    return of * divergence > -math.log(CHANCE)


@dataclass(frozen=True, slots=True)
class Finding:
    """A field of which `count` of `of` values are unseen, or rows missing: far above the share `expected`."""

    field: str
    column: str
    kind: Literal["unseen", "missing"]
    count: int
    of: int
    expected: float

    @property
    def share(self) -> float:
        return self.count / self.of

    def values(self) -> dict[str, Any]:
        """As in JSON files."""
        return asdict(self)

    @property
    def name(self) -> str:
        """The field and, where it has another name, the column that it is read from."""
        column = f"column '{self.column}'"
        return column if self.column == self.field else f"field '{self.field}' of {column}"

    def text(
        self,
        unseen: str = "values were never seen in training",
        held_out: str = "training's held-out rows",
        follows: str = "the scores of these rows rest on the other fields",
    ) -> str:
        """The warning in one line: what was `unseen`, whose share is `expected`, and what comes of it."""
        what = unseen if self.kind == "unseen" else "rows have no value"
        hint = _UNSEEN_HINT if self.kind == "unseen" else _MISSING_HINT
        share = f"{100 * self.expected:.1f}".removesuffix(".0")
        return f"{self.name}: {self.count:,} of {self.of:,} {what} ({held_out}: {share} %); {follows}. {hint}"

    def text_of_update(self) -> str:
        """The same of the rows that an update brought."""
        return self.text(
            "values of the new rows were not in the data set before",
            "the held-out rows that it had",
            "runs trained on it know nothing of them",
        )


class ValueCounts:
    """Sums over the rows that were looked at; may be added to from several threads."""

    def __init__(self, schema: Schema) -> None:
        self.categorical = [field.name for field in schema.categorical]
        self.fields = [*self.categorical, *(field.name for field in schema.numeric)]
        self._coverage: Mapping[str, Coverage] = schema.coverage
        self._columns = source_columns(schema)
        self._starts = np.array([columns.start for columns in schema.id_columns], dtype=np.intp)
        self._lengths = np.array([field.length for field in schema.categorical], dtype=np.int64)
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forgets all rows."""
        self.rows = 0
        self.missing_F, self.values_F, self.unseen_F = (np.zeros(len(self.fields), np.int64) for _ in range(3))

    def tallied(self, ids_RC: npt.NDArray[np.integer], missing_N: npt.ArrayLike = ()) -> Tallied:
        """The counts of encoded rows in which missing values have id 0, whatever `missing_as` says.

        Args:
            missing_N: rows without a value of each numeric field.
        """
        rows = len(ids_RC)
        missing_F, values_F, unseen_F = (np.zeros(len(self.fields), np.int64) for _ in range(3))
        number = len(self.categorical)
        if number:
            # The values of a multi-valued field stand first, so a row without any begins with 0.
            empty_C = (ids_RC == MISSING_ID).sum(0)
            missing_F[:number] = empty_C[self._starts]
            values_F[:number] = rows * self._lengths - np.add.reduceat(empty_C, self._starts)
            unseen_F[:number] = np.add.reduceat((ids_RC == OOV_ID).sum(0), self._starts)
        missing_F[number:] = missing_N
        values_F[number:] = rows - missing_F[number:]
        return rows, missing_F, values_F, unseen_F

    def add(self, tallied: Tallied) -> None:
        rows, missing_F, values_F, unseen_F = tallied
        with self._lock:
            self.rows += rows
            self.missing_F += missing_F
            self.values_F += values_F
            self.unseen_F += unseen_F

    def findings(self) -> list[Finding]:
        """The fields far above what training showed, in the order of the fields."""
        return self.findings_of((self.rows, self.missing_F, self.values_F, self.unseen_F))

    def findings_of(self, tallied: Tallied) -> list[Finding]:
        """The same for other rows than those that were added."""
        rows, missing_F, values_F, unseen_F = tallied
        found = []
        for index, name in enumerate(self.fields):
            coverage = self._coverage.get(name)
            if coverage is None:
                continue
            kinds: tuple[tuple[Literal["unseen", "missing"], int, int, float], ...] = (
                ("unseen", int(unseen_F[index]), int(values_F[index]), coverage.expected_unseen),
                ("missing", int(missing_F[index]), rows, coverage.expected_missing),
            )
            found += [
                Finding(name, self._columns.get(name, name), kind, count, of, expected)
                for kind, count, of, expected in kinds
                if is_far_above(count, of, expected)
            ]
        return found

    def values(self) -> list[dict[str, Any]]:
        """The figures of every field, as in JSON files; what training showed is None where it is not known."""
        named = {(one.field, one.kind) for one in self.findings()}
        listed = []
        for index, name in enumerate(self.fields):
            coverage = self._coverage.get(name)
            entry: dict[str, Any] = {"field": name, "rows": self.rows, "missing": int(self.missing_F[index])}
            entry["expected_missing"] = coverage.expected_missing if coverage else None
            if name in self.categorical:
                entry |= {"values": int(self.values_F[index]), "unseen": int(self.unseen_F[index])}
                entry["expected_unseen"] = coverage.expected_unseen if coverage else None
            entry["far_above"] = [kind for kind in ("unseen", "missing") if (name, kind) in named]
            listed.append(entry)
        return listed


def source_columns(schema: Schema) -> dict[str, str]:
    """The raw column of each field; none for a schema that was made without raw data.

    Raises: DataError if the schema does not fit its source.
    """
    if not schema.source:
        return {}
    config = stored_config(schema, Path())
    return {name: config.source_column(name) for name in config.fields.names()}


def merging_fields(schema: Schema) -> set[str]:
    """The fields in whose encoded rows missing values have the id of unseen ones.

    Raises: DataError if the schema does not fit its source.
    """
    if not schema.source:
        return set()
    config = stored_config(schema, Path())
    return {field.name for field in schema.categorical if config.missing_is_oov(field.name)}


def warn(counts: ValueCounts) -> None:
    """One `UnseenValuesWarning` for each finding, at the line that called the caller of this."""
    for finding in counts.findings():
        warnings.warn(finding.text(), UnseenValuesWarning, stacklevel=3)


def missing_rows(numbers: Iterable[npt.NDArray[np.floating]]) -> list[int]:
    """Rows of each column of numbers that have none, written as NaN."""
    return [int(np.isnan(column).sum()) for column in numbers]
