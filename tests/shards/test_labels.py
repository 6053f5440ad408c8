"""Several labels, unknown ones and weights come with their rows, whatever the order and the memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from dmoe.errors import DataError
from dmoe.schema import CategoricalField, Domain, NumericField, Schema, Task
from dmoe.shards.latest import write_latest
from dmoe.shards.reader import SplitReader

FIELDS = (CategoricalField(name="row", vocabulary_size=1000), NumericField(name="half"))
SCHEMA = Schema(
    label="click",
    fields=FIELDS,
    labels=(Task(name="click"), Task(name="buy", given="click"), Task(name="like")),
    weight="w",
)


def written(folder: Path, rows: int = 200) -> Path:
    number = np.arange(rows)
    click, like = number % 3 == 0, number % 5
    table = {
        "row": pa.array(number.astype(np.int32)),
        "half": pa.array((number / 2).astype(np.float32)),
        "click": pa.array(click.astype(np.uint8)),
        "buy": pa.array((number % 2).astype(np.uint8), mask=~click),
        "like": pa.array((like == 1).astype(np.uint8), mask=like == 4),
        "w": pa.array((number / 8).astype(np.float32)),
    }
    for split in ("train", "valid"):
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.table(table), folder / split / "part-00000.parquet", row_group_size=30)
    SCHEMA.write(folder)
    return folder


@pytest.mark.parametrize("memory_bytes", [1 << 30, 2000])
def test_each_row_keeps_its_labels_and_weight(tmp_path: Path, memory_bytes: int) -> None:
    reader = SplitReader(written(tmp_path), "train", batch_size=16, shuffle=True, seed=3, memory_bytes=memory_bytes)
    assert reader.in_memory == (memory_bytes > 2000)
    seen: list[int] = []
    for batch in reader.batches():
        number = batch.ids_BC[:, 0]
        assert batch.known_BT is not None
        assert batch.weights_B is not None
        click, like = number % 3 == 0, number % 5
        assert torch.equal(batch.known_BT, torch.stack([torch.ones_like(click), click, like != 4], 1))
        expected_BT = torch.stack([click, click & (number % 2 == 1), like == 1], 1).float()
        assert torch.equal(batch.labels_BT, expected_BT)
        assert torch.equal(batch.labels_B, click.float())
        assert torch.equal(batch.weights_B, number / 8)
        seen += number.tolist()
    assert sorted(seen) == list(range(200))


def test_the_latest_rows_keep_theirs(tmp_path: Path) -> None:
    data = written(tmp_path / "data")
    (data / "vocabulary").mkdir()
    ids = np.arange(2, 1000)
    pq.write_table(
        pa.table({"value": [str(one) for one in ids], "id": ids, "count": np.ones_like(ids)}),
        data / "vocabulary" / "row.parquet",
    )
    write_latest(data, 50, tmp_path / "latest")
    was, got = (pq.read_table(tmp_path / name / "train").to_pylist() for name in ("data", "latest"))
    keys = ("half", "click", "buy", "like", "w")
    assert [[row[key] for key in keys] for row in got] == [[row[key] for key in keys] for row in was[-50:]]


def test_a_weight_that_is_none_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path) / "train" / "part-00000.parquet"
    table = pq.read_table(path)
    table = table.set_column(table.schema.get_field_index("w"), "w", pa.array(np.full(200, -1, np.float32)))
    pq.write_table(table, path)
    with pytest.raises(DataError, match="column 'w' holds a weight that is below 0"):
        list(SplitReader(tmp_path, "train", batch_size=16).batches())


def test_one_plain_label_is_written_as_ever(tmp_path: Path) -> None:
    Schema(label="click", fields=FIELDS).write(tmp_path)
    text = (tmp_path / "schema.json").read_text()
    assert not any(f'"{name}"' in text for name in ("labels", "domain", "weight"))
    SCHEMA.write(tmp_path)
    assert Schema.read(tmp_path) == SCHEMA


def test_what_does_not_fit_is_said() -> None:
    def labels(**given: str | None) -> Schema:
        return Schema(label="a", fields=FIELDS, labels=tuple(Task(name=name, given=of) for name, of in given.items()))

    assert labels(a=None, b="a", c="b").chain("c") == (0, 1, 2)
    for message, wrong in {
        "given 'z', which is no label": {"a": None, "b": "z"},
        "is given itself": {"a": None, "b": "c", "c": "b"},
        "appear twice: row": {"a": None, "row": None},
        "the first of them": {"b": None, "a": None},
    }.items():
        with pytest.raises(ValidationError, match=message):
            labels(**wrong)
    for message, domain in {
        "is no categorical field": Domain(field="half", names=("x",), of_id=(0,) * 1000),
        "3 numbers for 1000 ids": Domain(field="row", names=("x",), of_id=(0,) * 3),
    }.items():
        with pytest.raises(ValidationError, match=message):
            Schema(label="a", fields=FIELDS, domain=domain)
    with pytest.raises(ValidationError, match="domain number 1 is none of 1"):
        Domain(field="row", names=("x",), of_id=(0, 1))
    assert (
        Schema(label="a", fields=FIELDS, domain=Domain(field="row", names=("x",), of_id=(0,) * 1000)).domain_column == 0
    )
