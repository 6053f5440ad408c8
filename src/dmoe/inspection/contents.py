"""What the encoded rows of a data set hold, by split and update: values, unseen values, labels.

V ids (of a categorical field) or quantile buckets (of a numeric one).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.config.data import SPLITS
from dmoe.errors import DataError
from dmoe.inspection.information import Integers, chance_divergence, jensen_shannon, mutual_information
from dmoe.inspection.label_contents import LabelContents, LabelPair, LabelTally, pairs_of
from dmoe.schema import FIRST_TOKEN_ID, MISSING_ID, OOV_ID, UNKNOWN, CategoricalField, MultiValuedField
from dmoe.shards.folder import DataFolder
from dmoe.tokens.quantiles import quantile_edges
from dmoe.tokens.unseen import Finding, is_far_above, merging_fields, source_columns
from dmoe.values.coded_columns import Column, Numbers

# Rarer tokens are one bucket: single ones say nothing about a shift.
FREQUENT_TOKENS = 1000
NUMBER_BUCKETS = 20


@dataclass(frozen=True, slots=True)
class Group:
    """The shards that came with one preparation, or with the update numbered `update`, and belong to one split."""

    name: str
    parts: tuple[Path, ...]
    update: int = 0


@dataclass(frozen=True, slots=True)
class Contents:
    """`counts` by field, each (V,); `labels` by name, the main one first, and `pairs` of them.

    Of categorical fields, `unseen` and `missing` count rows with a value out of vocabulary and without values.
    `design` of multi-valued fields: how much more the counts vary than those of as many values drawn one by one,
    the values of a row being drawn together (the design effect of Kish, 1965).
    """

    group: Group
    rows: int
    counts: dict[str, Integers]
    labels: dict[str, LabelContents]
    pairs: list[LabelPair]
    unseen: dict[str, int]
    missing: dict[str, int]
    design: dict[str, float]


@dataclass(frozen=True, slots=True)
class FieldDrift:
    """`shift`: Jensen–Shannon divergence from the first group in bits, `chance` what equal distributions show;
    `unseen` and `missing`: shares of rows with a value out of vocabulary and without any, None for numeric fields."""

    name: str
    shift: float
    chance: float
    unseen: float | None
    missing: float | None


def groups_of(data: DataFolder) -> list[Group]:
    """The splits, each with the rows of every update apart, in this order.

    Raises: DataError if a split is empty.
    """
    updates = data.summary.get("updates", [])
    groups = []
    for split in SPLITS:
        parts = sorted((data.folder / split).glob("part-*.parquet"))
        starts = [0, *(update["first_parts"].get(split, len(parts)) for update in updates), len(parts)]
        # An update without rows of this split starts where the next one does.
        for index in range(len(starts) - 2, 0, -1):
            starts[index] = min(starts[index], starts[index + 1])
        for number, (start, stop) in enumerate(pairwise(starts)):
            if start < stop:
                name = split if number == 0 else f"{split}, update {number}"
                groups.append(Group(name, tuple(parts[start:stop]), number))
    if not groups:
        raise DataError(f"{data.folder}: holds no part-*.parquet; prepare the data again")
    return groups


def read_contents(data: DataFolder, groups: list[Group]) -> list[Contents]:
    """The contents of every group; numeric fields in buckets of equal rows of the first group.

    Raises: DataError if a file is damaged.
    """
    try:
        edges = {field.name: _edges(groups[0], field.name) for field in data.schema.numeric}
        return [_contents(data, group, edges) for group in groups]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{data.folder}: damaged ({str(error).splitlines()[0]}); prepare the data again") from None


def _edges(group: Group, name: str) -> Numbers:
    """Quantiles of a numeric field in these rows, its least and largest value among them."""
    ends = [(float(numbers.min()), float(numbers.max())) for numbers in _numbers(group, name) if len(numbers)]
    quantiles = quantile_edges(partial(_numbers, group, name), NUMBER_BUCKETS)
    return np.unique([*quantiles, *(end for pair in zip(*ends, strict=True) for end in (min(pair), max(pair)))])


def number_buckets(numbers_N: Numbers, edges: Numbers) -> Integers:
    """The place of each number among the edges, each edge a place of its own: 2 * edges + 1 of them.

    A value that much of a field has (a constant, or 0 of a count) is an edge: what falls on it is then told from what
    is below it.
    """
    places = np.searchsorted(edges, numbers_N, side="left")
    found: Integers = (2 * places + (edges[np.minimum(places, len(edges) - 1)] == numbers_N)).astype(np.int64)
    return found


def _numbers(group: Group, name: str) -> Iterator[Numbers]:
    for part in group.parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(1 << 17, columns=[name]):
                yield batch.column(name).to_numpy().astype(np.float64)


@dataclass
class _Values:
    """Counts of one categorical field, added up batch by batch; the sums make its design effect."""

    size: int
    unseen: int = 0
    missing: int = 0

    def __post_init__(self) -> None:
        self.squares_V = np.zeros(self.size, dtype=np.float64)
        self.products_V = np.zeros(self.size, dtype=np.float64)
        self.lengths_squared = 0.0

    def add(self, values_E: npt.NDArray[Any], row_of_E: npt.NDArray[Any], rows: int, several: bool) -> None:
        self.unseen += len(np.unique(row_of_E[values_E == OOV_ID])) if several else int((values_E == OOV_ID).sum())
        self.missing += int((values_E == MISSING_ID).sum())
        if several:
            lengths = np.bincount(row_of_E, minlength=rows)
            pairs, times = np.unique(row_of_E * np.int64(self.size) + values_E, return_counts=True)
            self.squares_V += np.bincount(pairs % self.size, weights=times.astype(np.float64) ** 2, minlength=self.size)
            self.products_V += np.bincount(values_E, weights=lengths[row_of_E], minlength=self.size)
            self.lengths_squared += float((lengths.astype(np.float64) ** 2).sum())

    def design(self, counts_V: Integers) -> float:
        """Σ over values of the variance of its count, given that rows are drawn, to that if values were."""
        used = counts_V > 0
        total, counts = float(counts_V.sum()), counts_V[used]
        shares = counts / total
        varied = self.squares_V[used] - 2 * shares * self.products_V[used] + shares**2 * self.lengths_squared
        alone = float((1 - shares).sum())
        return float((varied / counts).sum()) / alone if alone > 0 else 1.0


def _contents(data: DataFolder, group: Group, edges: dict[str, Numbers]) -> Contents:
    sizes = {
        field.name: min(field.vocabulary_size, FIRST_TOKEN_ID + FREQUENT_TOKENS + 1)
        if isinstance(field, CategoricalField)
        else 2 * len(edges[field.name]) + 1
        for field in data.schema.fields
    }
    counts = {name: np.zeros(size, dtype=np.int64) for name, size in sizes.items()}
    tallies = {task.name: LabelTally(sizes) for task in data.schema.tasks}
    several = {field.name: isinstance(field, MultiValuedField) for field in data.schema.categorical}
    found = {name: _Values(sizes[name]) for name in several}
    num_rows = 0
    for part in group.parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(1 << 17):
                num_rows += batch.num_rows
                for label, tally in tallies.items():
                    tally.add_labels(batch.column(label).fill_null(UNKNOWN).to_numpy())
                for name, size in sizes.items():
                    values, rows = row_values(batch.column(name))
                    if name in edges:
                        values = number_buckets(values.astype(np.float64), edges[name])
                    values = np.minimum(values, size - 1)
                    counted = np.bincount(values, minlength=size)
                    counts[name] += counted
                    for tally in tallies.values():
                        tally.add(name, values, rows, counted)
                    if name in found:
                        found[name].add(values, rows, batch.num_rows, several[name])
    return Contents(
        group,
        num_rows,
        counts,
        {label: tally.contents() for label, tally in tallies.items()},
        pairs_of({label: tally.labels() for label, tally in tallies.items()}),
        {name: one.unseen for name, one in found.items()},
        {name: one.missing for name, one in found.items()},
        {name: one.design(counts[name]) for name, one in found.items() if several[name]},
    )


def row_values(column: Column) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The values and the row of each; a row of a multi-valued field gives all of its own, or a missing one."""
    if not pa.types.is_list(column.type):
        return column.to_numpy(), np.arange(len(column))
    counts_N = np.diff(column.offsets.to_numpy())
    values = column.flatten().to_numpy(zero_copy_only=False)
    empty = np.flatnonzero(counts_N == 0)
    return (
        np.concatenate([values, np.full(len(empty), MISSING_ID, np.int32)]),
        np.concatenate([np.repeat(np.arange(len(counts_N)), counts_N), empty]),
    )


