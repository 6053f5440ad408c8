"""Accepted rows between the passes: one Arrow file a chunk, and each field's distinct values of all chunks.

The value of code v of chunk k of a field stands in row `offsets[k] + v` of that field's value file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from dmoe.data.columns import Coded, Codes, Column, Numbers, Rows

_FLUSH_VALUES = 1 << 16


def array_on_disk(path: Path, size: int) -> npt.NDArray[np.int32]:
    """Zeros in a file, for one number a value: with millions of values a chunk they outgrow memory.

    Raises: OSError if the disk is full. (The file is written out first: a full disk under a sparse mapping would
    kill the process.)
    """
    if not size:
        return np.zeros(0, dtype=np.int32)
    with path.open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(bytes(4 * min(1 << 20, size - start)))
    return np.memmap(path, dtype=np.int32, mode="r+", shape=(size,))


@dataclass(frozen=True, slots=True)
class StagedChunk:
    """Rows `start` up to `start + num_rows` of all accepted rows."""

    index: int
    path: Path
    start: int
    num_rows: int

    def codes(self, field: int) -> Codes:
        codes: Codes = self._read(f"c{field}").to_numpy(zero_copy_only=False)
        return codes

    def numbers(self, field: int) -> Numbers:
        numbers: Numbers = self._read(f"n{field}").to_numpy(zero_copy_only=False)
        return numbers

    def times(self) -> Column:
        return self._read("time")

    def _read(self, name: str) -> Column:
        with pa.OSFile(str(self.path), "rb") as file:
            schema = pa.ipc.open_file(file).schema
            options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name)], use_threads=False)
            return pa.ipc.open_file(file, options=options).get_batch(0).column(0)


class ValueFile:
    """The distinct values of one field, chunk after chunk, as one Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets = [0]
        self._writer = pq.ParquetWriter(path, pa.schema([("value", pa.string())]), compression="zstd")
        self._held: list[Column] = []
        self._num_held = 0

    def append(self, column: Coded) -> None:
        self.offsets.append(self.offsets[-1] + len(column.values))
        self._held.append(column.values)
        self._num_held += len(column.values)
        if self._num_held >= _FLUSH_VALUES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.table({"value": pa.chunked_array(self._held)}))
            self._held, self._num_held = [], 0


class Stage:
    """Takes rows chunk by chunk, then gives them back as often as wanted."""

    def __init__(self, folder: Path, categorical: list[str], numeric: list[str]) -> None:
        folder.mkdir()
        self.folder = folder
        self.categorical, self.numeric = categorical, numeric
        self.values = [ValueFile(folder / f"values-{index}.parquet") for index in range(len(categorical))]
        self.chunks: list[StagedChunk] = []
        self._labels: list[npt.NDArray[np.uint8]] = []
        self.num_rows = 0

    def spill(self, piece: int, rows: Rows) -> Path:
        """Writes the rows of a piece of work; may be called from any thread.

        Raises: OSError if the disk is full.
        """
        columns = {f"c{i}": pa.array(rows.categorical[name].codes_N) for i, name in enumerate(self.categorical)}
        columns |= {f"n{i}": pa.array(rows.numeric[name]) for i, name in enumerate(self.numeric)}
        if rows.times_N is not None:
            columns["time"] = rows.times_N
        batch = pa.record_batch(columns)
        path = self.folder / f"piece-{piece}.arrow"
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema, options=options) as writer:
            writer.write_batch(batch)
        return path

    def append(self, rows: Rows, path: Path) -> None:
        """Takes the next rows, spilled to `path`.

        Raises: OSError if the disk is full.
        """
        if not len(rows):
            return
        for values, name in zip(self.values, self.categorical, strict=True):
            values.append(rows.categorical[name])
        self.chunks.append(StagedChunk(len(self.chunks), path, self.num_rows, len(rows)))
        assert rows.labels_N is not None  # absent only when scoring
        self._labels.append(rows.labels_N)
        self.num_rows += len(rows)

    def finish(self) -> npt.NDArray[np.uint8]:
        """Closes the value files; gives all labels."""
        for values in self.values:
            values.close()
        labels = np.concatenate(self._labels) if self._labels else np.zeros(0, np.uint8)
        self._labels = []
        return labels

    def times(self) -> Iterator[pa.RecordBatch]:
        """Row number and time of every row."""
        for chunk in self.chunks:
            rows = pa.array(np.arange(chunk.start, chunk.start + chunk.num_rows))
            yield pa.record_batch({"row": rows, "time": chunk.times()})
