"""Batches of a prepared split: an exact global shuffle in memory, a bounded block shuffle beyond it.

Shape suffixes: B rows of a batch, R rows of a chunk, window or split, C categorical and N numeric fields.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from dmoe.errors import ConfigError
from dmoe.schema import Schema
from dmoe.shards.batch import Batch
from dmoe.shards.files import UNKNOWN, EncodedRows, ShardFile, find_parts, read_chunks
from dmoe.shards.prefetch import prefetch

CHUNK_ROWS = 65_536
BATCHES_AHEAD = 3
# Beyond memory, the window being emitted and the chunks decoded ahead for the next one exist at once, and
# the next one is copied together out of those chunks.
WINDOWS_AT_ONCE = 3


class SplitReader:
    """The rows of `data`/`split`, in batches, each row once an epoch.

    When the split takes at most `memory_bytes`, it is loaded once and every epoch is one permutation of all
    rows. Otherwise the row groups of the files come in random order through windows of a third of
    `memory_bytes`, each permuted as a whole. Either order depends on the data, `seed`, `epoch` and (beyond
    memory only) `memory_bytes` and `batch_size`, on nothing else. Without `shuffle` rows come in file order.

    Raises: DataError if the split is absent, empty, damaged, or not as schema.json says; ConfigError if an
    argument is out of range.
    """

    def __init__(
        self,
        data: Path,
        split: str,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        memory_bytes: int = 4 << 30,
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        if memory_bytes < 1:
            raise ConfigError(f"memory_bytes must be at least 1, got {memory_bytes}")
        self.schema = Schema.read(data)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self._parts = find_parts(data, split, self.schema)
        self.num_rows = sum(part.num_rows for part in self._parts)
        self.num_batches = -(-self.num_rows // batch_size)
        # ids, numerics and weight, labels, and the position in the epoch's order
        self._order_type: type[np.int32 | np.int64] = np.int32 if self.num_rows <= np.iinfo(np.int32).max else np.int64
        numbers = self.schema.num_ids + len(self.schema.numeric) + (self.schema.weight is not None)
        bytes_per_row = 4 * numbers + len(self.schema.tasks) + np.dtype(self._order_type).itemsize
        self.in_memory = self.num_rows * bytes_per_row <= memory_bytes
        self.used_bytes = self.num_rows * bytes_per_row if self.in_memory else memory_bytes
        window_rows = memory_bytes // WINDOWS_AT_ONCE // bytes_per_row if shuffle else CHUNK_ROWS
        self._window_rows = max(1, window_rows // batch_size) * batch_size
        self._loaded: EncodedRows | None = None
        self._loading = Lock()

    def batches(self, epoch: int = 0, start_batch: int = 0) -> Iterator[Batch]:
        """Batches `start_batch` to `num_batches - 1` of an epoch; the last one may be smaller.

        A thread prepares them ahead; it ends with the iterator, also when that is closed or dropped early.

        Raises: ConfigError if `epoch` or `start_batch` is out of range; DataError, while iterating, if a file
        turns out to be damaged or holds an id beyond its vocabulary.
        """
        if epoch < 0:
            raise ConfigError(f"epoch must be at least 0, got {epoch}")
        if not 0 <= start_batch <= self.num_batches:
            raise ConfigError(f"start_batch must be within 0 to {self.num_batches}, got {start_batch}")
        produce = self._from_memory if self.in_memory else self._from_windows
        return prefetch(produce(epoch, start_batch), depth=BATCHES_AHEAD, name="dmoe-batches")

    def _from_memory(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        rows = self._load()
        order = self._permutation(self.num_rows, epoch) if self.shuffle else None
        yield from self._cut(rows, order, start_batch * self.batch_size)

    def _load(self) -> EncodedRows:
        with self._loading:
            if self._loaded is None:
                loaded = EncodedRows.empty(self.num_rows, self.schema)
                filled = 0
                for chunk in read_chunks(self._blocks(None), self.schema, CHUNK_ROWS):
                    loaded.fill(filled, chunk)
                    filled += len(chunk)
                self._loaded = loaded
            return self._loaded

    def _from_windows(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        skip = start_batch * self.batch_size
        first = skip // self._window_rows
        skip -= first * self._window_rows
        with closing(self._windows(epoch, first)) as windows:
            for number, window in windows:
                order = self._permutation(len(window), epoch, number) if self.shuffle else None
                yield from self._cut(window, order, skip)
                skip = 0
                del window  # before the next one is put together: it is a third of the memory

    def _cut(
        self, rows: EncodedRows, order: NDArray[np.signedinteger] | None, start: int
    ) -> Generator[Batch, None, None]:
        """Batches of `rows` in `order`, from position `start` on."""
        for begin in range(start, len(rows), self.batch_size):
            end = min(begin + self.batch_size, len(rows))
            yield _batch(rows.copy(begin, end) if order is None else rows.take(order[begin:end]))

    def _windows(self, epoch: int, first: int) -> Generator[tuple[int, EncodedRows], None, None]:
        """The epoch's windows from number `first` on; row groups wholly before it are not read."""
        size = self._window_rows
        left = self.num_rows - first * size
        blocks = self._blocks(epoch if self.shuffle else None)
        source = prefetch(
            read_chunks(blocks, self.schema, min(CHUNK_ROWS, size), skip_rows=first * size),
            depth=max(1, size // CHUNK_ROWS),
            name="dmoe-chunks",
        )
        number, chunk = first, None
        with closing(source) as chunks:
            while left > 0:
                window = EncodedRows.empty(min(size, left), self.schema)
                filled = 0
                while filled < len(window):
                    if chunk is None:
                        chunk = next(chunks)
                    use = min(len(chunk), len(window) - filled)
                    window.fill(filled, chunk.slice(0, use))
                    filled += use
                    chunk = chunk.slice(use, len(chunk)) if use < len(chunk) else None
                left -= len(window)
                yield number, window
                del window
                number += 1

    def _blocks(self, epoch: int | None) -> list[tuple[ShardFile, int]]:
        """All row groups: in file order, or in the random order of an epoch."""
        blocks = [(part, group) for part in self._parts for group in range(len(part.group_rows))]
        if epoch is None:
            return blocks
        return [blocks[index] for index in self._permutation(len(blocks), epoch)]

    def _permutation(self, size: int, *stream: int) -> NDArray[np.signedinteger]:
        """A permutation that depends on the seed and on `stream`, (epoch,) or (epoch, window)."""
        # Tuples of different length must not collide, as (0,) and (0, 0) would: say the length.
        generator = np.random.Generator(np.random.PCG64([self.seed, len(stream), *stream]))
        order: NDArray[np.signedinteger] = np.arange(size, dtype=self._order_type)
        generator.shuffle(order)
        return order


def read_once(data: Path, split: str, *, batch_size: int) -> SplitReader:
    """A reader for one pass in file order, which holds a few chunks and not the split.

    Raises: as `SplitReader`.
    """
    return SplitReader(data, split, batch_size=batch_size, memory_bytes=1)


def _batch(rows: EncodedRows) -> Batch:
    """Tensors over the memory of `rows`, which nothing else may use: the consumer may write to it."""
    known_RT = rows.labels_RT != UNKNOWN
    all_known = bool(known_RT.all())
    labels_RT = rows.labels_RT if all_known else np.where(known_RT, rows.labels_RT, 0)
    return Batch(
        ids_BC=torch.from_numpy(rows.ids_RC),
        numeric_BN=torch.from_numpy(rows.numeric_RN),
        labels_BT=torch.from_numpy(labels_RT.astype(np.float32)),
        known_BT=None if all_known else torch.from_numpy(known_RT),
        weights_B=None if rows.weights_R is None else torch.from_numpy(rows.weights_R),
    )
