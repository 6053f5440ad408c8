"""Which rows go to train, valid and test: exact counts, whatever the thread count or engine."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from dmoe.config.data import SPLITS, SplitRule
from dmoe.errors import DataError
from dmoe.schema import UNKNOWN

TRAIN, VALID, TEST = range(3)
_BLOCK_ROWS = 1 << 20
_TOP_BITS = 20

SplitCodes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SplitSize:
    """Rows of a split; rows whose main label is 1, and is known."""

    rows: int
    positives: int
    known: int


def split_sizes(num_rows: int, shares: dict[str, Fraction]) -> dict[str, int]:
    """Rows of each split: valid and test are rounded half up, train takes the rest."""
    sizes = {name: int(num_rows * shares[name] + Fraction(1, 2)) for name in ("valid", "test")}
    return {"train": num_rows - sum(sizes.values()), **sizes}


def ordered(num_rows: int, split: SplitRule) -> SplitCodes:
    """First rows train, then valid, then test."""
    sizes = split_sizes(num_rows, split.shares())
    return np.repeat(np.arange(3, dtype=np.uint8), [sizes[name] for name in SPLITS])


def drawn(labels_N: Labels, split: SplitRule) -> SplitCodes:
    """`random`: the rows with the smallest keys are valid, the next test. `stratified`: so in each class, and in the
    rows whose label is unknown.

    A row's key is splitmix64 of its number and the seed, a bijection, so no two rows share one.
    """
    codes = np.full(len(labels_N), TRAIN, dtype=np.uint8)
    groups = [0, 1, UNKNOWN] if split.kind == "stratified" else [None]
    for group in groups:
        total = len(labels_N) if group is None else int(np.count_nonzero(labels_N == group))
        if not total:
            continue
        sizes = split_sizes(total, split.shares())
        counts = (sizes["valid"], sizes["valid"] + sizes["test"])
        last_valid, last_test = _largest_of_smallest(labels_N, group, counts, split.seed)
        for start, stop, key in _key_blocks(len(labels_N), split.seed):
            member = np.ones(len(key), dtype=bool) if group is None else labels_N[start:stop] == group
            block = codes[start:stop]
            if last_test is not None:
                block[member & (key <= last_test)] = TEST
            if last_valid is not None:
                block[member & (key <= last_valid)] = VALID
    return codes


def by_rank(rows_in_order: Iterable[npt.NDArray[np.int64]], num_rows: int, split: SplitRule) -> SplitCodes:
    """The rows given first are train, then valid, then test."""
    sizes = split_sizes(num_rows, split.shares())
    bounds = np.cumsum([sizes[name] for name in SPLITS])
    codes = np.empty(num_rows, dtype=np.uint8)
    rank = 0
    for rows in rows_in_order:
        ranks = np.arange(rank, rank + len(rows))
        codes[rows] = np.searchsorted(bounds, ranks, side="right").astype(np.uint8)
        rank += len(rows)
    return codes


def check_splits(
    codes_N: SplitCodes, labels: Mapping[str, Labels], wanted: Iterable[str], *, required: int | None = None
) -> dict[str, SplitSize]:
    """The size of each split that was asked for; the labels by name, the main one first.

    Raises: DataError if one has no rows, or of one of the first `required` labels (all by default) no row where it is
    known, or only one class.
    """
    counts = {name: _class_counts(codes_N, labels_N) for name, labels_N in labels.items()}
    main = next(iter(counts.values()))
    found: dict[str, SplitSize] = {}
    for name in wanted:
        negatives, positives, unknown = main[SPLITS.index(name)].tolist()
        rows = negatives + positives + unknown
        if rows == 0:
            raise DataError(f"split '{name}' would hold no row of {len(codes_N)}; give more rows or a larger share")
        for label in list(counts)[:required]:
            classes = counts[label][SPLITS.index(name)].tolist()
            _check_classes(name, label if len(counts) > 1 else None, classes, len(codes_N))
        found[name] = SplitSize(rows, positives, negatives + positives)
    return found


def _check_classes(split: str, label: str | None, counts: list[int], total: int) -> None:
    negatives, positives, _ = counts
    if negatives and positives:
        return
    rows = f"{sum(counts)} of {total} rows"
    if not negatives + positives:
        raise DataError(f"label '{label}' is unknown in every row of split '{split}' ({rows}); leave the label out")
    what, known = ("label", "") if label is None else (f"label '{label}'", " where it is known")
    raise DataError(
        f"split '{split}' would hold only rows of {what} {1 if positives else 0}{known} ({rows}); use split kind "
        f"'stratified'{'' if label is None else ' with split.label'}, a larger share or more rows"
    )


def _class_counts(codes_N: SplitCodes, labels_N: Labels) -> npt.NDArray[np.int64]:
    """(3 splits, 3): rows of label 0, 1 and unknown."""
    counts = np.zeros((3, 3), dtype=np.int64)
    for start in range(0, len(codes_N), _BLOCK_ROWS):  # bincount makes 8 bytes of each
        block = slice(start, start + _BLOCK_ROWS)
        counts += np.bincount(codes_N[block] * np.uint8(3) + labels_N[block], minlength=9).reshape(3, 3)
    return counts


def _key_blocks(num_rows: int, seed: int) -> Iterator[tuple[int, int, npt.NDArray[np.uint64]]]:
    salt = _mix(np.array([seed], dtype=np.uint64))
    for start in range(0, num_rows, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, num_rows)
        rows = np.arange(start, stop, dtype=np.uint64)
        yield start, stop, _mix(rows * np.uint64(0x9E3779B97F4A7C15) + salt)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _largest_of_smallest(
    labels_N: Labels, group: int | None, counts: tuple[int, ...], seed: int
) -> list[np.uint64 | None]:
    """For each count, the largest of that many smallest keys of a group; None for a count of 0.

    Two passes, so that memory does not grow with the rows: a histogram of the top bits of all keys, then the
    few keys of the bins that hold the ones looked for.
    """
    shift = np.uint64(64 - _TOP_BITS)
    histogram = np.zeros(1 << _TOP_BITS, dtype=np.int64)

    def blocks() -> Iterator[npt.NDArray[np.uint64]]:
        for start, stop, key in _key_blocks(len(labels_N), seed):
            yield key if group is None else key[labels_N[start:stop] == group]

    for key in blocks():
        histogram += np.bincount((key >> shift).astype(np.int64), minlength=len(histogram))
    up_to = np.cumsum(histogram)
    bins = [int(np.searchsorted(up_to, count)) for count in counts]
    inside: dict[int, list[npt.NDArray[np.uint64]]] = {which: [] for which in bins}
    for key in blocks():
        top = (key >> shift).astype(np.int64)
        for which, parts in inside.items():
            parts.append(key[top == which])
    found: list[np.uint64 | None] = []
    for count, which in zip(counts, bins, strict=True):
        if count == 0:
            found.append(None)
            continue
        keys = np.sort(np.concatenate(inside[which]))
        found.append(keys[count - int(up_to[which] - histogram[which]) - 1])
    return found
