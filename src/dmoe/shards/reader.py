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
from torch import Tensor

from dmoe.errors import ConfigError
from dmoe.schema import UNKNOWN, Schema
from dmoe.shards.batch import Batch
from dmoe.shards.files import EncodedRows, ShardFile, count_rows, find_parts, read_chunks
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

    With `share` (rank, size) the reader is one of `size` that read a split together, and reads its own rows alone, out
    of no more row groups than those lie in. With `shuffle` each has its part, however large, of every batch that one
    reader would give: the rows of it that are in its range of the split, or of the window. Without, each has its range
    of the batches, and at the end an empty one where others have more. `num_rows` and `num_batches` are those of all.

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
        share: tuple[int, int] = (0, 1),
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
        self.parts = find_parts(data, split, self.schema)
        self.num_rows = count_rows(self.parts)
        self.num_batches = -(-self.num_rows // batch_size)
        self._rank, self._size = share
        # ids, numerics and weight, labels, and the position in the epoch's order
        self._order_type: type[np.int32 | np.int64] = np.int32 if self.num_rows <= np.iinfo(np.int32).max else np.int64
        numbers = self.schema.num_ids + len(self.schema.numeric) + (self.schema.weight is not None)
        bytes_per_row = 4 * numbers + len(self.schema.tasks) + np.dtype(self._order_type).itemsize
        self.in_memory = self.num_rows * bytes_per_row <= memory_bytes
        self.used_bytes = self.num_rows * bytes_per_row if self.in_memory else memory_bytes
        if shuffle:
            self._own = self._of_share(self.num_rows)
        else:
            own = self._of_share(self.num_batches)
            self._own = range(own.start * batch_size, min(own.stop * batch_size, self.num_rows))
        window_rows = memory_bytes // WINDOWS_AT_ONCE // bytes_per_row if shuffle else CHUNK_ROWS
        self._window_rows = max(1, window_rows // batch_size) * batch_size
        self._loaded: EncodedRows | None = None
        self._loading = Lock()

    def _of_share(self, total: int) -> range:
        return range(total * self._rank // self._size, total * (self._rank + 1) // self._size)

    @property
    def first_row(self) -> int:
        """Without `shuffle`, where the rows of this share begin."""
        return self._own.start

    def rows_of(self, batch: int) -> int:
        """Rows of batch number `batch` of an epoch, of all shares together."""
        return min(self.batch_size, self.num_rows - batch * self.batch_size)

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
        return prefetch(self._produced(epoch, start_batch), depth=BATCHES_AHEAD, name="dmoe-batches")

    def _produced(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        yield from self._from_memory(epoch, start_batch) if self.in_memory else self._from_windows(epoch, start_batch)
        if not self.shuffle and self._size > 1:
            own = -(-len(self._own) // self.batch_size)
            for _ in range(own, -(-self.num_batches // self._size)):
                yield _batch(EncodedRows.empty(0, self.schema))

    def _from_memory(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        rows = self._load()
        order = self._permutation(self.num_rows, epoch) if self.shuffle else None
        yield from self._cut(rows, order, start_batch * self.batch_size, self._own)

    def _load(self) -> EncodedRows:
        with self._loading:
            if self._loaded is None:
                own = self._own
                loaded = EncodedRows.empty(len(own), self.schema)
                filled = 0
                for chunk in read_chunks(
                    self._blocks(None), self.schema, CHUNK_ROWS, skip_rows=own.start, num_rows=len(own)
                ):
                    loaded.fill(filled, chunk)
                    filled += len(chunk)
                self._loaded = loaded
            return self._loaded

    def _from_windows(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        skip = start_batch * self.batch_size
        first = skip // self._window_rows
        skip -= first * self._window_rows
        with closing(self._windows(epoch, first)) as windows:
            for number, window, own in windows:
                order = None
                if self.shuffle:
                    rows = min(self._window_rows, self.num_rows - number * self._window_rows)
                    order = self._permutation(rows, epoch, number)
                yield from self._cut(window, order, skip, own)
                skip = 0
                del window  # before the next one is put together: it is a third of the memory

    def _cut(
        self, rows: EncodedRows, order: NDArray[np.signedinteger] | None, start: int, own: range
    ) -> Generator[Batch, None, None]:
        """Batches of `rows` in `order`, from position `start` on; of a share, `own` are the positions of its rows."""
        total = len(rows) if order is None else len(order)
        for begin in range(start, total, self.batch_size):
            end = min(begin + self.batch_size, total)
            if order is None:
                yield _batch(rows.copy(begin, end))
            elif self._size == 1:
                yield _batch(rows.take(order[begin:end]))
            else:
                wanted = order[begin:end]
                places = np.flatnonzero((wanted >= own.start) & (wanted < own.stop))
                yield _batch(rows.take(wanted[places] - own.start), torch.from_numpy(places))

    def _windows(self, epoch: int, first: int) -> Generator[tuple[int, EncodedRows, range], None, None]:
        """The epoch's windows from number `first` on, and the rows of it that this share has; no others are read."""
        size, blocks = self._window_rows, self._blocks(epoch if self.shuffle else None)
        parts = self._parts_of_windows(first)
        source = prefetch(
            self._chunks_of(parts, blocks), depth=max(1, size // self._size // CHUNK_ROWS), name="dmoe-chunks"
        )
        chunk = None
        with closing(source) as chunks:
            for number, (_, own) in enumerate(parts, start=first):
                window = EncodedRows.empty(len(own), self.schema)
                filled = 0
                while filled < len(window):
                    if chunk is None:
                        chunk = next(chunks)
                    use = min(len(chunk), len(window) - filled)
                    window.fill(filled, chunk.slice(0, use))
                    filled += use
                    chunk = chunk.slice(use, len(chunk)) if use < len(chunk) else None
                yield number, window, own
                del window

    def _parts_of_windows(self, first: int) -> list[tuple[int, range]]:
        """For each window the position of its start, and which of its rows this share has."""
        size = self._window_rows
        if self.shuffle:
            starts = range(first * size, self.num_rows, size)
            return [(start, self._of_share(min(size, self.num_rows - start))) for start in starts]
        starts = range(self._own.start + first * size, self._own.stop, size)
        return [(start, range(min(size, self._own.stop - start))) for start in starts]

    def _chunks_of(
        self, parts: list[tuple[int, range]], blocks: list[tuple[ShardFile, int]]
    ) -> Generator[EncodedRows, None, None]:
        """The rows of these parts, in order; what lies between them is not decoded but for the row groups it shares."""
        chunk_rows = min(CHUNK_ROWS, self._window_rows)
        joined: list[list[int]] = []
        for start, own in parts:
            if joined and joined[-1][1] == start + own.start:
                joined[-1][1] = start + own.stop
            else:
                joined.append([start + own.start, start + own.stop])
        for start, stop in joined:
            yield from read_chunks(blocks, self.schema, chunk_rows, skip_rows=start, num_rows=stop - start)

    def _blocks(self, epoch: int | None) -> list[tuple[ShardFile, int]]:
        """All row groups: in file order, or in the random order of an epoch."""
        blocks = [(part, group) for part in self.parts for group in range(len(part.group_rows))]
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


def _batch(rows: EncodedRows, places_B: Tensor | None = None) -> Batch:
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
        places_B=places_B,
    )
