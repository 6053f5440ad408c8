"""Vocabularies: counted on the training rows, ordered by falling count then value, kept as Parquet.

DuckDB counts, sorts and joins, within its memory limit and then on disk. Its text order is that of the UTF-8
bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.data.columns import Column
from dmoe.data.stage import ValueFile
from dmoe.errors import DataError
from dmoe.schema import FIRST_TOKEN_ID, OOV_ID, CategoricalField, vocabulary_path

Ids = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int32]

_TEXT: pa.DataType = pa.string()
_SCHEMA = pa.schema({"value": _TEXT, "count": pa.int64(), "id": pa.int32()})


def build_vocabulary(
    connection: duckdb.DuckDBPyConnection,
    field: str,
    values: ValueFile,
    counts_P: Counts,
    min_count: int,
    folder: Path,
    ids_P: Ids,
) -> tuple[CategoricalField, int]:
    """Writes vocabulary/<field>.parquet and fills `ids_P`; gives the field and its distinct training values.

    P: the rows of the field's value file. `counts_P` are their training rows, `ids_P` becomes their ids.
    """
    batches = pa.RecordBatchReader.from_batches(
        pa.schema({"value": _TEXT, "count": pa.int64()}), _counted(values.path, counts_P)
    )
    connection.register("counted", batches)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE totals AS SELECT value, sum(count)::BIGINT AS count FROM counted GROUP BY value"
    )
    connection.unregister("counted")
    (distinct,) = connection.execute("SELECT count(*) FROM totals").fetchone() or (0,)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE vocabulary AS SELECT value, count, "
        f"(row_number() OVER (ORDER BY count DESC, value) + {FIRST_TOKEN_ID - 1})::INTEGER AS id "
        f"FROM totals WHERE count >= {int(min_count)}"
    )
    path = vocabulary_path(folder, field)
    size = FIRST_TOKEN_ID
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        ordered = connection.sql("SELECT value, count, id FROM vocabulary ORDER BY id")
        for batch in ordered.to_arrow_reader(1 << 20):
            writer.write_table(pa.Table.from_batches([batch]).cast(_SCHEMA))
            size += batch.num_rows
    ids_P[:] = OOV_ID
    connection.register("placed", pa.RecordBatchReader.from_batches(_PLACED, _placed(values.path)))
    joined = connection.sql("SELECT position, id FROM placed JOIN vocabulary USING (value)")
    for batch in joined.to_arrow_reader(1 << 20):
        ids_P[batch.column(0).to_numpy()] = batch.column(1).to_numpy()
    connection.unregister("placed")
    return CategoricalField(name=field, vocabulary_size=size, min_count=min_count), int(distinct)


_PLACED = pa.schema({"value": _TEXT, "position": pa.int64()})


def _counted(path: Path, counts_P: Counts) -> Iterator[pa.RecordBatch]:
    """The values that some training row has, and how many have it."""
    for start, values in _value_batches(path):
        counts = np.asarray(counts_P[start : start + len(values)])
        used = pa.array(counts > 0)
        yield pa.record_batch({"value": values.filter(used), "count": pa.array(counts.astype(np.int64)).filter(used)})


def _placed(path: Path) -> Iterator[pa.RecordBatch]:
    for start, values in _value_batches(path):
        yield pa.record_batch({"value": values, "position": pa.array(np.arange(start, start + len(values)))})


def _value_batches(path: Path) -> Iterator[tuple[int, Column]]:
    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1 << 17):
            yield start, batch.column(0)
            start += batch.num_rows


def read_vocabulary(folder: Path, field: CategoricalField) -> dict[str, int]:
    """Value to id, tokens only.

    Raises: DataError if the file is absent, damaged or does not fit the schema.
    """
    path = vocabulary_path(folder, field.name)
    if not path.is_file():
        raise DataError(f"{path}: no such file, but schema.json names the field; prepare the data again")
    try:
        table = pq.read_table(path, columns=["value", "id"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]}); prepare the data again") from None
    if table.num_rows + FIRST_TOKEN_ID != field.vocabulary_size:
        raise DataError(
            f"{path}: holds {table.num_rows} tokens, but schema.json says {field.vocabulary_size - FIRST_TOKEN_ID}"
        )
    values: list[Any] = table.column(0).to_pylist()
    ids: list[Any] = table.column(1).to_pylist()
    return dict(zip(values, ids, strict=True))
