"""What preparing did, counted: `summary.json`."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.config.data import SPLITS
from dmoe.prepare.label_counts import LabelCounts, label_values
from dmoe.prepare.splits import SplitSize
from dmoe.schema import (
    FIRST_TOKEN_ID,
    FORMAT_VERSION,
    MISSING_ID,
    OOV_ID,
    CategoricalField,
    Coverage,
    NumericField,
    Schema,
)
from dmoe.tokens.unseen import Tallied, ValueCounts

# Called with the step ("read", "count" or "write"), the rows (or fields) of it that are done, and their share.
Progress = Callable[[str, int, float], None]

# Field -> (3 splits, 4 kinds): rows without a value; values that are out of vocabulary, tokens, tokens that are new
# with an update.
Tally = dict[str, npt.NDArray[np.int64]]
_MISSING, _OOV, _KNOWN, _NEW = range(4)


@dataclass
class FileTally:
    """Rows and lines of one input file."""

    path: str
    encoded: int = 0
    rejected: int = 0
    blank_lines: int = 0

    def add(self, encoded: int, rejected: int, blank_lines: int) -> None:
        self.encoded += encoded
        self.rejected += rejected
        self.blank_lines += blank_lines


def tally_ids(
    ids: npt.NDArray[np.int32], split_codes: npt.NDArray[np.uint8], old_size: int | None = None
) -> npt.NDArray[np.int64]:
    """(3 splits, 4): the kinds of `Tally`; ids are (N,), or (N, L) of a multi-valued field.

    Args:
        old_size: of the vocabulary before an update.
    """
    kinds = np.minimum(ids, _KNOWN)
    if old_size is not None:
        kinds[ids >= old_size] = _NEW
    codes = split_codes.astype(np.int64)
    if ids.ndim == 1:
        return np.bincount(codes * 4 + kinds, minlength=12).reshape(3, 4)
    tally = np.bincount((codes[:, None] * 4 + kinds).reshape(-1), minlength=12).reshape(3, 4)
    # The values of a row stand first: one without any begins with the padding.
    tally[:, _MISSING] = np.bincount(split_codes[ids[:, 0] == MISSING_ID], minlength=3)
    return tally


def tally_missing(missing: npt.NDArray[np.bool_], split_codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """(3 splits, 4): as `tally_ids` for a numeric field, which has no vocabulary."""
    return tally_ids(np.where(missing, MISSING_ID, FIRST_TOKEN_ID).astype(np.int32), split_codes)


@dataclass
class PrepareSummary:
    """Filled while preparing. `weights`: the sum of them by split, empty without; `distinct`: training values by field;
    `tallies` and `labels`: those of each chunk."""

    files: list[FileTally]
    rejects: dict[str, int]
    splits: dict[str, SplitSize]
    weights: dict[str, float] = field(default_factory=dict)
    distinct: dict[str, int] = field(default_factory=dict)
    tallies: dict[int, Tally] = field(default_factory=dict)
    labels: dict[int, LabelCounts] = field(default_factory=dict)

    def add(self, chunk: int, tally: Tally, labels: LabelCounts | None) -> None:
        """Takes the tallies of a chunk, perhaps once more."""
        self.tallies[chunk] = tally
        if labels is not None:
            self.labels[chunk] = labels

    def values(self, schema: Schema, seconds: float) -> dict[str, Any]:
        """What summary.json says."""
        encoded = sum(tally.encoded for tally in self.files)
        rejected = sum(tally.rejected for tally in self.files)
        values = {
            "format_version": FORMAT_VERSION,
            "rows": {"read": encoded + rejected, "encoded": encoded, "rejected": rejected},
            "splits": {name: self._split(name, size) for name, size in self.splits.items()},
            "rejects": self.rejects,
            "files": [vars(tally) for tally in self.files],
            "fields": {field.name: self._field(field) for field in schema.fields},
            "seconds": round(seconds, 3),
            "rows_per_second": round((encoded + rejected) / seconds),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("dmoe", "duckdb", "pyarrow", "numpy")},
            },
        }
        if self.labels:
            values["labels"] = label_values(schema, np.stack(list(self.labels.values())).sum(0), self.splits)
        if schema.domain is not None:
            other = schema.domain.names[schema.domain.of_id[OOV_ID]]
            values["domain"] = {"field": schema.domain.field, "names": schema.domain.names, "unseen_as": other}
        return values

    def _split(self, name: str, size: SplitSize) -> dict[str, Any]:
        values = {"rows": size.rows, "positives": size.positives, "click_rate": size.positives / max(size.known, 1)}
        return {**values, "weight": self.weights[name]} if self.weights else values

    def against(self, schema: Schema) -> list[dict[str, Any]]:
        """The fields in which the rows of an update are far above what the data set of `schema` showed before."""
        counts = ValueCounts(schema)
        by_field = [self._counts(name).sum(0) for name in counts.fields]
        missing_F, oov_F, known_F, new_F = np.array(by_field).T
        rows = sum(size.rows for size in self.splits.values())
        tallied: Tallied = rows, missing_F, oov_F + known_F + new_F, oov_F + new_F
        return [finding.values() for finding in counts.findings_of(tallied)]

    def _counts(self, name: str) -> npt.NDArray[np.int64]:
        return sum((tally[name] for tally in self.tallies.values()), np.zeros((3, 4), dtype=np.int64))

    def _field(self, field: CategoricalField | NumericField) -> dict[str, Any]:
        counts = self._counts(field.name)
        rows = {name: size.rows for name, size in self.splits.items()}
        values: dict[str, Any] = {"kind": field.kind}
        if isinstance(field, CategoricalField):
            values["distinct_in_train"] = self.distinct[field.name]
            values["vocabulary_size"] = field.vocabulary_size
        of_split = {name: counts[SPLITS.index(name)].tolist() for name in rows}
        values["missing"] = {name: kinds[_MISSING] / rows[name] for name, kinds in of_split.items()}
        if isinstance(field, CategoricalField):
            values["values"] = {name: sum(kinds[_OOV:]) for name, kinds in of_split.items()}
            values["unseen"] = {name: kinds[_OOV] / max(sum(kinds[_OOV:]), 1) for name, kinds in of_split.items()}
        return values


def with_coverage(schema: Schema, values: dict[str, Any]) -> Schema:
    """The schema with what summary.json says of each field."""
    coverage = {
        name: Coverage(unseen=field.get("unseen", {}), missing=field["missing"])
        for name, field in values["fields"].items()
    }
    return schema.model_copy(update={"coverage": coverage})
