"""Bodies made to take far more memory than they weigh: the server's own memory stays within what it says."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest

from dmoe.serving import openapi
from tests.serving.conftest import INFER, Process, body, rows
from tests.serving.test_arrow import LONG, one_text_many_times
from tests.serving.test_rows import stream

MEBIBYTE = 1 << 20
SIZE = 4 * MEBIBYTE - 2000
BOUNDS = ("--max-body-mb", "4", "--max-decoded-mb", "16.1")


def tensor(unit: bytes) -> bytes:
    """A body whose one tensor holds `unit` over and over."""
    data = unit * (SIZE // len(unit)) + b"null"
    return b'{"inputs": [{"name": "site", "datatype": "BYTES", "shape": [1], "data": [' + data + b"]}]}"


def of_texts(count: int, text: str) -> bytes:
    return json.dumps(body(rows(count).assign(site=text)), ensure_ascii=False).encode()


def with_column(column: pa.Array, **options: object) -> bytes:
    table = pa.Table.from_pandas(rows(len(column)))
    return stream(table.set_column(table.column_names.index("site"), "site", column), **options)


JSON_BODIES: dict[str, Callable[[], bytes]] = {
    "texts": lambda: tensor(b'"ab",'),
    "objects": lambda: tensor(b'{"":0},'),
    "lists": lambda: tensor(b"[],"),
    "nested numbers": lambda: tensor(b"[1.5],"),
    "parameters": lambda: b'{"parameters": {"a": [' + b"{}," * (SIZE // 3) + b"1]}}",
    "an unknown key": lambda: b'{"a": [' + b"[]," * (SIZE // 3) + b"1]}",
    "many keys": lambda: b"{" + b",".join(b'"%x":1' % one for one in range(SIZE // 12)) + b"}",
    "a key twice": lambda: b'{"id": "a", "id": [' + b"[]," * (SIZE // 3) + b"1]}",
    "wide texts": lambda: of_texts(100, "x" * (SIZE // 100 - 1000) + "😀"),
    "one text of separators": lambda: of_texts(1, " " * (SIZE - 9000)),
    "texts of separators": lambda: of_texts(1000, "|x" * (SIZE // 2000 - 200)),
}
ARROW_BODIES: dict[str, Callable[[], bytes]] = {
    "dictionary": lambda: with_column(one_text_many_times(pa.string())),
    "run ends": lambda: with_column(pa.RunEndEncodedArray.from_arrays(pa.array([9000], pa.int32()), pa.array([LONG]))),
    "nested": lambda: with_column(pa.array([[[1]]] * 1000)),
    "compressed": lambda: with_column(pa.array([LONG] * 10), options=pa.ipc.IpcWriteOptions(compression="zstd")),
    "lists of nulls": lambda: with_column(
        pa.ListArray.from_arrays(pa.array([0] * 1000 + [2**30], pa.int32()), pa.nulls(2**30))
    ),
    "lists of bytes": lambda: with_column(pa.array([list(range(100))] * 10_000, pa.list_(pa.int8()))),
    "separators": lambda: with_column(pa.array(["|" * (SIZE // 1000 - 200)] * 1000)),
    "dictionary of separators": lambda: with_column(
        pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int8()), pa.array([" " * (SIZE - 9000)]))
    ),
    "scales": lambda: with_column(
        pa.Array.from_buffers(pa.decimal128(38, -1_000_000), 1000, [None, pa.py_buffer(np.ones(2000, np.int64))])
    ),
}

# Within the bounds: four bytes for each character, and copies of them.
ANSWERED = ("wide texts",)


def status_of(process: int, key: str) -> int:
    """Bytes that the system says a process has (VmRSS) or had at most (VmHWM)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) << 10


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not say a process's peak")
def test_bodies_that_unfold_leave_the_memory_flat(in_graph: Path, serve: Callable[..., Process]) -> None:
    server = serve(in_graph, "--no-access-log", *BOUNDS)
    process = server.process.pid
    with httpx.Client(base_url=server.url, timeout=60) as session:

        def send(content: bytes, kind: str) -> httpx.Response:
            return session.post(INFER, content=content, headers={"content-type": kind})

        ordinary = json.dumps(body(rows(1000))).encode()
        assert send(ordinary, openapi.JSON).status_code == 200
        for kind, bodies in ((openapi.JSON, JSON_BODIES), (openapi.ARROW, ARROW_BODIES)):
            for name, make in bodies.items():
                content = make()
                assert len(content) < 4 * MEBIBYTE, name
                before = status_of(process, "VmRSS")
                Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak begins anew
                found = send(content, kind)
                more = status_of(process, "VmHWM") - before
                # What came in, once more as one piece, and what counts its values; --max-decoded-mb is never reached.
                assert found.status_code == (200 if name in ANSWERED else 413 if "unfolds" in found.text else 400), name
                # What came in, once more as one piece, and what counts its values.
                times = 20 if name in ANSWERED else 6
                assert more < times * len(content) + 8 * MEBIBYTE, (name, more / MEBIBYTE)
        assert send(ordinary, openapi.JSON).status_code == 200
