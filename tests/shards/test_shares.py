"""Readers that share a split: together the batches of one, each row decoded by its own reader alone."""

from pathlib import Path

import numpy as np
import pytest

from dmoe.shards import reader as reading
from dmoe.shards.reader import SplitReader
from tests.shards.test_reader import rows_of, write_split

ALL, WINDOWED = 1 << 30, 3000


def reader(data: Path, memory: int, shuffle: bool, share: tuple[int, int] = (0, 1)) -> SplitReader:
    return SplitReader(data, "train", batch_size=16, shuffle=shuffle, seed=3, memory_bytes=memory, share=share)


@pytest.mark.parametrize("size", [2, 3, 7, 40])
@pytest.mark.parametrize("memory", [ALL, WINDOWED])
@pytest.mark.parametrize("start", [0, 5])
def test_shares_of_a_shuffled_batch_are_that_batch(tmp_path: Path, size: int, memory: int, start: int) -> None:
    data = write_split(tmp_path / "data", [130, 77, 1])
    whole = list(reader(data, memory, True).batches(2, start))
    shares = [list(reader(data, memory, True, (rank, size)).batches(2, start)) for rank in range(size)]
    assert {len(one) for one in shares} == {len(whole)}
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        rows = np.full(len(batch), -1)
        for part in parts:
            assert part.places_B is not None
            rows[part.places_B.numpy()] = part.ids_BC[:, 0].numpy()
        assert rows.tolist() == batch.ids_BC[:, 0].tolist()
        assert sum(map(len, parts)) == len(batch)


@pytest.mark.parametrize("size", [2, 3, 7, 40])
@pytest.mark.parametrize("memory", [ALL, 1])
def test_shares_in_file_order_are_ranges_and_equal_in_number(tmp_path: Path, size: int, memory: int) -> None:
    data = write_split(tmp_path / "data", [130, 77, 1])
    shares = [list(reader(data, memory, False, (rank, size)).batches()) for rank in range(size)]
    assert len({len(one) for one in shares}) == 1
    rows = [row for one in shares for row in rows_of(iter([batch for batch in one if len(batch)]))]
    assert rows == list(range(208))
    whole = [len(batch) for batch in reader(data, memory, False).batches()]
    assert [len(batch) for one in shares for batch in one if len(batch)] == whole


@pytest.mark.parametrize("memory", [ALL, WINDOWED])
def test_each_share_reads_its_own_row_groups(tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader decodes and keeps is its quarter of the rows."""
    data = write_split(tmp_path / "data", [1000])
    read: list[int] = []
    real = reading.read_chunks

    def counted(*arguments: object, **options: object) -> object:
        for chunk in real(*arguments, **options):  # type: ignore[arg-type]
            read.append(len(chunk))
            yield chunk

    monkeypatch.setattr(reading, "read_chunks", counted)
    totals = []
    for rank in range(4):
        read.clear()
        list(reader(data, memory, True, (rank, 4)).batches())
        totals.append(sum(read))
    assert totals == [250] * 4
