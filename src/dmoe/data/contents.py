"""What the encoded rows of a data set hold, by split and update: values, unseen values, labels.

V ids (of a categorical field) or quantile buckets (of a numeric one).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.data.base import Base
from dmoe.data.coded import Column, Numbers
from dmoe.data.config import SPLITS
from dmoe.data.quantiles import bucket_of, quantile_edges
from dmoe.data.telling import Integers, jensen_shannon, mutual_information
from dmoe.errors import DataError
from dmoe.schema import FIRST_TOKEN_ID, MISSING_ID, OOV_ID, CategoricalField

# Rarer tokens are one bucket: single ones say nothing about a shift.
FREQUENT_TOKENS = 1000
NUMBER_BUCKETS = 20
BLOCKS = 40


@dataclass(frozen=True, slots=True)
class Group:
    """The shards that came with one preparation or update and belong to one split."""

    name: str
    parts: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """`counts` and `positives` by field, each (V,); `blocks`: rows and positives of consecutive rows."""

    group: Group
    rows: int
    positives: int
    counts: dict[str, Integers]
    positive_counts: dict[str, Integers]
    blocks: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class FieldDrift:
    """`shift`: Jensen–Shannon divergence from the first group in bits, `chance` what equal distributions show;
    `unseen` and `missing`: shares of rows (of values, of a multi-valued field), None for numeric fields."""

    name: str
    shift: float
    chance: float
    unseen: float | None
    missing: float | None


def groups_of(data: Base) -> list[Group]:
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
                groups.append(Group(name, tuple(parts[start:stop])))
    if not groups:
        raise DataError(f"{data.folder}: holds no part-*.parquet; prepare the data again")
    return groups


def read_contents(data: Base, groups: list[Group]) -> list[Contents]:
    """The contents of every group; numeric fields in buckets of equal rows of the first group.

    Raises: DataError if a file is damaged.
    """
    try:
        edges = {
            field.name: quantile_edges(partial(_numbers, groups[0], field.name), NUMBER_BUCKETS)
            for field in data.schema.numeric
        }
        return [_contents(data, group, edges) for group in groups]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{data.folder}: damaged ({str(error).splitlines()[0]}); prepare the data again") from None


def _numbers(group: Group, name: str) -> Iterator[Numbers]:
    for part in group.parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(1 << 17, columns=[name]):
                yield batch.column(0).to_numpy().astype(np.float64)


def _contents(data: Base, group: Group, edges: dict[str, tuple[float, ...]]) -> Contents:
    sizes = {
        field.name: min(field.vocabulary_size, FIRST_TOKEN_ID + FREQUENT_TOKENS + 1)
        if isinstance(field, CategoricalField)
        else len(edges[field.name]) + 1
        for field in data.schema.fields
    }
    counts = {name: np.zeros(size, dtype=np.int64) for name, size in sizes.items()}
    positive_counts = {name: np.zeros(size, dtype=np.int64) for name, size in sizes.items()}
    labels: list[npt.NDArray[np.uint8]] = []
    for part in group.parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(1 << 17):
                clicked = batch.column(data.schema.label).to_numpy().astype(bool)
                labels.append(clicked.astype(np.uint8))
                for name, size in sizes.items():
                    values, of_click = _values(batch.column(name), clicked)
                    if name in edges:
                        values = bucket_of(values.astype(np.float64), edges[name])
                    values = np.minimum(values, size - 1)
                    counts[name] += np.bincount(values, minlength=size)
                    positive_counts[name] += np.bincount(values[of_click], minlength=size)
    whole = np.concatenate(labels)
    blocks = [(len(block), int(block.sum())) for block in np.array_split(whole, min(BLOCKS, len(whole)))]
    return Contents(group, len(whole), int(whole.sum()), counts, positive_counts, blocks)


def _values(column: Column, clicked_N: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The values, and which belong to a click; a row of a multi-valued field gives all of its own, or a missing one."""
    if not pa.types.is_list(column.type):
        return column.to_numpy(), clicked_N
    counts_N = np.diff(column.offsets.to_numpy())
    values = column.flatten().to_numpy(zero_copy_only=False)
    empty = counts_N == 0
    return (
        np.concatenate([values, np.full(int(empty.sum()), MISSING_ID, np.int32)]),
        np.concatenate([np.repeat(clicked_N, counts_N), clicked_N[empty]]),
    )


def drift(data: Base, reference: Contents, other: Contents) -> list[FieldDrift]:
    """How each field of `other` differs from `reference`, the most shifted above chance first."""
    found = []
    for field in data.schema.fields:
        first, second = reference.counts[field.name], other.counts[field.name]
        used = int(np.count_nonzero(first + second))
        # The mean divergence of two samples of one distribution over `used` values.
        chance = (used - 1) * (1 / reference.rows + 1 / other.rows) / (8 * np.log(2))
        shares = second / max(int(second.sum()), 1)
        categorical = isinstance(field, CategoricalField)
        found.append(
            FieldDrift(
                field.name,
                jensen_shannon(first, second),
                float(chance),
                float(shares[OOV_ID]) if categorical else None,
                float(shares[MISSING_ID]) if categorical else None,
            )
        )
    return sorted(found, key=lambda one: one.chance - one.shift)


def information(contents: Contents) -> dict[str, float]:
    """Bits that each field says about the label."""
    return {
        name: mutual_information(counts, contents.positive_counts[name]) for name, counts in contents.counts.items()
    }
