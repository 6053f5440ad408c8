"""Accepted rows between the passes: for each piece of input, its rows in codes and its distinct values.

The value of code v of chunk k of a field is number `offsets[k] + v` of all values of that field.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from dmoe.machine.ordered_pool import OrderedPool
from dmoe.tokens.fields import FieldRows
from dmoe.tokens.quantiles import bucket_of, bucket_tokens
from dmoe.tokens.times import mixed_zones
from dmoe.values.canonical import Forms, merged
from dmoe.values.coded_columns import Codes, Column, Numbers

_TEXT: pa.DataType = pa.string()
# A bit beside the label.
_CONTRADICTS = np.uint8(4)


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


def array_again(path: Path, size: int) -> npt.NDArray[np.int32]:
    """What `array_on_disk` made and earlier work filled."""
    return np.memmap(path, dtype=np.int32, mode="r", shape=(size,)) if size else np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class StagedChunk:
    """Rows `start` up to `start + num_rows` of all accepted rows."""

    index: int
    name: str
    start: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Spill:
    """Writes rows into the folder of a stage, on any thread or machine that sees it.

    `coded` are the categorical fields whose codes come with the rows, `numeric` the fields that come as numbers. Beside
    them `num_labels` labels, and a weight where the rows are `weighted`.
    """

    folder: Path
    coded: tuple[str, ...]
    numeric: tuple[str, ...]
    num_labels: int = 1
    weighted: bool = False

    def write(self, piece: str, rows: FieldRows) -> list[int]:
        """Writes the rows of a piece of work; gives how many values each coded field has in it.

        Raises: OSError if the disk is full.
        """
        columns = {f"c{i}": _as_column(rows.categorical[name].codes_N) for i, name in enumerate(self.coded)}
        columns |= {f"n{i}": pa.array(rows.numeric[name]) for i, name in enumerate(self.numeric)}
        assert rows.labels is not None  # absent only when scoring
        marks_NT = rows.labels.labels_NT | (rows.labels.contradicts_NT * _CONTRADICTS)
        columns |= {f"l{task}": pa.array(marks_N) for task, marks_N in enumerate(marks_NT.T)}
        if rows.weights_N is not None:
            columns["weight"] = pa.array(rows.weights_N)
        if rows.times_N is not None:
            columns["time"] = rows.times_N
        self._write(f"rows-{piece}.arrow", [pa.record_batch(columns)], "lz4")
        values = [rows.categorical[name].values.cast(_TEXT) for name in self.coded]
        if values:
            self.write_values(f"values-{piece}.arrow", values)
        return [len(one) for one in values]

    def write_values(self, file: str, columns: Sequence[Column]) -> None:
        """Raises: OSError if the disk is full."""
        self._write(file, [pa.record_batch({"value": one}) for one in columns], "zstd")

    def place(self, column: str) -> int:
        """Where a column stands in a file of rows."""
        counts = {"c": len(self.coded), "n": len(self.numeric), "l": self.num_labels}
        names = [f"{letter}{i}" for letter, count in counts.items() for i in range(count)]
        return [*names, *(["weight"] if self.weighted else []), "time"].index(column)

    def _write(self, name: str, batches: list[pa.RecordBatch], compression: Literal["lz4", "zstd"]) -> None:
        options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
        with (
            pa.OSFile(str(self.folder / name), "wb") as file,
            pa.ipc.new_file(file, batches[0].schema, options=options) as writer,
        ):
            for batch in batches:
                writer.write_batch(batch)


def _as_column(codes: Codes) -> Column:
    if codes.ndim == 1:
        return pa.array(codes)
    return pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), codes.shape[1])


class Stage:
    """Takes rows piece by piece, then gives them back as often as wanted."""

    def __init__(self, spill: Spill) -> None:
        self.folder, self.spill = spill.folder, spill
        self.coded, self.numeric = list(spill.coded), list(spill.numeric)
        self.chunks: list[StagedChunk] = []
        self.num_rows = 0
        self.forms: dict[str, Forms] = {}
        self._offsets: dict[str, list[int]] = {name: [0] for name in self.coded}
        self._tokens: set[str] = set()
        self._edges: dict[str, tuple[float, ...]] = {}

    def append(self, piece: str, num_rows: int, num_values: Sequence[int], forms: Mapping[str, Forms]) -> None:
        """Takes the next piece, which was spilled; `forms`: how its values are written, by field."""
        if not num_rows:
            return
        for name, count in zip(self.coded, num_values, strict=True):
            self._offsets[name].append(self._offsets[name][-1] + count)
        for name, found in forms.items():
            self.forms[name] = merged([self.forms.get(name, {}), found])
        self.chunks.append(StagedChunk(len(self.chunks), piece, self.num_rows, num_rows))
        self.num_rows += num_rows

    def quantise(self, name: str, edges: tuple[float, ...]) -> None:
        """From now on the numeric field `name` has codes and values too: its buckets between these edges."""
        self._edges[name] = edges
        self._offsets[name] = [index * (len(edges) + 1) for index in range(len(self.chunks) + 1)]

    def replace(self, name: str, token: Callable[[str], str], pool: OrderedPool) -> None:
        """From now on the values of a categorical field are their tokens: worked out once, and kept in files."""

        def write(chunk: StagedChunk) -> None:
            texts = [token(value) for value in self._values(chunk, name).to_pylist()]
            self.spill.write_values(self._token_file(chunk, name), [pa.array(texts, _TEXT)])

        for _ in pool.map(write, self.chunks):
            pass
        self._tokens.add(name)

    def edges(self, name: str) -> tuple[float, ...] | None:
        return self._edges.get(name)

    def offsets(self, name: str) -> list[int]:
        return self._offsets[name]

    def labels(self, task: int) -> npt.NDArray[np.uint8]:
        """Those of a task in all rows: 0, 1 and `UNKNOWN`."""
        labels_N = np.empty(self.num_rows, dtype=np.uint8)
        for chunk in self.chunks:
            marks = self._read(chunk, f"l{task}").to_numpy()
            labels_N[chunk.start : chunk.start + chunk.num_rows] = marks & ~_CONTRADICTS
        return labels_N

    def contradicts(self, chunk: StagedChunk, task: int) -> npt.NDArray[np.bool_]:
        """Where the column of a label said 1 and that of the label that it is given 0."""
        marks: npt.NDArray[np.uint8] = self._read(chunk, f"l{task}").to_numpy()
        return (marks & _CONTRADICTS) > 0

    def weights(self, chunk: StagedChunk) -> npt.NDArray[np.float32]:
        """Those of the rows of a chunk."""
        weights: npt.NDArray[np.float32] = self._read(chunk, "weight").to_numpy()
        return weights

    def codes(self, chunk: StagedChunk, name: str) -> Codes:
        """The codes of a categorical field, -1 where missing; (N, L) of a multi-valued one."""
        if name in self._edges:
            return bucket_of(self.numbers(chunk, name), self._edges[name])
        column = self._read(chunk, f"c{self.coded.index(name)}")
        if pa.types.is_fixed_size_list(column.type):
            several: Codes = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
            return several
        codes: Codes = column.to_numpy(zero_copy_only=False)
        return codes

    def numbers(self, chunk: StagedChunk, name: str) -> Numbers:
        """The values of a field that came as numbers, NaN where missing."""
        numbers: Numbers = self._read(chunk, f"n{self.numeric.index(name)}").to_numpy(zero_copy_only=False)
        return numbers

    def values(self, name: str) -> Iterator[Column]:
        """The values of a categorical field, chunk by chunk."""
        for chunk in self.chunks:
            if name in self._edges:
                yield bucket_tokens(self._edges[name])
                continue
            yield self._values(chunk, name)

    def _values(self, chunk: StagedChunk, name: str) -> Column:
        place = self.coded.index(name)
        path, batch = f"values-{chunk.name}.arrow", place
        if name in self._tokens:
            path, batch = self._token_file(chunk, name), 0
        with pa.OSFile(str(self.folder / path), "rb") as file:
            return pa.ipc.open_file(file).get_batch(batch).column(0)

    def _token_file(self, chunk: StagedChunk, name: str) -> str:
        return f"tokens-{self.coded.index(name)}-{chunk.name}.arrow"

    def times(self, column: str) -> Iterator[pa.RecordBatch]:
        """Row number and time, a number or a moment in nanoseconds, of every row; `column` is the time's name.

        Raises: DataError if some chunks have moments of a zone and some of none.
        """
        zones: set[str | None] = set()
        for chunk in self.chunks:
            rows = pa.array(np.arange(chunk.start, chunk.start + chunk.num_rows))
            time = self._read(chunk, "time")
            if pa.types.is_timestamp(time.type):
                zones.add(time.type.tz)
                if len(zones) > 1:
                    raise mixed_zones(column, "the input")
                time = time.cast(pa.int64())
            yield pa.record_batch({"row": rows, "time": time})

    def _read(self, chunk: StagedChunk, column: str) -> Column:
        with pa.OSFile(str(self.folder / f"rows-{chunk.name}.arrow"), "rb") as file:
            options = pa.ipc.IpcReadOptions(included_fields=[self.spill.place(column)], use_threads=False)
            return pa.ipc.open_file(file, options=options).get_batch(0).column(0)
