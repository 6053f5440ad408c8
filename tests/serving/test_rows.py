"""Rows of requests against the same rows as files and tables: one meaning, whatever the way in."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc

from dmoe.errors import DataError
from dmoe.export.onnx_model import OnnxModel
from dmoe.outputs import KINDS
from dmoe.serving.arrow import read_table
from dmoe.serving.json_body import json_columns
from dmoe.serving.rows import JsonColumn, RequestError, RowReader
from dmoe.sources.tables import _CARRIERS
from tests.export.test_export import ROWS, VALUES, table
from tests.serving.conftest import body, rows

_opened: dict[Path, tuple[OnnxModel, RowReader]] = {}


def opened(folder: Path) -> tuple[OnnxModel, RowReader]:
    if folder not in _opened:
        model = OnnxModel.open(folder)
        _opened[folder] = model, RowReader(model)
    return _opened[folder]


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(left[name], right[name], equal_nan=left[name].dtype.kind == "f") for name in left
    )


def stream(arrow: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, arrow.schema, **options) as writer:
        writer.write_table(arrow)
    return bytes(sink.getvalue())


@pytest.mark.filterwarnings("ignore::dmoe.MissingWordsWarning")
@pytest.mark.parametrize("kind", ["in_graph", "looked_up"])
@settings(max_examples=80)
@given(values=st.lists(ROWS, min_size=1, max_size=5))
def test_json_and_arrow_and_tables_give_the_same_inputs(
    in_graph: Path, looked_up: Path, kind: str, values: list[dict[str, object]]
) -> None:
    model, reader = opened(in_graph if kind == "in_graph" else looked_up)
    arrow = table(values)
    expected = model.featuriser(model.raw_rows(arrow, "table"))
    columns = [JsonColumn(name, "BYTES", [row[name] for row in values]) for name in VALUES]
    assert same(reader.from_arrow(stream(arrow), 100), expected)
    # JSON leaves it to the graph which texts mean "missing", so its inputs may differ where the scores do not.
    assert same(model.score(reader.from_json(columns), KINDS), model.score(expected, KINDS))


@pytest.mark.filterwarnings("ignore::dmoe.MissingWordsWarning")
def test_typed_values_are_read_as_typed_columns_are(in_graph: Path) -> None:
    model, reader = opened(in_graph)
    values: dict[str, tuple[str, list[Any], pa.DataType]] = {
        "site": ("INT64", [5, None, -3], pa.int64()),
        "user": ("BOOL", [True, False, None], pa.bool_()),
        "time": ("INT32", [14102123, 14102600, None], pa.int32()),
        "price": ("FP64", [1.5, None, -3], pa.float64()),
        "age": ("INT8", [7, None, 0], pa.int8()),
        "raw": ("FP32", [0.25, 2, None], pa.float32()),
        "hits": ("UINT16", [3, 0, None], pa.uint16()),
    }
    arrow = pa.table({name: pa.array(data, kind) for name, (_, data, kind) in values.items()})
    columns = [JsonColumn(name, datatype, data) for name, (datatype, data, _) in values.items()]
    assert same(reader.from_json(columns), model.featuriser(model.raw_rows(arrow, "table")))


@pytest.mark.parametrize(
    ("name", "datatype", "data", "message"),
    [
        ("age", "BYTES", ["7", "old"], "input 'age', row 1: not a number"),
        ("age", "BYTES", ["7", "1abc"], "input 'age', row 1: not a number"),
        ("age", "BYTES", ["nan", "7"], "input 'age', row 0: not a number"),
        ("age", "FP64", [1.0, 1e300], "input 'age', row 1: number out of range"),
        ("age", "FP64", [1.0, "2"], "input 'age', row 1: is no FP64 value"),
        ("age", "INT64", [True, 1], "input 'age', row 0: is no INT64 value"),
        ("age", "INT8", [None, 128], "input 'age', row 1: is out of the range of INT8"),
        ("age", "UINT16", [-1, 2], "input 'age', row 0: is out of the range of UINT16"),
        ("site", "UINT32", [1, 2**32], "input 'site', row 1: is out of the range of UINT32"),
        ("site", "INT64", [-(2**63) - 1, 2], "input 'site', row 0: is out of the range of INT64"),
        ("site", "BYTES", ["a", 5], "input 'site', row 1: is no BYTES value"),
        ("site", "BYTES", ["a", ["b"]], "input 'site', row 1: is no BYTES value"),
        ("site", "FP64", [1.0, 2.0**53], "input 'site', row 1: an id so large may be another's in FP64"),
        ("site", "FP32", [1.0, 2.0**24], "input 'site', row 1: an id so large may be another's in FP32"),
        ("time", "BYTES", ["14102123", "yesterday"], "input 'time', row 1: not a time"),
    ],
)
def test_a_bad_value_is_named_by_column_and_row_and_not_shown(
    in_graph: Path, name: str, datatype: str, data: list[Any], message: str
) -> None:
    _, reader = opened(in_graph)
    columns = [JsonColumn(other, "BYTES", [None, None]) for other in VALUES if other != name]
    with pytest.raises(RequestError) as caught:
        reader.from_json([*columns, JsonColumn(name, datatype, data)])
    assert caught.value.status == 400
    assert str(caught.value).startswith(message)
    assert "yesterday" not in str(caught.value)


def test_missing_unknown_and_repeated_inputs(in_graph: Path) -> None:
    _, reader = opened(in_graph)
    columns = [JsonColumn(name, "BYTES", [None]) for name in VALUES]
    with pytest.raises(RequestError, match="input 'site' is missing; send null"):
        reader.from_json([column for column in columns if column.name != "site"])
    with pytest.raises(RequestError, match="no input 'sites'; did you mean 'site'"):
        reader.from_json([*columns, JsonColumn("sites", "BYTES", [None])])
    with pytest.raises(RequestError, match="appears twice"):
        reader.from_json([*columns, columns[0]])


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"shape": [3]}, 400, "shape must be"),
        ({"shape": [2, 2]}, 400, "shape must be"),
        ({"shape": "2"}, 400, "shape must be"),
        ({"shape": [0], "data": []}, 400, "at least one row"),
        ({"data": "ab"}, 400, "data must be a list"),
        ({"datatype": "STRING"}, 400, "datatype must be one of BOOL, BYTES"),
        ({"datatype": ["BYTES"]}, 400, "datatype must be one of"),
        ({"name": 3}, 400, "each of 'inputs'"),
        ({"shape": [9], "data": [None] * 9}, 413, "more than 5 rows"),
        ({"shape": [1], "data": [None]}, 400, "same number of rows"),
    ],
)
def test_tensors_are_checked(change: dict[str, Any], status: int, message: str) -> None:
    inputs = body(rows(2))["inputs"]
    inputs[2] |= change
    with pytest.raises(RequestError, match=message) as caught:
        json_columns(inputs, 5, 9)
    assert caught.value.status == status


def test_nested_rows_are_one_value_each() -> None:
    inputs = [{"name": "a", "shape": [2, 1], "datatype": "BYTES", "data": [["x"], [None]]}]
    assert json_columns(inputs, 5, 9)[0].data == ["x", None]


@pytest.mark.parametrize(
    "noted", [b"{", b"[" * 100_000, b"[1]", b'{"number": [1]}', b"\xff", b"9" * 100_000, b'{"a": "b"}', b"null"]
)
def test_notes_beside_a_column_that_a_stranger_made_say_nothing(in_graph: Path, noted: bytes) -> None:
    model, reader = opened(in_graph)
    arrow = pa.Table.from_pandas(rows(3), preserve_index=False)
    marked = pa.schema([field.with_metadata({_CARRIERS: noted}) for field in arrow.schema])
    assert same(reader.from_arrow(stream(arrow.cast(marked)), 100), reader.from_arrow(stream(arrow), 100))
    assert np.array_equal(model.predict_proba(arrow.cast(marked)), model.predict_proba(arrow))


def test_arrow_streams_from_strangers(in_graph: Path) -> None:
    _, reader = opened(in_graph)
    arrow = pa.Table.from_pandas(rows(3))
    whole = stream(arrow)
    for damaged in (b"", b"x" * 100, whole[:-40][: len(whole) // 2], b"\xff\xff\xff\xff\xff\xff\xff\x7f" + whole):
        with pytest.raises(DataError, match=r"no Arrow IPC stream|holds no row"):
            read_table(damaged, 10, 1 << 20)
    for codec in ("zstd", "lz4"):
        with pytest.raises(DataError, match="compressed"):
            read_table(stream(arrow, options=ipc.IpcWriteOptions(compression=codec)), 10, 1 << 20)
    coded = arrow.set_column(0, "price", arrow["price"].dictionary_encode())
    assert same(reader.from_arrow(stream(coded), 10), reader.from_arrow(whole, 10))
    with pytest.raises(DataError, match="compressed"):
        read_table(stream(coded, options=ipc.IpcWriteOptions(compression="zstd")), 10, 1 << 20)
    with pytest.raises(DataError, match="holds no row"):
        read_table(stream(arrow[:0]), 10, 1 << 20)
    with pytest.raises(RequestError, match="more than 2 rows") as caught:
        reader.from_arrow(whole, 2)
    assert caught.value.status == 413
    with pytest.raises(RequestError, match="no column 'site'"):
        reader.from_arrow(stream(arrow.drop_columns("site")), 10)
    nested = arrow.set_column(0, "price", pa.array([[1], [2], [3]]))
    with pytest.raises(RequestError, match="price"):
        reader.from_arrow(stream(nested), 10)


@settings(max_examples=300)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_changed_byte_of_a_stream_never_does_more_than_fail(in_graph: Path, place: int, value: int) -> None:
    _, reader = opened(in_graph)
    damaged = bytearray(stream(pa.Table.from_pandas(rows(3), preserve_index=False)))
    damaged[place % len(damaged)] = value
    with suppress(RequestError):  # anything else, a crash of the process above all, fails
        assert len(reader.from_arrow(bytes(damaged), 10)["site"]) > 0
