"""Encoded rows of one split as Parquet shards of a fixed number of rows."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 1 << 16
SHARD_ROWS = 1 << 20


class ShardWriter:
    """Writes part-00000.parquet and so on: `shard_rows` rows a shard, the last one fewer.

    The bytes depend only on the rows and `shard_rows`, not on how the rows arrive.
    """

    def __init__(self, folder: Path, schema: pa.Schema, shard_rows: int = SHARD_ROWS) -> None:
        folder.mkdir()
        self._folder, self._schema = folder, schema
        self._shard_rows, self._group_rows = shard_rows, min(ROW_GROUP_ROWS, shard_rows)
        self._held: list[pa.Table] = []
        self._num_held = 0
        self._writer: pq.ParquetWriter | None = None
        self._parts = 0
        self._rows_in_shard = 0

    def append(self, table: pa.Table) -> None:
        """Raises: OSError if the disk is full."""
        self._held.append(table)
        self._num_held += table.num_rows
        while self._num_held >= (size := self._next_group()):
            self._write(size)

    def close(self) -> None:
        while self._num_held:
            self._write(min(self._num_held, self._next_group()))
        self._close_shard()

    def _next_group(self) -> int:
        return min(self._group_rows, self._shard_rows - self._rows_in_shard)

    def _write(self, size: int) -> None:
        table = pa.concat_tables(self._held)
        if self._writer is None:
            path = self._folder / f"part-{self._parts:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, compression="snappy")
            self._parts += 1
        # Fresh buffers: a slice keeps the offset of its parent, and with it other bytes in the file.
        self._writer.write_table(table.slice(0, size).combine_chunks(), row_group_size=size)
        self._held, self._num_held = [table.slice(size)], table.num_rows - size
        self._rows_in_shard += size
        if self._rows_in_shard == self._shard_rows:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._rows_in_shard = 0
