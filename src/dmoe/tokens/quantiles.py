"""Exact quantiles of any number of values in bounded memory.

K boundaries looked for at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.values.coded_columns import CodedColumn, Column, Numbers

_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS


def quantile_edges(training: Callable[[], Iterable[Numbers]], buckets: int) -> tuple[float, ...]:
    """The 1/buckets, 2/buckets, … quantiles of the values that are no NaN, equal ones once, in rising order.

    The quantile q is the least value with at least a share q of all values at or below it. `training()` goes
    through the values, chunk by chunk; it is called five times.
    """
    total = sum(int(np.count_nonzero(~np.isnan(numbers))) for numbers in training())
    if not total:
        return ()
    ranks = [-(-total * step // buckets) - 1 for step in range(1, buckets)]
    return tuple(dict.fromkeys(_at_ranks(training, ranks)))


def bucket_of(numbers_N: Numbers, edges: Sequence[float]) -> npt.NDArray[np.int32]:
    """The number of edges below each value, -1 for NaN."""
    buckets = np.searchsorted(np.array(edges, dtype=np.float64), numbers_N, side="left").astype(np.int32)
    buckets[np.isnan(numbers_N)] = -1
    return buckets


def _at_ranks(training: Callable[[], Iterable[Numbers]], ranks: Sequence[int]) -> list[float]:
    """The values at these positions, from 0, of all values in rising order.

    A radix search: each pass counts the next 16 bits of the keys that agree with a searched one so far.
    """
    found_K = np.zeros(len(ranks), dtype=np.uint64)
    left_K = np.array(ranks, dtype=np.int64)
    for shift in range(64 - _DIGIT_BITS, -1, -_DIGIT_BITS):
        prefixes = np.unique(found_K)
        counts = np.zeros(len(prefixes) * _DIGITS, dtype=np.int64)
        for keys in _keys(training()):
            # A shift by all 64 bits is not defined, hence in two.
            heads = keys >> np.uint64(shift) >> np.uint64(_DIGIT_BITS)
            place = np.minimum(np.searchsorted(prefixes, heads), len(prefixes) - 1)
            same = prefixes[place] == heads
            digits = (keys[same] >> np.uint64(shift)).astype(np.int64) & (_DIGITS - 1)
            counts += np.bincount(place[same] * _DIGITS + digits, minlength=len(counts))
        up_to = np.cumsum(counts.reshape(-1, _DIGITS), axis=1)
        for index, place in enumerate(np.searchsorted(prefixes, found_K)):
            digit = int(np.searchsorted(up_to[place], left_K[index], side="right"))
            left_K[index] -= up_to[place, digit - 1] if digit else 0
            found_K[index] = (found_K[index] << np.uint64(_DIGIT_BITS)) | np.uint64(digit)
    found: list[float] = _values(found_K).tolist()
    return found


_SIGN = np.uint64(1 << 63)


def _keys(blocks: Iterable[Numbers]) -> Iterator[npt.NDArray[np.uint64]]:
    """Unsigned integers in the order of the values: the bits, all flipped where negative, else the sign bit."""
    for numbers in blocks:
        # Adding zero turns -0.0 into 0.0: one value must have one key.
        bits = (numbers[~np.isnan(numbers)] + 0.0).view(np.uint64)
        yield np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _values(keys: npt.NDArray[np.uint64]) -> Numbers:
    return np.where(keys & _SIGN, keys & ~_SIGN, ~keys).view(np.float64)


def bucket_tokens(edges: Sequence[float]) -> Column:
    """The token of each bucket between these edges: its number in digits."""
    return pa.array([str(bucket) for bucket in range(len(edges) + 1)], pa.string())


def coded_buckets(numbers_N: Numbers, edges: Sequence[float]) -> CodedColumn:
    """The values as tokens of their buckets, missing where NaN."""
    return CodedColumn(bucket_of(numbers_N, edges), bucket_tokens(edges))
