"""The Parquet files of a split: found, checked against the schema, and decoded into row-major arrays.

Shape suffixes: R rows, C categorical fields, N numeric fields.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dmoe.errors import DataError
from dmoe.schema import UNKNOWN, CategoricalField, MultiValuedField, Schema
from dmoe.shards.remote import marks, shard
from dmoe.shards.writer import arrow_schema
from dmoe.tokens.lists import as_ids
from dmoe.values.coded_columns import Column


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One Parquet file of a split and the rows of each of its row groups."""

    path: Path
    group_rows: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return sum(self.group_rows)


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Encoded rows: `ids_RC` int32, `numeric_RN` float32, `labels_RT` uint8 (`UNKNOWN` where not known), each row
    contiguous; `weights_R` float32, None where all rows weigh 1."""

    ids_RC: NDArray[np.int32]
    numeric_RN: NDArray[np.float32]
    labels_RT: NDArray[np.uint8]
    weights_R: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels_RT)

    @property
    def labels_R(self) -> NDArray[np.uint8]:
        """Those of the main label."""
        return self.labels_RT[:, 0]

    @staticmethod
    def empty(num_rows: int, schema: Schema) -> "EncodedRows":
        """Room for `num_rows` rows, not initialised."""
        return EncodedRows(
            np.empty((num_rows, schema.num_ids), np.int32),
            np.empty((num_rows, len(schema.numeric)), np.float32),
            np.empty((num_rows, len(schema.tasks)), np.uint8),
            None if schema.weight is None else np.empty(num_rows, np.float32),
        )

    def fill(self, start: int, rows: "EncodedRows") -> None:
        """Copies `rows` to the rows from `start` on."""
        stop = start + len(rows)
        self.ids_RC[start:stop] = rows.ids_RC
        self.numeric_RN[start:stop] = rows.numeric_RN
        self.labels_RT[start:stop] = rows.labels_RT
        if self.weights_R is not None and rows.weights_R is not None:
            self.weights_R[start:stop] = rows.weights_R

    def slice(self, start: int, stop: int) -> "EncodedRows":
        """Rows `start` to `stop`, sharing memory with these."""
        return self._each(lambda array: array[start:stop])

    def take(self, index_R: NDArray[np.signedinteger]) -> "EncodedRows":
        """The rows at these positions, in memory of their own."""
        # np.take copies whole rows without the interpreter lock and without torch's thread pool, which
        # the training step needs for itself.
        return self._each(lambda array: array.take(index_R, axis=0))

    def copy(self, start: int, stop: int) -> "EncodedRows":
        """Rows `start` to `stop`, in memory of their own."""
        return self._each(lambda array: array[start:stop].copy())

    def _each(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> "EncodedRows":
        weights = None if self.weights_R is None else change(self.weights_R)
        return EncodedRows(change(self.ids_RC), change(self.numeric_RN), change(self.labels_RT), weights)


def find_parts(data: Path, split: str, schema: Schema) -> list[ShardFile]:
    """The files of a split in the order of their names, columns checked.

    Raises: DataError if there is no such split, no row in it, or a file is damaged or has other columns.
    """
    folder = data / split
    if not folder.is_dir():
        have = sorted(path.parent.name for path in data.glob("*/part-*.parquet"))
        known = f"; it has: {', '.join(dict.fromkeys(have))}" if have else ""
        raise DataError(f"{data}: has no split '{split}'{known}")
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise DataError(f"{folder}: holds no part-*.parquet; prepare the data again")
    parts = [_inspect(path, schema) for path in paths]
    if not any(part.num_rows for part in parts):
        raise DataError(f"{folder}: holds no row; prepare the data again with a larger share for '{split}'")
    return parts


def count_rows(parts: Iterable[ShardFile]) -> int:
    return sum(part.num_rows for part in parts)


def values_of(parts: Iterable[ShardFile], column: str) -> set[Any]:
    """The distinct values of a column that are not null.

    Raises: DataError if a file is damaged.
    """
    found: set[Any] = set()
    for part in parts:
        try:
            with shard(part.path) as source, pq.ParquetFile(source) as file:
                for batch in file.iter_batches(columns=[column]):
                    found |= set(batch.column(0).drop_null().unique().to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise _damaged(part.path, error) from None
    return found


def digest_of(data: Path) -> str:
    """BLAKE2b of the rows of a data set as they lie in its files, wherever the folder is: what tells it from others of
    the same schema. Reads all of it once, about a gigabyte a second. Of one elsewhere (`dmoe.shards.remote`) it is of
    sizes and versions of its files, as their storage has them.

    Raises: OSError if a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    elsewhere = marks(data)
    if elsewhere is not None:
        digest.update(repr(sorted(elsewhere.items())).encode())
        return digest.hexdigest()
    for path in sorted(data.glob("*/part-*.parquet")):
        with path.open("rb") as stream:
            own = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
        digest.update(f"{path.parent.name}/{path.name} {own.hexdigest()}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class HeldData:
    """The files of a data set as they were when work on them began: others in their place are noticed."""

    data: Path
    files: dict[str, tuple[object, ...]]

    @staticmethod
    def of(data: Path) -> "HeldData":
        return HeldData(data, _identities(data))

    def check(self) -> None:
        """Raises: DataError if a file is gone, another one, or was written to."""
        if _identities(self.data) != self.files:
            raise DataError(
                f"{self.data}: was replaced or changed while it was being read; put the data set back that was there, "
                "or begin anew with this one"
            )

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """What is found wrong with the data inside is laid to their replacement, if there was one."""
        try:
            yield
        except DataError:
            self.check()
            raise


def _identities(data: Path) -> dict[str, tuple[object, ...]]:
    elsewhere = marks(data)
    if elsewhere is not None:
        return dict(elsewhere)
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(data.glob("*/part-*.parquet")):
        with suppress(FileNotFoundError):
            state = path.stat()
            found[f"{path.parent.name}/{path.name}"] = (state.st_ino, state.st_size, state.st_mtime_ns)
    return found


def _inspect(path: Path, schema: Schema) -> ShardFile:
    try:
        with shard(path) as source, pq.ParquetFile(source) as file:
            arrow = file.schema_arrow
            metadata = file.metadata
            groups = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    wanted = arrow_schema(schema)
    names = wanted.names
    if arrow.names != names:
        missing = [name for name in names if name not in arrow.names]
        extra = [name for name in arrow.names if name not in names]
        what = [f"lacks {', '.join(missing)}"] if missing else []
        what += [f"has {', '.join(extra)} besides"] if extra else []
        detail = " and ".join(what) or "has them in another order or twice"
        raise DataError(f"{path}: columns are not those of schema.json: {detail}; prepare the data again")
    for expected, column in zip(wanted, arrow, strict=True):
        if column.type != expected.type:
            raise DataError(
                f"{path}: column '{column.name}' is {column.type}, expected {expected.type}; prepare the data again"
            )
    return ShardFile(path, groups)


def read_chunks(
    blocks: Iterable[tuple[ShardFile, int]],
    schema: Schema,
    chunk_rows: int,
    *,
    skip_rows: int = 0,
    num_rows: int | None = None,
) -> Generator[EncodedRows, None, None]:
    """The rows of these row groups in order, at most `chunk_rows` at a time: `num_rows` after the first `skip_rows`.

    Row groups before and after those are not read. By default all rows are.

    Raises: DataError if a file is damaged, or a value is null, not finite, or beyond its vocabulary.
    """
    for part, group in blocks:
        if skip_rows >= part.group_rows[group]:
            skip_rows -= part.group_rows[group]
            continue
        read = 0
        if num_rows == 0:
            return
        for table in _record_batches(part.path, group, chunk_rows):
            read += table.num_rows
            start = min(skip_rows, table.num_rows)
            skip_rows -= start
            stop = table.num_rows if num_rows is None else min(table.num_rows, start + num_rows)
            if start < stop:
                yield _decode(table.slice(start, stop - start), part.path, schema)
                if num_rows is not None:
                    num_rows -= stop - start
            if num_rows == 0:
                return
        if read != part.group_rows[group]:
            raise DataError(
                f"{part.path}: row group {group} holds {read} rows, its footer says "
                f"{part.group_rows[group]}; prepare the data again"
            )


def _record_batches(path: Path, group: int, chunk_rows: int) -> Generator[pa.RecordBatch, None, None]:
    try:
        with (
            shard(path) as source,
            pq.ParquetFile(source, pre_buffer=source is not path, page_checksum_verification=True) as file,
        ):
            yield from file.iter_batches(batch_size=chunk_rows, row_groups=[group])
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _decode(table: pa.RecordBatch, path: Path, schema: Schema) -> EncodedRows:
    rows = EncodedRows.empty(table.num_rows, schema)
    may_be_null = [task.name for task in schema.labels]
    for column in table.schema.names:
        nulls = table.column(column).null_count
        if nulls and column not in may_be_null:
            raise DataError(f"{path}: column '{column}' has {nulls} nulls; prepare the data again")
    for field, columns in zip(schema.categorical, schema.id_columns, strict=True):
        ids_R = _ids(table.column(field.name), field, path)
        # As unsigned, a negative id is a huge one: one comparison sees both.
        if int(ids_R.view(np.uint32).max()) >= field.vocabulary_size:
            outside = ids_R[ids_R.view(np.uint32) >= field.vocabulary_size][0]
            raise DataError(
                f"{path}: column '{field.name}' holds id {outside}, but its vocabulary has "
                f"{field.vocabulary_size} ids; prepare the data again"
            )
        rows.ids_RC[:, columns] = ids_R.reshape(len(rows), -1)
    for index, number in enumerate(schema.numeric):
        values_R = table.column(number.name).to_numpy()
        if not np.isfinite(values_R).all():
            raise DataError(f"{path}: column '{number.name}' holds a NaN or infinity; prepare the data again")
        rows.numeric_RN[:, index] = values_R
    for place, task in enumerate(schema.tasks):
        rows.labels_RT[:, place] = _label(table.column(task.name), task.name, path)
    if rows.weights_R is not None and schema.weight is not None:
        weights_R = table.column(schema.weight).to_numpy()
        if not (np.isfinite(weights_R) & (weights_R >= 0)).all():
            raise DataError(
                f"{path}: column '{schema.weight}' holds a weight that is below 0 or not finite; prepare the data again"
            )
        rows.weights_R[:] = weights_R
    return rows


def _label(column: Column, name: str, path: Path) -> NDArray[np.uint8]:
    """(R,) of 0, 1 and `UNKNOWN`."""
    known = column.drop_null().to_numpy() if column.null_count else column.to_numpy()
    if len(known) and known.max() > 1:
        raise DataError(f"{path}: label '{name}' holds {known.max()}, expected 0 or 1; prepare the data again")
    labels_R: NDArray[np.uint8] = column.fill_null(UNKNOWN).to_numpy() if column.null_count else known
    return labels_R


def _ids(column: Column, field: CategoricalField, path: Path) -> NDArray[np.int32]:
    """(R,), or (R, L) of a multi-valued field."""
    if not isinstance(field, MultiValuedField):
        single: NDArray[np.int32] = column.to_numpy()
        return single
    ids_RL = as_ids(column, field.max_length)
    if ids_RL is None:
        raise DataError(
            f"{path}: column '{field.name}' holds more than {field.max_length} values or nulls in a row; "
            "prepare the data again"
        )
    return ids_RL


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"{path}: not readable as Parquet ({reason}); prepare the data again")
