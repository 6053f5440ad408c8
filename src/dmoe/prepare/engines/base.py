"""What counts, sorts and joins values: engines that all give the same rows in the same order.

Everything else — what a row is, which values are kept, which id each gets, and the files — is not theirs, so a data
set does not depend on the engine that made it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import pyarrow as pa

from dmoe.machine.ordered_pool import OrderedPool

T = TypeVar("T")
R = TypeVar("R")
EngineName = Literal["duckdb", "polars", "spark"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`folder` is for the engine's own files. `spark_master` is where Spark runs, by default on this machine."""

    name: EngineName
    memory_bytes: int
    threads: int
    spark_master: str | None
    folder: Path


@dataclass(frozen=True, slots=True)
class Counted:
    """The distinct values that were counted. `new`: (value, count) of the values that have no id yet and
    are frequent enough, by falling count, then by UTF-8 bytes; `known`: (id, count) of the others that have
    one."""

    distinct: int
    new: Iterator[pa.RecordBatch]
    known: Iterator[pa.RecordBatch]


class CountingEngine(Protocol):
    """Text is compared by its UTF-8 bytes. Streams are read once, and before the next call."""

    def map(self, function: Callable[[T], R], items: Iterable[T], pool: OrderedPool) -> Iterator[R]:
        """`function` of each item, in order; on `pool`, or where the engine has its processors."""
        ...

    def count(self, counted: pa.RecordBatchReader, min_count: int, known: pa.RecordBatchReader) -> Counted:
        """Sums (value, count) rows by value; `known` is (value, id)."""
        ...

    def look_up(self, placed: pa.RecordBatchReader, ids: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        """(position, id) of the (position, value) rows whose value is among the (value, id) rows, in any order."""
        ...

    def order(self, times: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        """The `row` of (row, time) rows by time, then by row."""
        ...


def on_pool(function: Callable[[T], R], items: Iterable[T], pool: OrderedPool) -> Iterator[R]:
    """`CountingEngine.map` of an engine in this process."""
    return pool.map(function, items)
