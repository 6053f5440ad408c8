"""The server as its clients meet it: answers, refusals, limits, token, swap, drain, log."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

import dmoe
from dmoe.cli.main import main
from dmoe.errors import ConfigError, DataError
from dmoe.export.manifest import Manifest
from dmoe.export.write import export
from dmoe.serving import openapi
from dmoe.serving.settings import Settings, read_token
from dmoe.weights.run import Run
from tests.serving.conftest import INFER, Process, body, client, rows

TOKEN = "0123456789abcdef-token"


def probabilities(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    (output,) = [one for one in response.json()["outputs"] if one["name"] == "probability"]
    return np.array(output["data"], np.float32)


def test_raw_rows_score_as_the_run_does(run: Run, in_graph: Path) -> None:
    table = rows(300)
    expected = dmoe.load(run.path).predict_proba(table)

    async def ask() -> None:
        async with client(in_graph) as (session, _):
            asked = body(table, id="abc", outputs=[{"name": "gate_weights"}, {"name": "probability"}])
            found = await session.post(INFER, json=asked)
            np.testing.assert_allclose(probabilities(found), expected, atol=2e-6)
            answer = found.json()
            assert (answer["id"], answer["model_version"]) == ("abc", Manifest.read(in_graph).version)
            gate = answer["outputs"][0]
            assert (gate["name"], gate["shape"], gate["datatype"]) == ("gate_weights", [300, 2], "FP32")
            np.testing.assert_allclose(np.array(gate["data"]).reshape(300, 2).sum(1), 1, atol=1e-6)
            arrow = pa.Table.from_pandas(table)
            sink = pa.BufferOutputStream()
            with ipc.new_stream(sink, arrow.schema) as writer:
                writer.write_table(arrow)
            found = await session.post(
                f"{INFER}?outputs=probability,gate_weights",
                content=bytes(sink.getvalue()),
                headers={"content-type": openapi.ARROW},
            )
            assert found.headers["content-type"] == openapi.ARROW
            with ipc.open_stream(found.content) as reader:
                scores = reader.read_all()
            np.testing.assert_allclose(scores["probability"].to_numpy(), expected, atol=2e-6)
            np.testing.assert_allclose(np.array(scores["gate_weights"].to_pylist()).sum(1), 1, atol=1e-6)
            # One row at a time, all at once: batched with others, each gets its own.
            singly = await asyncio.gather(
                *(session.post(INFER, json=body(table[index : index + 1])) for index in range(60))
            )
            np.testing.assert_allclose(np.concatenate([probabilities(one) for one in singly]), expected[:60], atol=2e-6)

    asyncio.run(ask())


def test_what_the_server_says_of_itself(in_graph: Path) -> None:
    async def ask() -> None:
        async with client(in_graph, name="clicks") as (session, application):
            assert (await session.get("/v2")).json()["models"] == ["clicks"]
            assert (await session.get("/v2/health/live")).json() == {"live": True}
            assert (await session.get("/v2/health/ready")).status_code == 200
            assert (await session.get("/v2/models/clicks/ready")).status_code == 200
            model = (await session.get("/v2/models/clicks")).json()
            assert {one["name"]: one["datatype"] for one in model["inputs"]} == {
                "price": "FP64", "age": "FP64", "raw": "FP64", "hits": "FP64", "site": "BYTES", "user": "BYTES",
                "time": "BYTES",
            }  # fmt: skip
            assert model["outputs"][2] == {"name": "gate_weights", "datatype": "FP32", "shape": [-1, 2]}
            other = await session.get("/v2/models/other")
            assert (other.status_code, "GET /v2 for the model" in other.json()["error"]) == (404, True)
            application.guard.draining = True
            ready = await session.get("/v2/health/ready")
            assert (ready.status_code, ready.headers["connection"]) == (503, "close")
            for path in ("/", "/docs"):
                page = await session.get(path)
                assert page.status_code == 200
                assert "default-src 'self'" in page.headers["content-security-policy"]
            await session.post("/v2/models/clicks/infer", json=body(rows(3)))
            metrics = (await session.get("/metrics")).text
            assert "dmoe_rows_total 3.0" in metrics
            assert 'dmoe_requests_total{code="200",route="/v2/models/clicks/infer"} 1.0' in metrics
            assert f'dmoe_model_info{{version="{Manifest.read(in_graph).version}"}} 1.0' in metrics
            assert "dmoe_score_stability_index" in metrics

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("content", "headers", "status", "message"),
    [
        (b"{", {}, 400, "not JSON"),
        (b"[]", {}, 400, "must be a JSON object"),
        (b"{}", {}, 400, "'inputs' must be a list"),
        (b'{"inputs": []}', {}, 400, "'inputs' must be a list"),
        (b'{"inputs": [], "id": 5}', {}, 400, "'id' must be"),
        (b'{"outputs": [1]}', {}, 400, "'outputs' must be"),
        (b'{"outputs": [{"name": "click"}]}', {}, 400, "known: probability, logit, gate_weights"),
        (b'{"outputs": [{"name": ["logit"]}]}', {}, 400, "known: probability"),
        (b"[" * 100_000, {}, 400, "not JSON"),
        (b'{"output": [{"name": "logit"}], "inputs": []}', {}, 400, "unknown key 'output'; did you mean 'outputs'?"),
        (b'{"model_version": "1", "inputs": []}', {}, 400, "'model_version'; known: id, parameters, inputs, outputs"),
        (b'{"outputs": [{"name": "logit", "shape": [1]}]}', {}, 400, "an output has the unknown key 'shape'; known: "),
        (b'{"inputs": [{"name": "site", "dtype": 1}]}', {}, 400, "input 'site' has the unknown key 'dtype'; did you"),
        (b'{"parameters": {"a": [1]}}', {}, 400, "the body: 'parameters' must be an object of texts, numbers"),
        (b'{"inputs": [{"name": "site", "parameters": 1}]}', {}, 400, "input 'site': 'parameters' must be an object"),
        (b'{"inputs": [{"name": "\\ud800"}]}', {}, 400, "not JSON"),
        (b"x=1", {"content-type": "application/x-www-form-urlencoded"}, 415, "send application/json"),
        (b"{}", {"content-encoding": "gzip"}, 415, "encoded bodies"),
        (b"x", {"content-type": openapi.ARROW}, 400, "no Arrow IPC stream"),
        (b"", {"content-type": openapi.ARROW}, 400, "no Arrow IPC stream"),
        (b"x" * 2_000_000, {}, 413, "larger than 1048576 bytes"),
    ],
)
def test_bad_requests_are_refused(
    in_graph: Path, content: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    async def ask() -> None:
        async with client(in_graph, max_body_mb=1) as (session, _):
            found = await session.post(INFER, content=content, headers={"content-type": openapi.JSON, **headers})
            assert (found.status_code, message in found.json()["error"]) == (status, True), found.text
            # Nothing of it is left behind.
            assert probabilities(await session.post(INFER, json=body(rows(1)))).shape == (1,)

    asyncio.run(ask())


def test_a_row_without_a_finite_score_is_refused(in_graph: Path) -> None:
    async def ask() -> None:
        async with client(in_graph) as (session, _):
            found = await session.post(INFER, json=body(rows(3).assign(raw=["1", "3.4e38", "2"])))
            assert (found.status_code, "row 1 has no finite score" in found.json()["error"]) == (400, True)

    asyncio.run(ask())


def test_limits(in_graph: Path) -> None:
    async def chunks(count: int, pause_s: float = 0) -> AsyncIterator[bytes]:
        for _ in range(count):
            await asyncio.sleep(pause_s)
            yield b"x" * 100_000

    async def ask() -> None:
        options: dict[str, Any] = {"max_body_mb": 1, "max_inflight_mb": 2, "max_rows": 50, "read_timeout_s": 0.3}
        options["max_decoded_mb"] = 1
        async with client(in_graph, **options) as (session, application):
            asked = {"headers": {"content-type": openapi.JSON}}
            assert (await session.post(INFER, content=chunks(20), **asked)).status_code == 413
            assert (await session.post(INFER, content=chunks(5, 0.1), **asked)).status_code == 408
            assert (await session.post(INFER, json=body(rows(51)))).status_code == 413
            found = await asyncio.gather(*(session.post(INFER, content=chunks(10, 0.02), **asked) for _ in range(3)))
            # Whose chunks come at the same moment may all be sent away; one by itself is read, and is no JSON.
            assert {one.status_code for one in found} in ({400, 429}, {429})
            assert next(one for one in found if one.status_code == 429).headers["retry-after"] == "1"
            assert application._budget.used == 0
            assert (await session.post(INFER, content=chunks(10, 0.01), **asked)).status_code == 400
        async with client(in_graph, max_rows=50, max_queue_rows=60) as (session, _):
            found = await asyncio.gather(*(session.post(INFER, json=body(rows(40))) for _ in range(4)))
            assert {one.status_code for one in found} == {200, 429}
            assert (await session.post(INFER, json=body(rows(40)))).status_code == 200
        async with client(in_graph, timeout_s=1e-4, max_rows=2000) as (session, application):
            assert (await session.post(INFER, json=body(rows(2000)))).status_code == 504
            await asyncio.sleep(0.2)
            assert application.batcher.queued_rows == 0

    asyncio.run(ask())


def test_the_token_and_the_host(in_graph: Path) -> None:
    async def ask() -> None:
        async with client(in_graph, token=TOKEN) as (session, _):
            for given in ({}, {"authorization": TOKEN}, {"authorization": f"Bearer {TOKEN[:-1]}"}):
                for path in ("/v2", "/v2/models/dmoe", "/metrics"):
                    found = await session.get(path, headers=given)
                    assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")
                assert (await session.post(INFER, json=body(rows(1)), headers=given)).status_code == 401
                assert (await session.post("/v2/repository/models/dmoe/load", headers=given)).status_code == 401
            for path in ("/", "/page.js", "/v2/health/live", "/v2/health/ready"):
                assert (await session.get(path)).status_code == 200
            right = {"authorization": f"Bearer {TOKEN}"}
            assert (await session.post(INFER, json=body(rows(1)), headers=right)).status_code == 200
        async with client(in_graph) as (session, _):
            for host, status in (("evil.example", 421), ("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200)):
                assert (await session.get("/v2", headers={"host": host})).status_code == status
        async with client(in_graph, host="0.0.0.0", token=TOKEN) as (session, _):
            assert (await session.get("/v2/health/live", headers={"host": "models.example"})).status_code == 200

    asyncio.run(ask())


def test_without_the_token_no_column_or_value_is_shown(in_graph: Path) -> None:
    async def ask() -> None:
        async with client(in_graph, token=TOKEN) as (session, _):
            right = {"authorization": f"Bearer {TOKEN}"}
            assert "paths" in (await session.get("/openapi.json", headers=right)).json()
            for method in ("GET", "HEAD", "OPTIONS", "POST"):
                for path in (
                    "/openapi.json",
                    "http://localhost//openapi.json",
                    "/openapi.json/",
                    "/%6fpenapi.json",
                    "/docs/../v2",
                ):
                    assert (await session.request(method, path)).status_code == 401
            for path in ("/", "/page.js", "/docs", "/docs.js", "/v2/health/ready"):
                text = (await session.get(path)).text
                assert "14102123" not in text
                assert "hits" not in text

    asyncio.run(ask())


def test_settings_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for change, message in (
        ({"host": "0.0.0.0"}, "can be reached from other machines and no token is set"),
        ({"max_rows": 0}, "--max-rows must be at least 1"),
        ({"timeout_s": float("nan")}, "--timeout-s must be above 0"),
        ({"batch_delay_ms": -1.0}, "--batch-delay-ms must be at least 0"),
        ({"max_queue_rows": 5}, "--max-queue-rows must be at least --max-rows, got 5 and 10000"),
        ({"name": "a/b"}, "--name must be letters"),
    ):
        with pytest.raises(ConfigError, match=message):
            Settings(model=tmp_path, **change)
    Settings(model=tmp_path, host="0.0.0.0", allow_anonymous=True)
    assert "secret" not in repr(Settings(model=tmp_path, token="secret"))
    monkeypatch.delenv("DMOE_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("DMOE_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    (tmp_path / "token").write_text(f"{TOKEN}-file\n")
    assert read_token(tmp_path / "token") == f"{TOKEN}-file"
    (tmp_path / "short").write_text("short")
    with pytest.raises(ConfigError, match="at least 16"):
        read_token(tmp_path / "short")
    with pytest.raises(DataError, match="cannot be read"):
        read_token(tmp_path / "absent")


def test_models_are_exchanged_under_load_without_a_wrong_answer(run: Run, in_graph: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "small", tables="int8")
    versions = {Manifest.read(folder).version: folder for folder in (in_graph, tmp_path / "small")}
    table = rows(7)
    expected = {version: dmoe.load(folder).predict_proba(table) for version, folder in versions.items()}
    assert np.abs(np.subtract(*expected.values())).max() > 1e-5
    (tmp_path / "current").symlink_to(in_graph)

    async def ask() -> None:
        async with client(tmp_path / "current") as (session, _):
            seen: dict[str, int] = dict.fromkeys(versions, 0)
            running = True

            async def keep_asking() -> None:
                while running:
                    found = await session.post(INFER, json=body(table))
                    version = found.json()["model_version"]
                    np.testing.assert_allclose(probabilities(found), expected[version], atol=1e-6)
                    seen[version] += 1

            async def load() -> httpx.Response:
                return await session.post("/v2/repository/models/dmoe/load", json={})

            asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
            for folder in (tmp_path / "small", in_graph, tmp_path / "small", in_graph):
                (tmp_path / "next").symlink_to(folder)
                (tmp_path / "next").rename(tmp_path / "current")
                found = await load()
                assert found.json()["version"] == Manifest.read(folder).version
                assert (await session.post(INFER, json=body(table))).json()["model_version"] == found.json()["version"]
            # What cannot be served leaves what is served.
            shutil.copytree(in_graph, tmp_path / "bad")
            with (tmp_path / "bad" / "model.onnx.data").open("ab") as stream:
                stream.write(b"x")
            (tmp_path / "next").symlink_to(tmp_path / "bad")
            (tmp_path / "next").rename(tmp_path / "current")
            found = await load()
            assert (found.status_code, "checksum" in found.json()["error"]) == (400, True)
            assert (await session.post("/v2/repository/models/dmoe/load")).status_code == 415
            for other in ({"parameters": {"config": "{}"}}, [], {"version": "1"}):
                found = await session.post("/v2/repository/models/dmoe/load", json=other)
                assert (found.status_code, "the body must be {}" in found.json()["error"]) == (400, True)
            for query in ("output=logit", "outputs=logit&outputs=probability", "outputs=logit&x="):
                found = await session.post(f"{INFER}?{query}", json=body(rows(1)))
                assert (found.status_code, "'outputs' once" in found.json()["error"]) == (400, True)
            metrics = (await session.get("/metrics")).text
            assert 'dmoe_model_swaps_total{result="done"} 4.0' in metrics
            assert 'dmoe_model_swaps_total{result="refused"} 1.0' in metrics
            running = False
            await asyncio.gather(*asking)
            assert min(seen.values()) > 0

    asyncio.run(ask())


def test_the_log_holds_no_values(in_graph: Path, serve: Callable[..., Process]) -> None:
    server = serve(in_graph)
    table = rows(2).assign(site="a-secret-site", age="31337")
    assert probabilities(httpx.post(server.url + INFER, json=body(table))).shape == (2,)
    assert httpx.post(server.url + INFER, json=body(table.assign(age="secret-age"))).status_code == 400
    assert httpx.get(f"{server.url}/v2/models/secret-path").status_code == 404
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.stderr is not None
    lines = server.process.stderr.read()
    assert server.process.wait(20) == 0
    assert "secret" not in lines
    assert "31337" not in lines
    requests = [json.loads(line) for line in lines.splitlines() if '"request"' in line]
    assert [one["status"] for one in requests] == [200, 400, 404]
    assert (requests[0]["rows"], requests[0]["version"]) == (2, Manifest.read(in_graph).version)


def test_sigterm_answers_what_has_arrived(in_graph: Path, serve: Callable[..., Process]) -> None:
    server = serve(in_graph, "--drain-delay-s", "0.6", "--no-access-log")
    answered, failed, unread = [], [], []

    def keep_asking() -> None:
        with httpx.Client(base_url=server.url) as session:
            while True:
                try:
                    answered.append(session.post(INFER, json=body(rows(20))).status_code)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                    unread.append(error)
                except httpx.TransportError as error:
                    failed.append(error)
                    return

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    os.kill(server.process.pid, signal.SIGTERM)
    server.next_event("draining")
    assert httpx.get(f"{server.url}/v2/health/ready").status_code == 503
    for thread in threads:
        thread.join()
    assert server.process.wait(20) == 0
    assert set(answered) == {200}
    # Every connection was told to close, so nobody was cut off: only new connections are refused.
    assert [type(error) for error in failed] == [httpx.ConnectError] * len(threads)
    # A connection made at the very moment of closing may end before its request is read; asked again, it is refused.
    assert len(unread) <= len(threads)


def test_connections_that_wait_and_heads_that_come_late_are_answered(
    in_graph: Path, serve: Callable[..., Process]
) -> None:
    server = serve(in_graph, "--drain-delay-s", "0", "--no-access-log")
    content = json.dumps(body(rows(2))).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(content)}\r\n\r\n".encode() + content
    # While it is stopped, the kernel takes connections for it into the queue of the listening socket.
    os.kill(server.process.pid, signal.SIGSTOP)
    address = ("127.0.0.1", server.ready["port"])
    waiting = [socket.create_connection(address, timeout=10) for _ in range(40)]
    for connection in waiting[:30]:
        connection.sendall(request)
    os.kill(server.process.pid, signal.SIGTERM)
    os.kill(server.process.pid, signal.SIGCONT)
    server.next_event("draining")
    for connection in waiting[30:]:
        time.sleep(0.02)
        connection.sendall(request)
    for connection in waiting:
        with connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 200"), waiting.index(connection)
    assert server.process.wait(20) == 0


def test_sighup_exchanges_the_model(run: Run, in_graph: Path, tmp_path: Path, serve: Callable[..., Process]) -> None:
    export(run, tmp_path / "half", tables="float16")
    (tmp_path / "current").symlink_to(in_graph)
    server = serve(tmp_path / "current")
    (tmp_path / "next").symlink_to(tmp_path / "half")
    (tmp_path / "next").rename(tmp_path / "current")
    os.kill(server.process.pid, signal.SIGHUP)
    assert server.next_event("swapped")["version"] == Manifest.read(tmp_path / "half").version
    assert httpx.get(f"{server.url}/v2/models/dmoe").json()["versions"] == [Manifest.read(tmp_path / "half").version]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b"408"),
        (b"POST /v2/models/dmoe/infer HTTP/1.1\r\nhost: localhost\r\n", b"408"),
        (b"GET / HTTP/1.1\r\n" + b"x-filler: 0123456789\r\n" * 5000, b"431"),
        (b"not http at all\r\n\r\n", b"400"),
    ],
)
def test_slow_and_endless_heads_are_cut_off(
    in_graph: Path, serve: Callable[..., Process], sent: bytes, status: bytes
) -> None:
    server = serve(in_graph, "--read-timeout-s", "0.4")
    with socket.create_connection(("127.0.0.1", server.ready["port"]), timeout=10) as connection:
        connection.sendall(sent)
        assert connection.recv(100).split(b" ")[1] == status
        while connection.recv(1000):
            pass
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200


def test_more_connections_than_allowed_get_503(in_graph: Path, serve: Callable[..., Process]) -> None:
    server = serve(in_graph, "--max-connections", "5")
    held = [socket.create_connection(("127.0.0.1", server.ready["port"])) for _ in range(6)]
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 503
    for connection in held:
        connection.close()
    time.sleep(0.3)
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200


def test_usage_errors_exit_2(in_graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(in_graph, tmp_path / "bad")
    (tmp_path / "bad" / "schema.json").write_text("{}")
    for arguments, message in (
        ([tmp_path / "absent"], "no such model folder"),
        ([tmp_path / "bad"], "checksum"),
        ([in_graph, "--host", "0.0.0.0"], "no token is set"),
        ([in_graph, "--token-file", tmp_path / "absent"], "the token cannot be read"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["serve", *map(str, arguments)])
        assert stopped.value.code == 2
        assert message in capfd.readouterr().err


def test_a_taken_port_is_said(in_graph: Path, serve: Callable[..., Process]) -> None:
    server = serve(in_graph)
    arguments = [*server.process.args[:4], str(in_graph), "--port", str(server.ready["port"])]  # type: ignore[index]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, "choose another --port" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr
