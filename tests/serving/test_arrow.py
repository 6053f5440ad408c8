"""Arrow streams of a few kilobytes that stand for gigabytes: refused before anything is decoded."""

import asyncio
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc

from dmoe.errors import DataError
from dmoe.machine.limits import peak_memory_bytes
from dmoe.serving import openapi
from dmoe.serving.arrow import TooLarge, read_table
from tests.serving.conftest import INFER, client, rows
from tests.serving.test_rows import opened, same, stream

ROWS = 1000
LONG = "x" * 400_000
LIMIT = 64 << 20


def one_text_many_times(kind: pa.DataType) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int8()), pa.array([LONG], kind))


def views() -> Any:
    """Views of the same bytes, as a writer can lay them out."""
    view = struct.pack("<i4sii", len(LONG), b"xxxx", 0, 0)
    return pa.Array.from_buffers(pa.string_view(), ROWS, [None, pa.py_buffer(view * ROWS), pa.py_buffer(LONG.encode())])


def nulls_in_lists() -> Any:
    return pa.ListArray.from_arrays(pa.array([0] * ROWS + [2**30], pa.int32()), pa.nulls(2**30))


@pytest.mark.parametrize(
    "column",
    [
        one_text_many_times(pa.string()), one_text_many_times(pa.large_string()), one_text_many_times(pa.binary()),
        views(), nulls_in_lists(), pa.FixedSizeListArray.from_arrays(pa.nulls(ROWS * 2**20), 2**20),
    ],
    ids=["dictionary", "large dictionary", "bytes", "views", "nulls", "fixed nulls"],
)  # fmt: skip
def test_small_streams_that_unfold_are_refused_and_memory_stays_flat(column: Any) -> None:
    body = stream(pa.table({"site": column}))
    before = peak_memory_bytes()
    with pytest.raises(TooLarge, match="unfolds to more than"):
        read_table(body, 10_000, LIMIT)
    assert peak_memory_bytes() - before < 32 << 20


@pytest.mark.parametrize(
    "column",
    [
        pa.RunEndEncodedArray.from_arrays(pa.array([ROWS], pa.int32()), pa.array([LONG])),
        pa.array([{"a": 1}]), pa.array([[[1]]]), pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array(["a"])]),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16))),
        pa.array([["a"]], pa.list_view(pa.string())),
        pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["a"]).dictionary_encode()),
    ],
    ids=["run ends", "struct", "nested", "map", "union", "extension", "list views", "list of dictionary"],
)  # fmt: skip
def test_types_that_no_raw_value_has_are_named(column: Any) -> None:
    with pytest.raises(DataError, match="column 'site' is of a type that no raw value has"):
        read_table(stream(pa.table({"site": column})), 10_000, LIMIT)


def test_dictionaries_that_grow_are_refused_and_those_that_change_are_read() -> None:
    first, second = (pa.table({"a": pa.array(values).dictionary_encode()}) for values in (["x"], ["x", "y"]))
    for deltas in (True, False):
        sink = pa.BufferOutputStream()
        options = ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)
        with ipc.new_stream(sink, first.schema, options=options) as writer:
            writer.write_table(first)
            writer.write_table(second)
        body = sink.getvalue().to_pybytes()
        if deltas:
            with pytest.raises(DataError, match="adds to a dictionary"):
                read_table(body, 10, LIMIT)
        else:
            assert read_table(body, 10, LIMIT)[0]["a"].to_pylist() == ["x", "x", "y"]


def test_ordinary_encodings_count_what_they_hold(in_graph: Path) -> None:
    _, reader = opened(in_graph)
    plain = pa.Table.from_pandas(rows(50))
    expected = reader.from_arrow(stream(plain), 100)
    for kind in (pa.large_string(), pa.dictionary(pa.int16(), pa.string())):
        other = plain.set_column(plain.column_names.index("site"), "site", plain["site"].cast(kind))
        assert same(reader.from_arrow(stream(other), 100), expected)
        # Eight bytes a value and the text itself, whatever the encoding.
        sizes = read_table(stream(other.select(["site"])), 100, LIMIT)[1]
        assert sizes == sum(8 + len((value or "").encode()) for value in plain["site"].to_pylist())


def test_the_server_answers_413_and_counts_what_is_unfolded(in_graph: Path) -> None:
    table = pa.Table.from_pandas(rows(ROWS))
    place = table.column_names.index("site")
    bomb = stream(table.set_column(place, "site", one_text_many_times(pa.string())))
    whole = stream(table)

    async def ask() -> None:
        sent = {"headers": {"content-type": openapi.ARROW}}
        async with client(in_graph) as (session, application):
            found = await session.post(INFER, content=bomb, **sent)
            assert (found.status_code, "unfold" in found.json()["error"]) == (413, True)
            assert (await session.post(INFER, content=whole, **sent)).status_code == 200
            assert application._budget.used == 0
        small = len(whole) / (1 << 20)
        bounds = {"max_body_mb": small, "max_decoded_mb": 8 * small, "max_inflight_mb": 9 * small}
        async with client(in_graph, **bounds) as (session, application):
            assert (await session.post(INFER, content=whole, **sent)).status_code == 200
            with application._budget.reserve() as other:  # of another request: the body fits beside it, no more
                other.grow_to(application._budget.limit - len(whole))
                assert (await session.post(INFER, content=whole, **sent)).status_code == 429
            assert application._budget.used == 0

    asyncio.run(ask())
