"""What requests of strangers cannot do: pass the token, mean two things, or take more than is bounded."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from fastapi import FastAPI
from starlette.routing import Route

from dmoe.errors import ConfigError
from dmoe.serving import openapi, unseen
from dmoe.serving.arrow import TooLarge, read_table
from dmoe.serving.settings import Settings
from dmoe.tokens.unseen import Finding
from tests.serving.conftest import INFER, Process, body, client, rows
from tests.serving.test_rows import stream

TOKEN = "0123456789abcdef-token"
OPEN = {"/", "/page.js", "/page.css", "/icon.svg", "/docs", "/docs.js", "/v2/health/live", "/v2/health/ready"}


def spellings(path: str) -> list[str]:
    """Ways to write a path that a server or proxy might take for the same one."""
    first, last = path[1], path[-1]
    return [
        path, f"{path}/", f"/{path}", path.replace("/", "//"), f"/.{path}", f"/docs/..{path}",
        f"/v2/health/live/../../..{path}",
        f"/%{ord(first):02x}{path[2:]}", f"{path[:-1]}%{ord(last):02x}", path.replace("/", "/%2e/"),
        path.upper(), f"{path}?x=/docs",
        f"{path};/docs", f"{path}%00", f"{path}%2f",
    ]  # fmt: skip


def test_every_route_but_the_open_ones_needs_the_token_however_it_is_asked_for(in_graph: Path) -> None:
    async def ask() -> None:
        async with client(in_graph, token=TOKEN) as (session, application):
            inner = application.guard._app
            assert isinstance(inner, FastAPI)
            paths = {route.path for route in inner.routes if isinstance(route, Route)}
            assert paths > OPEN
            for path in sorted(paths - OPEN):
                for spelling in spellings(path):
                    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE"):
                        found = await session.request(method, f"http://localhost{spelling}")
                        assert found.status_code == 401, (method, spelling)
                        assert method == "HEAD" or found.json() == {
                            "error": "send the token as 'Authorization: Bearer TOKEN'"
                        }
            for path in OPEN:
                assert (await session.get(path)).status_code == 200
            for given in (TOKEN.upper(), f"{TOKEN}x", f"{TOKEN} ", "", f"x, Bearer {TOKEN}"):
                found = await session.get("/v2", headers={"authorization": f"Bearer {given}"})
                assert found.status_code == 401, given

    asyncio.run(ask())


def doubled(request: dict[str, Any], *where: Any) -> bytes:
    """The request as JSON, with one key more in the object at `where`, said twice."""
    request = json.loads(json.dumps(request))
    at = request
    for step in where[:-1]:
        at = at[step]
    at["@"] = at[where[-1]]
    return json.dumps(request).replace('"@"', json.dumps(where[-1])).encode()


@pytest.mark.parametrize(
    "where",
    [("inputs",), ("id",), ("outputs",), ("parameters", "a"), ("inputs", 2, "data"), ("inputs", 2, "name"),
     ("inputs", 2, "shape"), ("outputs", 0, "name"), ("inputs", 0, "parameters", "a")],
)  # fmt: skip
def test_a_key_said_twice_is_refused(in_graph: Path, where: tuple[Any, ...]) -> None:
    request = body(rows(3), id="a", outputs=[{"name": "logit"}], parameters={"a": 1})
    request["inputs"][0]["parameters"] = {"a": 1}

    async def ask() -> None:
        async with client(in_graph) as (session, _):
            sent = {"headers": {"content-type": openapi.JSON}}
            assert (await session.post(INFER, json=request)).status_code == 200
            for content in (doubled(request, *where), doubled(request, *where).replace(b":", b" \n: ")):
                found = await session.post(INFER, content=content, **sent)
                assert (found.status_code, found.json()["error"]) == (
                    400,
                    "a key appears twice in one object; send each once",
                )

    asyncio.run(ask())


def test_texts_that_look_like_keys_are_texts(in_graph: Path) -> None:
    odd = ['"', '":', 'a":1,"a":2', "\\", '\\":', '{"data": 1, "data": 2}', "data", ":"]
    table = pd.concat([rows(1)] * len(odd), ignore_index=True).assign(site=odd)

    async def ask() -> None:
        async with client(in_graph) as (session, _):
            assert (await session.post(INFER, json=body(table))).status_code == 200

    asyncio.run(ask())


def nested(depth: int) -> bytes:
    return b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"


def tensors(count: int, name: str, data: list[Any], datatype: str = "BYTES") -> bytes:
    one = {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}
    return json.dumps({"inputs": [one] * count}).encode()


BOMBS: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "deep": (lambda: nested(500_000), 400, "not JSON"),
    "deep objects": (lambda: b'{"a":' * 200_000 + b"1" + b"}" * 200_000, 400, "not JSON"),
    "as deep as is read": (lambda: nested(1000), 400, "each of 'inputs'"),
    "digits": (lambda: b'{"inputs":' + b"9" * 1_000_000 + b"}", 400, "not JSON"),
    "not a number": (lambda: b'{"inputs": NaN}', 400, "not JSON"),
    "tensors": (lambda: b'{"inputs":[' + b"{}," * 300_000 + b"{}]}", 400, "more inputs than the 7 columns"),
    "outputs": (lambda: json.dumps({"outputs": [{"name": "logit"}] * 9}).encode(), 400, "more outputs than there are"),
    "rows": (
        lambda: tensors(1, "site", [None] * 200_000),
        413,
        "more than 10000 rows",
    ),
    "a long name": (
        lambda: tensors(1, "x" * 900_000, [None]),
        400,
        "the model has no input 'xxxx",
    ),
    "a long number": (
        lambda: json.dumps(body(rows(1).assign(price="9" * 900_000))).encode(),
        400,
        "input 'price', row 0",
    ),
    "a number beyond its type": (
        lambda: tensors(1, "site", [2**64], "INT64"),
        400,
        "input",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_json_bombs_are_refused_at_once(in_graph: Path, name: str) -> None:
    make, status, message = BOMBS[name]

    async def ask() -> None:
        async with client(in_graph) as (session, application):
            began = time.process_time()
            found = await session.post(INFER, content=make(), headers={"content-type": openapi.JSON})
            assert (found.status_code, message in found.json()["error"]) == (status, True), found.text[:300]
            assert len(found.text) < 500
            assert time.process_time() - began < 5
            assert application._budget.used == 0

    asyncio.run(ask())


def test_streams_of_many_batches_are_refused() -> None:
    table = pa.table({"site": ["a"] * 1001})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    with pytest.raises(TooLarge, match="more than 1000 batches and dictionaries; send longer batches"):
        read_table(sink.getvalue().to_pybytes(), 10_000, 1 << 20)
    assert read_table(stream(table), 10_000, 1 << 20)[0] == table


@pytest.mark.parametrize("column", [pa.nulls(3, pa.list_(pa.list_(pa.string()))), pa.nulls(3, pa.null())])
def test_odd_types_of_nulls(column: Any) -> None:
    for _ in range(40):
        column = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), column)
    with pytest.raises(Exception, match="type that no raw value has"):
        read_table(stream(pa.table({"site": column})), 10, 1 << 20)


def test_bytes_are_held_until_the_thread_that_works_on_them_has_ended(
    in_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        large = body(rows(1).assign(site="x" * 100_000))
        size = len(json.dumps(large))
        async with client(in_graph, timeout_s=0.2) as (session, application):
            go_on = threading.Event()

            def wait(*_: Any) -> Any:
                go_on.wait(20)
                raise ValueError

            monkeypatch.setattr(application, "_parse_json", wait)
            statuses = [(await session.post(INFER, json=large)).status_code for _ in range(3)]
            assert statuses == [504] * 3
            # One is being parsed; the others, which had not begun, were given up.
            assert size * 0.9 < application._budget.used < size * 1.1
            go_on.set()
            for _ in range(100):
                await asyncio.sleep(0.02)
                if not application._budget.used:
                    break
            assert application._budget.used == 0

    asyncio.run(ask())


def test_nothing_that_is_sent_can_add_a_line_to_the_log(in_graph: Path, serve: Callable[..., Process]) -> None:
    import socket

    server = serve(in_graph)
    odd = '%0d%0a{"event":"ready"}%1b[2J'
    for line in (
        f"GET /v2/{odd} HTTP/1.1",
        f"GET /v2?outputs={odd} HTTP/1.1",
        "GET /\x1b[2J HTTP/1.1",
        "BAD\x1b[2J / HTTP/1.1",
    ):
        with socket.create_connection(("127.0.0.1", server.ready["port"]), timeout=10) as connection:
            connection.sendall(
                f"{line}\r\nhost: localhost\r\nconnection: close\r\nx-odd: \x1b[2J\r\n\r\n".encode("latin-1")
            )
            while connection.recv(1000):
                pass
    server.process.terminate()
    assert server.process.stderr is not None
    text = server.process.stderr.read()
    assert server.process.wait(20) == 0
    assert text.isprintable() or set(text) - {"\n"} == set(text.replace("\n", ""))
    assert all(one.isprintable() or one == "\n" for one in text)
    events = [json.loads(line)["event"] for line in text.splitlines()]
    assert "ready" not in events
    assert set(events) <= {"request", "server", "draining", "stopped"}


def test_a_header_of_hard_names_is_one_line_and_short() -> None:
    names = [
        "a\r\nset-cookie: x",
        "\x00\x1b[2J",
        "日本" * 40,
        'q";,',
        "é" * 500,
        *(f"field {index}" * 30 for index in range(30)),
    ]
    header = unseen._header([Finding(name, name, "unseen", 90, 100, 0.0) for name in names])
    assert header.isascii()
    assert header.isprintable()
    assert len(header) <= 2000
    assert header.startswith("a%0D%0Aset-cookie%3A%20x;0.90, %00%1B%5B2J;0.90, ")
    # No name is cut: what does not fit is left out.
    assert all(one.endswith(";0.90") for one in header.split(", "))


def test_bounds_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least --max-body-mb and --max-decoded-mb together, got 64 and 80"):
        Settings(model=tmp_path, max_inflight_mb=64)
    with pytest.raises(ConfigError, match="--max-queue-rows must be at least --max-rows, got 9 and 10"):
        Settings(model=tmp_path, max_queue_rows=9, max_rows=10)
