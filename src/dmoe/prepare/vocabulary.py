"""Vocabularies counted on the training rows, ordered by falling count then value.

An engine counts, sorts and joins; the ids, and the bytes of the files, are made here.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.prepare.engines.base import CountingEngine
from dmoe.schema import FIRST_TOKEN_ID, OOV_ID
from dmoe.tokens.vocabulary import VOCABULARY
from dmoe.values.coded_columns import Column

Ids = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int32]

_TEXT: pa.DataType = pa.string()
_COUNTED = pa.schema({"value": _TEXT, "count": pa.int64()})
_PLACED = pa.schema({"position": pa.int64(), "value": _TEXT})
_KNOWN = pa.schema({"value": _TEXT, "id": pa.int32()})
_GROUP_ROWS = 1 << 20


def build_vocabulary(
    engine: CountingEngine,
    values: Iterable[Column],
    counts_P: Counts,
    path: Path,
    ids_P: Ids,
    *,
    min_count: int,
    max_tokens: int | None,
    grown: Path | None,
) -> tuple[int, int]:
    """Writes a field's vocabulary and fills `ids_P`; gives its size and the distinct values of the training rows.

    P: all `values`, which are gone through several times, one column after the other. `counts_P` are their
    training rows, `ids_P` becomes their ids. The tokens of the vocabulary file `grown` keep their ids, with the
    new rows added to their counts; new tokens follow.
    """
    old = _no_tokens() if grown is None else pq.read_table(grown, schema=VOCABULARY)
    known = old.select(["value", "id"]).to_reader()
    counted = engine.count(_reader(_COUNTED, _counted(values, counts_P)), min_count, known)
    counts = old.column("count").to_numpy().copy()
    for batch in counted.known:
        counts[batch.column(0).to_numpy() - FIRST_TOKEN_ID] += batch.column(1).to_numpy()
    room = None if max_tokens is None else max(max_tokens - len(counts), 0)
    size = FIRST_TOKEN_ID + len(counts)
    with pq.ParquetWriter(path, VOCABULARY, compression="zstd") as writer:
        if len(counts):
            writer.write_table(old.set_column(1, "count", pa.array(counts)), row_group_size=_GROUP_ROWS)
        for table in _regrouped(counted.new, room):
            ids = pa.array(np.arange(size, size + table.num_rows, dtype=np.int32))
            writer.write_table(table.append_column("id", ids).cast(VOCABULARY))
            size += table.num_rows
    ids_P[:] = OOV_ID
    with pq.ParquetFile(path) as file:
        tokens = _reader(_KNOWN, file.iter_batches(1 << 17, columns=_KNOWN.names))
        for batch in engine.look_up(_reader(_PLACED, _placed(values)), tokens):
            ids_P[batch.column(0).to_numpy()] = batch.column(1).to_numpy()
    return size, counted.distinct


def write_given(tokens: Column, path: Path) -> None:
    """A vocabulary file of tokens that no row was counted for yet, in this order."""
    ids = pa.array(np.arange(FIRST_TOKEN_ID, FIRST_TOKEN_ID + len(tokens), dtype=np.int32))
    counts = pa.array(np.zeros(len(tokens), np.int64))
    pq.write_table(pa.table([tokens, counts, ids], schema=VOCABULARY), path, compression="zstd")


def _reader(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(schema, batches)


def _no_tokens() -> pa.Table:
    return VOCABULARY.empty_table()


def _regrouped(batches: Iterable[pa.RecordBatch], limit: int | None) -> Iterator[pa.Table]:
    """The first `limit` rows in tables of `_GROUP_ROWS`: engines cut their streams each in its own way."""
    held: list[pa.Table] = []
    num_held = taken = 0
    for batch in batches:
        table = pa.Table.from_batches([batch])
        if limit is not None:
            table = table.slice(0, limit - taken)
        held.append(table.cast(_COUNTED))
        num_held += table.num_rows
        taken += table.num_rows
        while num_held >= _GROUP_ROWS:
            whole = pa.concat_tables(held).combine_chunks()
            yield whole.slice(0, _GROUP_ROWS)
            held, num_held = [whole.slice(_GROUP_ROWS)], num_held - _GROUP_ROWS
    if num_held:
        yield pa.concat_tables(held).combine_chunks()


def _counted(values: Iterable[Column], counts_P: Counts) -> Iterator[pa.RecordBatch]:
    """The values that some training row has, and how many have it."""
    start = 0
    for column in values:
        counts = np.asarray(counts_P[start : start + len(column)])
        used = pa.array(counts > 0)
        yield pa.record_batch(
            {"value": column.filter(used), "count": pa.array(counts.astype(np.int64)).filter(used)}, schema=_COUNTED
        )
        start += len(column)


def _placed(values: Iterable[Column]) -> Iterator[pa.RecordBatch]:
    start = 0
    for column in values:
        positions = pa.array(np.arange(start, start + len(column)))
        yield pa.record_batch({"position": positions, "value": column}, schema=_PLACED)
        start += len(column)
