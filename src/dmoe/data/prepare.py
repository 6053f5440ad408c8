"""Raw logs in, a data set folder out: parse and stage, split, count, encode.

Every pass but the first works on codes, not on text, and no result depends on the thread count.
P: the rows of one field's value file (see `stage`).
"""

import errno
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.data import splits
from dmoe.data.columns import MISSING, Numbers, Rows, categorical_names, convert, numeric_names
from dmoe.data.config import SPLITS, DataConfig
from dmoe.data.numbers import encode_numbers, fit_field
from dmoe.data.ordered_pool import OrderedPool, usable_threads
from dmoe.data.rejects import RejectLog
from dmoe.data.shards import SHARD_ROWS, ShardWriter
from dmoe.data.sources import Piece, Source, split_inputs
from dmoe.data.stage import Stage, StagedChunk, array_on_disk
from dmoe.data.summary import FileTally, Progress, Summary, Tally, tally_ids, tally_missing
from dmoe.data.vocabulary import Ids, build_vocabulary
from dmoe.data.workspace import appearing
from dmoe.errors import DataError, DmoeError
from dmoe.schema import MISSING_ID, OOV_ID, AnyField, CategoricalField, Schema

# What is not DuckDB's: raw and coded chunks at work, shards being written.
_OWN_MEMORY = 768 << 20
_LEAST_MEMORY = 1 << 30


def prepare(
    config: DataConfig,
    inputs: Sequence[str],
    output: Path,
    *,
    memory_bytes: int = 2 << 30,
    threads: int | None = None,
    max_rejects: int = 1000,
    shard_rows: int = SHARD_ROWS,
    force: bool = False,
    progress: Progress = lambda _step, _rows: None,
) -> dict[str, Any]:
    """Makes the data set folder `output` of raw logs; gives what summary.json says.

    `inputs` are paths or glob patterns, read in this order; for split kind `given` each is `train=PATH`,
    `valid=PATH` or `test=PATH`. `progress(step, rows)` is called after every chunk.

    Raises: DataError for the input, DmoeError if the disk or the memory is full. Then nothing is left.
    """
    started = time.perf_counter()
    if memory_bytes < _LEAST_MEMORY:
        raise DataError(f"--memory: needs at least {_LEAST_MEMORY >> 20} MiB, got {memory_bytes >> 20} MiB")
    threads = threads or usable_threads()
    sources = split_inputs(config, inputs)
    with _readable_errors(output), appearing(output, force, marks=("schema.json", "summary.json")) as folder:
        work = folder / ".work"
        work.mkdir()
        stage = Stage(work / "stage", categorical_names(config), numeric_names(config))
        rejects = RejectLog(max_rejects)
        with OrderedPool(threads) as pool, _database(work, memory_bytes, threads) as database:
            files, runs = _stage_rows(config, sources, stage, rejects, pool, progress)
            labels = stage.finish()
            codes = _assign(config, stage, labels, runs, database)
            shares = dict(runs) if runs else config.split.shares()
            wanted = [name for name in SPLITS if name in shares and (runs or shares[name])]
            summary = Summary(files, rejects.by_reason(), splits.check_splits(codes, labels, wanted))
            encoder = _fit(config, stage, codes, folder, database, pool, summary, progress)
            _write_splits(encoder, codes, labels, folder, shard_rows, pool, summary, progress)
        rejects.write(folder / "rejects.parquet")
        encoder.schema.write(folder)
        shutil.rmtree(work)
        return summary.write(folder, encoder.schema, time.perf_counter() - started)


