"""Every row once an epoch, in an order that the seed alone decides; damaged splits are refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.errors import ConfigError, DataError
from dmoe.schema import CategoricalField, NumericField, Schema
from dmoe.shards.batch import Batch
from dmoe.shards.prefetch import prefetch
from dmoe.shards.reader import SplitReader

Column: TypeAlias = "pa.Array[pa.Scalar[pa.DataType]]"
VOCABULARY = 100_000
SCHEMA = Schema(
    label="click",
    fields=(
        CategoricalField(name="row", vocabulary_size=VOCABULARY),
        NumericField(name="half"),
        CategoricalField(name="small", vocabulary_size=7),
    ),
)


def columns(start: int, stop: int) -> dict[str, Column]:
    """Rows whose every column is a function of the row's number, which column `row` holds."""
    number = np.arange(start, stop)
    return {
        "row": pa.array(number.astype(np.int32)),
        "half": pa.array((number / 2).astype(np.float32)),
        "small": pa.array((number % 7).astype(np.int32)),
        "click": pa.array((number % 3 == 0).astype(np.uint8)),
    }


def write_split(folder: Path, parts: list[int], group_rows: int = 50, split: str = "train") -> Path:
    (folder / split).mkdir(parents=True, exist_ok=True)
    SCHEMA.write(folder)
    start = 0
    for index, rows in enumerate(parts):
        table = pa.table(columns(start, start + rows))
        pq.write_table(table, folder / split / f"part-{index:05d}.parquet", row_group_size=group_rows)
        start += rows
    return folder


def rows_of(batches: Iterator[Batch]) -> list[int]:
    """The row numbers in order, after checking that each row's other columns came along with it."""
    numbers: list[int] = []
    for batch in batches:
        assert batch.ids_BC.dtype == torch.int32
        assert batch.numeric_BN.dtype == batch.labels_B.dtype == torch.float32
        assert batch.ids_BC.is_contiguous()
        number = batch.ids_BC[:, 0]
        assert torch.equal(batch.ids_BC[:, 1], number % 7)
        assert torch.equal(batch.numeric_BN[:, 0], number / 2)
        assert torch.equal(batch.labels_B, (number % 3 == 0).float())
        numbers += number.tolist()
    return numbers


def reader_threads() -> list[threading.Thread]:
    prefixes = ("dmoe-batches", "dmoe-chunks", "dmoe-test")
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefixes)]


MEMORY = {"in memory": 4 << 30, "beyond memory": 3_000}


@pytest.fixture(params=list(MEMORY))
def memory_bytes(request: pytest.FixtureRequest) -> int:
    return MEMORY[request.param]


def test_the_memory_limit_chooses_the_way(tmp_path: Path) -> None:
    data = write_split(tmp_path, [250, 130])
    assert SplitReader(data, "train", batch_size=10).in_memory
    # ids, numerics, position of 4 bytes each, 1 byte of label: 17 bytes a row
    assert SplitReader(data, "train", batch_size=10, memory_bytes=380 * 17).in_memory
    assert not SplitReader(data, "train", batch_size=10, memory_bytes=380 * 17 - 1).in_memory


def test_without_shuffle_rows_come_in_file_order(tmp_path: Path, memory_bytes: int) -> None:
    data = write_split(tmp_path, [250, 1, 130])
    reader = SplitReader(data, "train", batch_size=32, memory_bytes=memory_bytes)
    assert (reader.num_rows, reader.num_batches) == (381, 12)
    assert [len(batch) for batch in reader.batches()] == [32] * 11 + [29]
    assert rows_of(reader.batches()) == list(range(381))


@settings(max_examples=40)
@given(
    parts=st.lists(st.integers(0, 120), min_size=1, max_size=4).filter(any),
    group_rows=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    memory=st.sampled_from([1, 700, 2_000, 1 << 30]),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_each_row_once_an_epoch_and_resumable_anywhere(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[int],
    group_rows: int,
    batch_size: int,
    memory: int,
    epoch: int,
    data: st.DataObject,
) -> None:
    folder = write_split(tmp_path_factory.mktemp("split"), parts, group_rows)
    reader = SplitReader(folder, "train", batch_size=batch_size, shuffle=True, seed=5, memory_bytes=memory)
    whole = rows_of(reader.batches(epoch))
    assert sorted(whole) == list(range(sum(parts)))
    start = data.draw(st.integers(0, reader.num_batches))
    fresh = SplitReader(folder, "train", batch_size=batch_size, shuffle=True, seed=5, memory_bytes=memory)
    assert rows_of(fresh.batches(epoch, start)) == whole[start * batch_size :]


def test_the_order_is_of_the_seed_and_epoch(tmp_path: Path, memory_bytes: int) -> None:
    data = write_split(tmp_path, [250, 130])

    def order(seed: int, epoch: int) -> list[int]:
        reader = SplitReader(data, "train", batch_size=32, shuffle=True, seed=seed, memory_bytes=memory_bytes)
        return rows_of(reader.batches(epoch))

    assert order(0, 0) == order(0, 0)
    orders = [order(0, 0), order(0, 1), order(1, 0), list(range(380))]
    assert len({tuple(one) for one in orders}) == 4


def test_the_in_memory_shuffle_is_uniform(tmp_path: Path) -> None:
    """Each of the 24 orders of 4 rows about equally often: chi-square with 23 degrees of freedom."""
    data = write_split(tmp_path, [4])
    reader = SplitReader(data, "train", batch_size=4, shuffle=True, seed=1)
    rounds = 2400
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(rounds):
        order = tuple(rows_of(reader.batches(epoch)))
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert sum((count - rounds / 24) ** 2 / (rounds / 24) for count in seen.values()) < 49.7  # p = 0.001


def test_the_block_shuffle_mixes_row_groups(tmp_path: Path) -> None:
    data = write_split(tmp_path, [1000], group_rows=10)
    reader = SplitReader(data, "train", batch_size=100, shuffle=True, memory_bytes=5_100)
    first = rows_of(reader.batches())[:100]
    # A window of 100 rows is put together from 10 row groups out of 100, drawn from anywhere.
    assert max(first) - min(first) > 500
    assert len({number // 10 for number in first}) == 10


def test_batches_do_not_share_memory_with_the_split(tmp_path: Path, memory_bytes: int) -> None:
    data = write_split(tmp_path, [100])
    reader = SplitReader(data, "train", batch_size=32, memory_bytes=memory_bytes)
    for batch in reader.batches():
        batch.ids_BC.zero_()
        batch.numeric_BN.zero_()
    assert rows_of(reader.batches()) == list(range(100))


def test_closing_early_stops_the_threads(tmp_path: Path, memory_bytes: int) -> None:
    data = write_split(tmp_path, [5000])
    reader = SplitReader(data, "train", batch_size=10, shuffle=True, memory_bytes=memory_bytes)
    batches = reader.batches()
    next(batches)
    assert reader_threads()
    batches.close()  # type: ignore[attr-defined]
    assert not reader_threads()


def test_an_exception_in_the_consumer_stops_the_threads(tmp_path: Path, memory_bytes: int) -> None:
    data = write_split(tmp_path, [5000])
    reader = SplitReader(data, "train", batch_size=10, shuffle=True, memory_bytes=memory_bytes)

    def consume() -> None:
        for _ in reader.batches():
            raise RuntimeError("consumer")

    with pytest.raises(RuntimeError, match="consumer"):
        consume()
    assert not reader_threads()


def test_an_iterator_never_started_starts_no_thread(tmp_path: Path) -> None:
    reader = SplitReader(write_split(tmp_path, [50]), "train", batch_size=10)
    batches = reader.batches()
    assert not reader_threads()
    del batches


def test_two_iterators_at_once(tmp_path: Path, memory_bytes: int) -> None:
    data = write_split(tmp_path, [300])
    reader = SplitReader(data, "train", batch_size=16, shuffle=True, memory_bytes=memory_bytes)
    pairs = list(zip(reader.batches(0), reader.batches(1), strict=True))
    assert rows_of(first for first, _ in pairs) == rows_of(reader.batches(0))
    assert rows_of(second for _, second in pairs) == rows_of(reader.batches(1))


def test_prefetch_stays_within_its_depth() -> None:
    made: list[int] = []

    def source() -> Generator[int, None, None]:
        for index in range(100):
            made.append(index)
            yield index

    items = prefetch(source(), depth=2, name="dmoe-test")
    assert next(items) == 0
    time.sleep(0.05)
    assert len(made) <= 5  # one handed over, two queued, one waiting to be queued, one of slack
    assert list(items) == list(range(1, 100))


def test_prefetch_raises_what_its_source_raises() -> None:
    def source() -> Generator[int, None, None]:
        yield 1
        raise KeyError("source")

    items = prefetch(source(), depth=2, name="dmoe-test")
    assert next(items) == 1
    with pytest.raises(KeyError, match="source"):
        next(items)
    assert not reader_threads()


def test_faults_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        SplitReader(tmp_path / "absent", "train", batch_size=1)
    data = write_split(tmp_path, [5])
    with pytest.raises(DataError, match="has no split 'tset'; it has: train"):
        SplitReader(data, "tset", batch_size=1)
    (data / "valid").mkdir()
    with pytest.raises(DataError, match=r"valid: holds no part-\*\.parquet"):
        SplitReader(data, "valid", batch_size=1)
    write_split(tmp_path, [0], split="valid")
    with pytest.raises(DataError, match="valid: holds no row"):
        SplitReader(data, "valid", batch_size=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"small": None}, "lacks small"),
        ({"other": pa.array([1, 2])}, "has other besides"),
        ({"row": pa.array([1, 2], pa.int64())}, "column 'row' is int64, expected int32"),
        ({"half": pa.array([1, 2], pa.float64())}, "column 'half' is double, expected float"),
        ({"click": pa.array([1, 0], pa.int8())}, "column 'click' is int8, expected uint8"),
    ],
)
def test_files_not_as_the_schema_says(tmp_path: Path, change: dict[str, Column | None], message: str) -> None:
    data = write_split(tmp_path, [5, 5])
    changed = {**columns(0, 2), **change}
    table = pa.table({name: column for name, column in changed.items() if column is not None})
    pq.write_table(table, data / "train" / "part-00001.parquet")
    with pytest.raises(DataError, match=f"part-00001.parquet: .*{message}"):
        SplitReader(data, "train", batch_size=1)


