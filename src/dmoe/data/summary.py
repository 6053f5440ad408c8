"""What preparing did, counted: `summary.json`."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.data.config import SPLITS
from dmoe.schema import FORMAT_VERSION, MISSING_ID, OOV_ID, CategoricalField, NumericField, Schema

# Called with the step ("read", "count" or "write"), the rows (or fields) of it that are done, and their share.
Progress = Callable[[str, int, float], None]

# Field -> (3 splits, 3 kinds): missing, out of vocabulary, other.
Tally = dict[str, npt.NDArray[np.int64]]


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


def tally_ids(ids: npt.NDArray[np.int32], split_codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """(3 splits, 3): rows whose id is missing, out of vocabulary, a token.

    Of a multi-valued field: rows without values, with one that is out of vocabulary, with tokens only.
    """
    if ids.ndim == 2:
        ids = np.where((ids == OOV_ID).any(1), OOV_ID, ids.max(1))
    kinds = split_codes.astype(np.int64) * 3 + np.minimum(ids, OOV_ID + 1)
    return np.bincount(kinds, minlength=9).reshape(3, 3)


def tally_missing(missing: npt.NDArray[np.bool_], split_codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """(3 splits, 3): as `tally_ids` for a numeric field, which has no vocabulary."""
    return tally_ids(np.where(missing, MISSING_ID, OOV_ID + 1).astype(np.int32), split_codes)


@dataclass
class Summary:
    """Filled while preparing. `splits`: rows and positives by split; `distinct`: training values by field;
    `tallies`: those of each chunk."""

    files: list[FileTally]
    rejects: dict[str, int]
    splits: dict[str, tuple[int, int]]
    distinct: dict[str, int] = field(default_factory=dict)
    tallies: dict[int, Tally] = field(default_factory=dict)

    def add(self, chunk: int, tally: Tally) -> None:
        """Takes the tally of a chunk, perhaps once more."""
        self.tallies[chunk] = tally

    def values(self, schema: Schema, seconds: float) -> dict[str, Any]:
        """What summary.json says."""
        encoded = sum(tally.encoded for tally in self.files)
        rejected = sum(tally.rejected for tally in self.files)
        return {
            "format_version": FORMAT_VERSION,
            "rows": {"read": encoded + rejected, "encoded": encoded, "rejected": rejected},
            "splits": {
                name: {"rows": rows, "positives": positives, "click_rate": positives / rows}
                for name, (rows, positives) in self.splits.items()
            },
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

    def _field(self, field: CategoricalField | NumericField) -> dict[str, Any]:
        counts = sum((tally[field.name] for tally in self.tallies.values()), np.zeros((3, 3), dtype=np.int64))
        rows = {name: self.splits[name][0] for name in self.splits}
        values: dict[str, Any] = {"kind": field.kind}
        if isinstance(field, CategoricalField):
            values["distinct_in_train"] = self.distinct[field.name]
            values["vocabulary_size"] = field.vocabulary_size
        kinds = ("missing", "oov") if isinstance(field, CategoricalField) else ("missing",)
        for column, kind in enumerate(kinds):
            values[kind] = {name: int(counts[SPLITS.index(name), column]) / rows[name] for name in rows}
        return values
