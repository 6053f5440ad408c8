"""How the rows of a log are best split, and which labels are too rare for that.

N rows that were read.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import chi2

from dmoe.inspection.columns import TextColumn
from dmoe.inspection.information import chance_divergence, jensen_shannon
from dmoe.inspection.kinds import Found
from dmoe.inspection.log_labels import LogLabel
from dmoe.inspection.times import named_like_a_time

_FEW_OF_A_CLASS = 1000
_BLOCKS = 20
_FREQUENT = 1000
# Shares of train and of the two splits that are held out, as data.yaml has them if it says nothing.
_TRAIN, _HELD = 0.8, 0.1
# By chance none of so many expected rows of a class comes about once in a thousand times.
_FEWEST_HELD = 7


def split_of(
    columns: Mapping[str, TextColumn], found: Sequence[Found], labels_N: npt.NDArray[np.int64]
) -> tuple[dict[str, Any], str]:
    """How to split the rows, and why."""
    few = min(int(labels_N.sum()), int(len(labels_N) - labels_N.sum()))
    if few < _FEW_OF_A_CLASS:
        return {"kind": "stratified"}, f"{few:,} rows of the rarer class"
    by_time = [one for one in found if one.times is not None and not one.facts.missing]
    for one in by_time:
        assert one.times is not None
        by_moment = {"kind": "time", "column": one.facts.name, "format": one.times.format}
        if one.times.ordered and _fewest_held(labels_N, by_moment, columns, found):
            return by_moment, "the last rows in time are the test"
    tenths = [int(part.sum()) for part in np.array_split(labels_N, 10)]
    sizes = [len(part) for part in np.array_split(labels_N, 10)]
    mixed = all(20 <= clicks <= size - 20 for clicks, size in zip(tenths, sizes, strict=True))
    for one in by_time:
        assert one.times is not None
        if one.times.rising(columns[one.facts.name]) > 0.999 and mixed:
            return {"kind": "ordered"}, f"the rows follow '{one.facts.name}', some of whose times name a zone"
    rising = _rising(columns, found)
    if rising is not None and mixed:
        return {"kind": "ordered"}, f"the rows follow '{rising}'"
    changing = _changing(columns, found, labels_N)
    if changing is not None and mixed:
        return {"kind": "ordered"}, f"the rows have an order: {changing} changes along them"
    if by_time:
        return {"kind": "stratified"}, f"some times of '{by_time[0].facts.name}' name a zone and some do not"
    return {"kind": "stratified"}, "the rows show no order"


def _rising(columns: Mapping[str, TextColumn], found: Sequence[Found]) -> str | None:
    """A column of numbers that is named like a time and falls in hardly any row, though it has no format of one."""
    for one in found:
        if one.times is not None or one.facts.missing or not named_like_a_time(one.facts.name):
            continue
        column = columns[one.facts.name]
        try:
            numbers_V = column.texts.cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:  # texts
            continue
        steps = np.diff(numbers_V[column.codes_N])
        if len(steps) and (steps >= 0).mean() > 0.999 and (steps > 0).any():
            return one.facts.name
    return None


def _changing(columns: Mapping[str, TextColumn], found: Sequence[Found], labels_N: npt.NDArray[np.int64]) -> str | None:
    """What changes from the first to the last rows far more than chance."""
    blocks = np.array_split(labels_N, _BLOCKS)
    rate = float(labels_N.mean())
    excess = sum((float(block.sum()) - len(block) * rate) ** 2 / (len(block) * rate * (1 - rate)) for block in blocks)
    if chi2.sf(excess, _BLOCKS - 1) < 1e-9:
        return "the label rate"
    half = len(labels_N) // 2
    for one in found:
        if one.facts.kind != "categorical":
            continue
        column = columns[one.facts.name]
        codes_N = np.where(column.codes_N < 0, len(column.texts), column.codes_N)
        rank_V = np.empty(len(column.texts) + 1, dtype=np.int64)
        rank_V[np.argsort(-np.append(column.counts_V, 0), kind="stable")] = np.arange(len(rank_V))
        places = np.minimum(rank_V[codes_N], _FREQUENT)
        first, second = (np.bincount(part, minlength=_FREQUENT + 1) for part in (places[:half], places[half:]))
        if jensen_shannon(first, second) > 2 * chance_divergence(first, second) + 0.002:
            return f"'{one.facts.name}'"
    return None


def too_rare(
    labels: Sequence[LogLabel], split: Mapping[str, Any], columns: Mapping[str, TextColumn], found: Sequence[Found]
) -> list[str]:
    """The labels after the main one of which a held-out split may lack a class."""
    return [one.name for one in labels[1:] if _fewest_held(one.labels_N, split, columns, found) < _FEWEST_HELD]


def _fewest_held(
    labels_N: npt.NDArray[np.int64],
    split: Mapping[str, Any],
    columns: Mapping[str, TextColumn],
    found: Sequence[Found],
) -> int:
    """Rows of the rarer class in the held-out split that has least of it; of drawn splits the mean."""
    if split["kind"] not in ("time", "ordered"):
        return int(_HELD * min(int((labels_N == one).sum()) for one in (0, 1)))
    order_N = np.arange(len(labels_N))
    if split["kind"] == "time":
        times = next(one.times for one in found if one.facts.name == split["column"])
        assert times is not None
        order_N = np.argsort(times.moments_V[columns[split["column"]].codes_N], kind="stable")
    ends = [round(share * len(order_N)) for share in (_TRAIN, _TRAIN + _HELD, 1.0)]
    parts = [labels_N[order_N[start:end]] for start, end in pairwise(ends)]
    return min(int((part == one).sum()) for part in parts for one in (0, 1))