def _stage_rows(
    config: DataConfig,
    sources: list[tuple[Path, str | None]],
    stage: Stage,
    rejects: RejectLog,
    pool: OrderedPool,
    progress: Progress,
) -> tuple[list[FileTally], list[tuple[str, int]]]:
    """Parses all inputs; gives what each file held and, for given splits, the rows of each file's split."""
    tallies: list[FileTally] = []
    runs: list[tuple[str, int]] = []

    numbers = count()

    def read(numbered: tuple[int, Piece]) -> tuple[Rows, Path]:
        number, piece = numbered
        rows = convert(piece(), config)
        return rows, stage.spill(number, rows)

    for path, split in sources:
        tally = FileTally(str(path))
        for rows, spilled in pool.map(read, zip(numbers, Source(path, config).pieces(), strict=False)):
            rejects.add(rows.rejects)
            stage.append(rows, spilled)
            tally.add(len(rows), len(rows.rejects), rows.blank_lines)
            progress("read", stage.num_rows)
        tallies.append(tally)
        if split is not None:
            runs.append((split, tally.encoded))
    if not stage.num_rows:
        raise DataError(f"every row was rejected, the first:\n{rejects.describe()}")
    return tallies, runs


def _assign(
    config: DataConfig,
    stage: Stage,
    labels: splits.Labels,
    runs: list[tuple[str, int]],
    database: duckdb.DuckDBPyConnection,
) -> splits.SplitCodes:
    kind = config.split.kind
    if kind == "given":
        names, sizes = zip(*runs, strict=True)
        return np.repeat(np.array([SPLITS.index(name) for name in names], dtype=np.uint8), sizes)
    if kind == "ordered":
        return splits.ordered(stage.num_rows, config.split)
    if kind == "time":
        return splits.by_rank(rows_by_time(database, stage), stage.num_rows, config.split)
    return splits.drawn(labels, config.split)