def drift(data: DataFolder, reference: Contents, other: Contents) -> list[FieldDrift]:
    """How each field of `other` differs from `reference`, the most shifted above chance first."""
    found = []
    for field in data.schema.fields:
        name = field.name
        first, second = reference.counts[name], other.counts[name]
        # Sampling noise goes with the values that were drawn, more or less of them as those of a row hang together.
        noise = [(one.design.get(name, 1.0), 1 / int(one.counts[name].sum())) for one in (reference, other)]
        wider = sum(design * share for design, share in noise) / sum(share for _, share in noise)
        categorical = isinstance(field, CategoricalField)
        found.append(
            FieldDrift(
                name,
                jensen_shannon(first, second),
                chance_divergence(first, second) * wider,
                other.unseen[name] / other.rows if categorical else None,
                other.missing[name] / other.rows if categorical else None,
            )
        )
    return sorted(found, key=lambda one: one.chance - one.shift)


def far_above(data: DataFolder, contents: list[Contents]) -> list[tuple[str, Finding]]:
    """By group of rows, the fields far above what the first train and valid rows showed (`dmoe.tokens.unseen`).

    The first rows of later splits are judged by their encoded values; those of an update as `prepare --update` found
    them, before its new values became tokens. Of numeric fields encoded rows do not tell which are missing.
    """
    shown = [one for one in contents if one.group.name in ("train", "valid")] or contents[:1]
    columns, merging = source_columns(data.schema), merging_fields(data.schema)
    found = []
    for one in contents:
        if one in shown or one.group.update:
            continue
        for name in one.unseen:
            if name not in merging:
                kinds = _shares(one, name)
                expected = [_shares(other, name) for other in shown]
                found += [
                    (one.group.name, Finding(name, columns.get(name, name), kind, count, of, share))
                    for kind, (count, of) in kinds.items()
                    for share in [max(other[kind][0] / max(other[kind][1], 1) for other in expected)]
                    if is_far_above(count, of, share)
                ]
    for number, update in enumerate(data.summary.get("updates", []), 1):
        found += [(f"update {number}", Finding(**one)) for one in update["far_above"]]
    return found


def _shares(contents: Contents, name: str) -> dict[Literal["unseen", "missing"], tuple[int, int]]:
    """Unseen values and values; rows without values and rows."""
    counts, missing = contents.counts[name], contents.missing[name]
    return {"unseen": (int(counts[OOV_ID]), int(counts.sum()) - missing), "missing": (missing, contents.rows)}


def information(contents: Contents, label: str) -> dict[str, float]:
    """Bits that each field says about a label, in the rows where it is known."""
    known = contents.labels[label]
    return {name: mutual_information(counts, known.positive_counts[name]) for name, counts in known.counts.items()}
