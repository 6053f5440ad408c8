"""What encoded rows say of each label: how often it is known and 1, in which values, and how often with another.

T labels, V values of a field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.inspection.information import Integers
from dmoe.schema import UNKNOWN

BLOCKS = 40


@dataclass(frozen=True, slots=True)
class LabelContents:
    """The rows where a label is `known` and those of them where it is 1: `counts` and `positive_counts` by field, each
    (V,); `blocks`: the same of consecutive rows."""

    known: int
    positives: int
    counts: Mapping[str, Integers]
    positive_counts: Mapping[str, Integers]
    blocks: list[tuple[int, int]]

    @property
    def rate(self) -> float | None:
        """The label rate, None where it is known nowhere."""
        return self.positives / self.known if self.known else None


class LabelTally:
    """Adds up `LabelContents`, batch by batch."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._counts = {name: np.zeros(size, dtype=np.int64) for name, size in sizes.items()}
        self._positives = {name: np.zeros(size, dtype=np.int64) for name, size in sizes.items()}
        self._labels: list[npt.NDArray[np.uint8]] = []

    def add_labels(self, labels_N: npt.NDArray[np.uint8]) -> None:
        """Those of the next rows, 0, 1 or `UNKNOWN`."""
        self._labels.append(labels_N)

    def add(self, field: str, values_E: npt.NDArray[Any], row_of_E: npt.NDArray[np.int64], counts_V: Integers) -> None:
        """The values of a field in these rows, and how often each is among them."""
        labels_N, size = self._labels[-1], len(counts_V)
        unknown_E = labels_N[row_of_E] == UNKNOWN
        known_V = counts_V - np.bincount(values_E[unknown_E], minlength=size) if unknown_E.any() else counts_V
        self._counts[field] += known_V
        self._positives[field] += np.bincount(values_E[labels_N[row_of_E] == 1], minlength=size)

    def contents(self) -> LabelContents:
        whole = self.labels()
        blocks = [_counted(block) for block in np.array_split(whole, min(BLOCKS, len(whole)))]
        return LabelContents(*_counted(whole), self._counts, self._positives, blocks)

    def labels(self) -> npt.NDArray[np.uint8]:
        """Those of all rows."""
        return np.concatenate(self._labels)


def _counted(labels_N: npt.NDArray[np.uint8]) -> tuple[int, int]:
    return int((labels_N != UNKNOWN).sum()), int((labels_N == 1).sum())


@dataclass(frozen=True, slots=True)
class LabelPair:
    """Of the `rows` where label `given` is 1 and `label` known, `both` is the number where that is 1 too."""

    given: str
    label: str
    rows: int
    both: int

    @property
    def share(self) -> float | None:
        """P(label = 1 | given = 1), None without rows."""
        return self.both / self.rows if self.rows else None

    def values(self) -> dict[str, Any]:
        return {"given": self.given, "label": self.label, "rows": self.rows, "both": self.both, "share": self.share}


def pairs_of(labels: Mapping[str, npt.NDArray[np.integer]]) -> list[LabelPair]:
    """Every ordered pair of labels, each (N,) of 0, 1 and `UNKNOWN`."""
    found = []
    for given, given_N in labels.items():
        ones = given_N == 1
        for name, labels_N in labels.items():
            if name != given:
                known, both = int((ones & (labels_N != UNKNOWN)).sum()), int((ones & (labels_N == 1)).sum())
                found.append(LabelPair(given, name, known, both))
    return found


def added(pairs: Sequence[Sequence[LabelPair]]) -> list[LabelPair]:
    """The pairs of several groups of rows together."""
    return [
        LabelPair(same[0].given, same[0].label, sum(one.rows for one in same), sum(one.both for one in same))
        for same in zip(*pairs, strict=True)
    ]