def test_columns_in_another_order(tmp_path: Path) -> None:
    data = write_split(tmp_path, [5])
    path = data / "train" / "part-00000.parquet"
    pq.write_table(pq.read_table(path).select(["half", "row", "small", "click"]), path)
    with pytest.raises(DataError, match="in another order"):
        SplitReader(data, "train", batch_size=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"small": pa.array([1, 7], pa.int32())}, "column 'small' holds id 7, but its vocabulary has 7 ids"),
        ({"small": pa.array([-1, 1], pa.int32())}, "column 'small' holds id -1"),
        ({"small": pa.array([None, 1], pa.int32())}, "column 'small' has 1 nulls"),
        ({"half": pa.array([1.0, float("nan")], pa.float32())}, "column 'half' holds a NaN or infinity"),
        ({"click": pa.array([1, 2], pa.uint8())}, "label 'click' holds 2"),
    ],
)
def test_values_out_of_range(tmp_path: Path, memory_bytes: int, change: dict[str, Column], message: str) -> None:
    data = write_split(tmp_path, [500, 5])
    pq.write_table(pa.table({**columns(0, 2), **change}), data / "train" / "part-00001.parquet")
    reader = SplitReader(data, "train", batch_size=10, memory_bytes=memory_bytes)
    with pytest.raises(DataError, match=f"part-00001.parquet: {message}"):
        list(reader.batches())
    assert not reader_threads()


def test_damaged_files(tmp_path: Path, memory_bytes: int) -> None:
    data = write_split(tmp_path, [500, 5])
    path = data / "train" / "part-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"part-00000\.parquet: not readable as Parquet"):
        SplitReader(data, "train", batch_size=10, memory_bytes=memory_bytes)
    # The footer whole, the pages not: seen only when the pages are read.
    path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    reader = SplitReader(data, "train", batch_size=10, memory_bytes=memory_bytes)
    with pytest.raises(DataError, match=r"part-00000\.parquet: not readable as Parquet"):
        list(reader.batches())


def test_arguments_out_of_range(tmp_path: Path) -> None:
    data = write_split(tmp_path, [5])
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        SplitReader(data, "train", batch_size=0)
    with pytest.raises(ConfigError, match="seed must be at least 0, got -1"):
        SplitReader(data, "train", batch_size=1, seed=-1)
    with pytest.raises(ConfigError, match="memory_bytes must be at least 1, got 0"):
        SplitReader(data, "train", batch_size=1, memory_bytes=0)
    reader = SplitReader(data, "train", batch_size=2)
    with pytest.raises(ConfigError, match="start_batch must be within 0 to 3, got 4"):
        reader.batches(0, 4)
    with pytest.raises(ConfigError, match="epoch must be at least 0, got -1"):
        reader.batches(-1)
    assert rows_of(reader.batches(0, 3)) == []
