"""Encoded rows of one split as Parquet shards of a fixed number of rows."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.schema import AnyField, CategoricalField, MultiValuedField, Schema
from dmoe.tokens.lists import ID_LISTS

ROW_GROUP_ROWS = 1 << 16
SHARD_ROWS = 1 << 20


def arrow_schema(schema: Schema) -> pa.Schema:
    """The columns of an encoded shard."""
    columns = [(field.name, _column_type(field)) for field in schema.fields]
    weight = [] if schema.weight is None else [(schema.weight, pa.float32())]
    return pa.schema([*columns, *((task.name, pa.uint8()) for task in schema.tasks), *weight])


def _column_type(field: AnyField) -> pa.DataType:
    if isinstance(field, MultiValuedField):
        return ID_LISTS
    return pa.int32() if isinstance(field, CategoricalField) else pa.float32()


class ShardWriter:
    """Writes part-00000.parquet and so on: `shard_rows` rows a shard, the last one fewer.

    The bytes depend only on the rows and `shard_rows`, not on how the rows arrive. The first shard is number
    `first_part`; the first `skip` rows are left out. `finished(part)` is called for every full shard.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        shard_rows: int = SHARD_ROWS,
        *,
        first_part: int = 0,
        skip: int = 0,
        finished: Callable[[int], None] = lambda _: None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._schema = folder, schema
        self._shard_rows, self._group_rows = shard_rows, min(ROW_GROUP_ROWS, shard_rows)
        self._held: list[pa.Table] = []
        self._num_held = 0
        self._writer: pq.ParquetWriter | None = None
        self._part, self._skip, self._finished = first_part, skip, finished
        self._rows_in_shard = 0

    def append(self, table: pa.Table) -> None:
        """Raises: OSError if the disk is full."""
        skipped = min(self._skip, table.num_rows)
        self._skip -= skipped
        self._held.append(table.slice(skipped))
        self._num_held += table.num_rows - skipped
        while self._num_held >= (size := self._next_group()):
            self._write(size)

    def close(self) -> None:
        while self._num_held:
            self._write(min(self._num_held, self._next_group()))
        if self._writer is not None:
            self._writer.close()

    def _next_group(self) -> int:
        return min(self._group_rows, self._shard_rows - self._rows_in_shard)

    def _write(self, size: int) -> None:
        table = pa.concat_tables(self._held)
        if self._writer is None:
            path = self._folder / f"part-{self._part:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, compression="snappy")
        # Fresh buffers: a slice keeps the offset of its parent, and with it other bytes in the file.
        self._writer.write_table(table.slice(0, size).combine_chunks(), row_group_size=size)
        self._held, self._num_held = [table.slice(size)], table.num_rows - size
        self._rows_in_shard += size
        if self._rows_in_shard == self._shard_rows:
            self._writer.close()
            self._writer = None
            self._finished(self._part)
            self._part += 1
            self._rows_in_shard = 0