def rows_by_time(database: duckdb.DuckDBPyConnection, stage: Stage) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers by time, then by number."""
    batches = stage.times()
    first = next(batches)
    reader = pa.RecordBatchReader.from_batches(first.schema, chain([first], batches))
    database.register("times", reader)
    for batch in database.sql('SELECT "row" FROM times ORDER BY time, "row"').to_arrow_reader(1 << 20):
        yield batch.column(0).to_numpy()
    database.unregister("times")


def _fit(
    config: DataConfig,
    stage: Stage,
    codes: splits.SplitCodes,
    folder: Path,
    database: duckdb.DuckDBPyConnection,
    pool: OrderedPool,
    summary: Summary,
    progress: Progress,
) -> "_Encoder":
    """Vocabularies and scalings, from the training rows."""
    counts = [
        array_on_disk(stage.folder / f"counts-{index}", values.offsets[-1]) for index, values in enumerate(stage.values)
    ]

    def count_train(chunk: StagedChunk) -> None:
        train = codes[chunk.start : chunk.start + chunk.num_rows] == splits.TRAIN
        for field, values in enumerate(stage.values):
            start, stop = values.offsets[chunk.index : chunk.index + 2]
            # Missing is -1: shifted by one it is counted first, and left out.
            counted = np.bincount(chunk.codes(field)[train] - MISSING, minlength=stop - start + 1)
            counts[field][start:stop] = counted[1:]

    for _ in pool.map(count_train, stage.chunks):
        pass
    (folder / "vocabulary").mkdir()
    fields: list[AnyField] = []
    ids: list[Ids] = []
    for index, name in enumerate(stage.categorical):
        ids.append(array_on_disk(stage.folder / f"ids-{index}", len(counts[index])))
        field, distinct = build_vocabulary(
            database, name, stage.values[index], counts[index], config.min_count(name), folder, ids[index]
        )
        summary.distinct[name] = distinct
        fields.append(field)
        progress("count", index + 1)
    for index, name in enumerate(stage.numeric):

        def training(index: int = index) -> Iterator[Numbers]:
            for chunk in stage.chunks:
                train = codes[chunk.start : chunk.start + chunk.num_rows] == splits.TRAIN
                yield chunk.numbers(index)[train]

        fields.append(fit_field(name, config.fields.numeric[name], training))
    order = {name: position for position, name in enumerate((*config.fields.numeric, *config.fields.categorical))}
    fields.sort(key=lambda field: order[field.name])
    schema = Schema(label=config.label, fields=tuple(fields), source=config.model_dump(mode="json"))
    return _Encoder(schema, config, stage, ids)


@dataclass(frozen=True, slots=True)
class _Encoder:
    """`ids[f][offsets[chunk] + code]` is the id of a code of categorical field f."""

    schema: Schema
    config: DataConfig
    stage: Stage
    ids: list[Ids]

    def encode(self, chunk: StagedChunk) -> dict[str, npt.NDArray[Any]]:
        """The columns of a chunk; missing is `MISSING_ID` here whatever `missing_as` says."""
        columns: dict[str, npt.NDArray[Any]] = {}
        for index, name in enumerate(self.stage.categorical):
            start, stop = self.stage.values[index].offsets[chunk.index : chunk.index + 2]
            by_code = np.append(self.ids[index][start:stop], np.int32(MISSING_ID))
            columns[name] = by_code[chunk.codes(index)]
        for index, field in enumerate(self.schema.numeric):
            columns[field.name] = encode_numbers(chunk.numbers(index), field)
        return columns


def _write_splits(
    encoder: _Encoder,
    codes: splits.SplitCodes,
    labels: splits.Labels,
    folder: Path,
    shard_rows: int,
    pool: OrderedPool,
    summary: Summary,
    progress: Progress,
) -> None:
    arrow = arrow_schema(encoder.schema)
    merged = [name for name in encoder.stage.categorical if encoder.config.missing_is_oov(name)]

    def encode(chunk: StagedChunk) -> tuple[StagedChunk, Tally, pa.Table]:
        rows = slice(chunk.start, chunk.start + chunk.num_rows)
        columns = encoder.encode(chunk)
        tally = {name: tally_ids(columns[name], codes[rows]) for name in encoder.stage.categorical}
        for index, name in enumerate(encoder.stage.numeric):
            tally[name] = tally_missing(np.isnan(chunk.numbers(index)), codes[rows])
        for name in merged:
            columns[name][columns[name] == MISSING_ID] = OOV_ID
        columns[encoder.schema.label] = labels[rows]
        return chunk, tally, pa.table([columns[name] for name in arrow.names], schema=arrow)

    writers = {name: ShardWriter(folder / name, arrow, shard_rows) for name in summary.splits}
    try:
        for chunk, tally, table in pool.map(encode, encoder.stage.chunks):
            summary.add(tally)
            code = codes[chunk.start : chunk.start + chunk.num_rows]
            for name, writer in writers.items():
                writer.append(table.filter(pa.array(code == SPLITS.index(name))))
            progress("write", chunk.start + chunk.num_rows)
    finally:
        for writer in writers.values():
            writer.close()


def arrow_schema(schema: Schema) -> pa.Schema:
    """The columns of an encoded shard."""
    kinds = [pa.int32() if isinstance(field, CategoricalField) else pa.float32() for field in schema.fields]
    columns = [(field.name, kind) for field, kind in zip(schema.fields, kinds, strict=True)]
    return pa.schema([*columns, (schema.label, pa.uint8())])


@contextmanager
def _database(work: Path, memory_bytes: int, threads: int) -> Iterator[duckdb.DuckDBPyConnection]:
    limit = max(memory_bytes - _OWN_MEMORY, _LEAST_MEMORY // 4)
    settings: dict[str, str | bool | int | float | list[str]] = {
        "threads": threads,
        "memory_limit": f"{limit >> 20}MiB",
        "temp_directory": str(work / "spill"),
    }
    with duckdb.connect(config=settings) as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.execute("SET preserve_insertion_order = false")
        yield connection


@contextmanager
def _readable_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise DmoeError(f"out of memory while counting: raise --memory ({first_line(error)})") from None
    except duckdb.Error as error:
        raise DmoeError(f"{output}: could not be written: {first_line(error)}") from None
    except OSError as error:
        code = f" ({errno.errorcode[error.errno]})" if error.errno is not None else ""
        reason = error.strerror or first_line(error)
        raise DmoeError(f"{output}: cannot be written: {reason}{code}; nothing was left there") from None


def first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]
