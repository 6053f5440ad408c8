"""How often each label is known, 1, unknown and in contradiction, by domain and split: counted with the rows.

T labels, S domains (one where the schema has none).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.config.data import SPLITS
from dmoe.schema import Schema

# (T, S, 3 splits, 4): rows with a label of 0, of 1 and unknown; those of them that contradict.
LabelCounts = npt.NDArray[np.int64]
_CONTRADICTION = 3


def count_labels(
    labels: Sequence[npt.NDArray[np.uint8]],
    contradicts: Iterable[npt.NDArray[np.bool_]],
    split_codes_N: npt.NDArray[np.uint8],
    domains_N: npt.NDArray[np.int64] | None,
    num_domains: int,
) -> LabelCounts:
    """Of some rows; of each label its values and contradictions in them, (N,) each."""
    place_N = split_codes_N.astype(np.int64)
    if domains_N is not None:
        place_N += 3 * domains_N
    counts = np.zeros((len(labels), num_domains, 3, 4), dtype=np.int64)
    for task, (labels_N, contradicts_N) in enumerate(zip(labels, contradicts, strict=True)):
        size = num_domains * 3 * 4
        found = np.bincount(place_N * 4 + labels_N, minlength=size)
        found += np.bincount(place_N[contradicts_N] * 4 + _CONTRADICTION, minlength=size)
        counts[task] = found.reshape(num_domains, 3, 4)
    return counts


def are_counted(schema: Schema) -> bool:
    """Whether summary.json says more of the labels than the rows and positives of each split."""
    return bool(schema.labels) or schema.domain is not None


def label_values(schema: Schema, counts: LabelCounts, splits: Iterable[str]) -> dict[str, Any]:
    """What summary.json says of each label, by split and by domain and split."""
    wanted = {name: SPLITS.index(name) for name in splits}
    found: dict[str, Any] = {}
    for task, counts_S34 in zip(schema.tasks, counts, strict=True):
        whole = counts_S34.sum(0)
        found[task.name] = {"splits": {name: _values(whole[code]) for name, code in wanted.items()}}
        if schema.domain is not None:
            found[task.name]["domains"] = {
                domain: {name: _values(one[code]) for name, code in wanted.items()}
                for domain, one in zip(schema.domain.names, counts_S34, strict=True)
            }
    return found


def _values(counts_4: npt.NDArray[np.int64]) -> dict[str, int]:
    negatives, positives, unknown, contradictions = counts_4.tolist()
    return {
        "known": negatives + positives,
        "positives": positives,
        "unknown": unknown,
        "contradictions": contradictions,
    }
