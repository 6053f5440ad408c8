"""A load generator for `dmoe serve`: keep-alive connections on one event loop, requests prepared beforehand."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from dmoe.export.onnx_model import OnnxModel
from dmoe.sources.pieces import LogFile

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
INFER = "/v2/models/dmoe/infer"


def raw_table(model: OnnxModel, log: Path, rows: int) -> pa.Table:
    """The first rows of a raw log, as text, with the columns that the model reads."""
    config = model.featuriser.config
    pieces = islice(LogFile(log, config, scoring=True).pieces(), 1 + rows // 1000)
    tables = [
        pa.table({name: piece.columns[name] for name in config.field_columns()}) for piece in (p.read() for p in pieces)
    ]
    return pa.concat_tables(tables)[:rows]


def json_body(table: pa.Table, numbers: Sequence[str]) -> bytes:
    """One tensor a column; `numbers` are sent as numbers, as a client that holds them would."""
    inputs = []
    for name in table.column_names:
        data: list[Any] = table[name].to_pylist()
        if name in numbers:
            data = [float(text) if text else None for text in data]
        kind = "FP64" if name in numbers else "BYTES"
        inputs.append({"name": name, "shape": [len(data)], "datatype": kind, "data": data})
    return json.dumps({"inputs": inputs}).encode()


def arrow_body(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def request(body: bytes, kind: str = JSON, path: str = INFER) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass(slots=True)
class Answer:
    status: int
    body: bytes
    closes: bool


class Connection:
    """One keep-alive connection, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, *parts: bytes, pause_s: float = 0) -> Answer:
        """The answer to a request whose bytes come in `parts`, with a pause between them.

        Raises: OSError or EOFError if the server cannot be reached or cuts the connection.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        reader, writer = self._streams
        try:
            for part in parts:
                writer.write(part)
                if pause_s:
                    await asyncio.sleep(pause_s)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head[9:12])
            start = head.index(b"content-length: ") + 16
            body = await reader.readexactly(int(head[start : head.index(b"\r", start)]))
        except (OSError, EOFError):
            self.close()
            raise
        closes = b"connection: close" in head
        if closes:
            self.close()
        return Answer(status, body, closes)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Server:
    """`dmoe serve` in a process of its own."""

    def __init__(self, model: Path, *options: str) -> None:
        code = "from dmoe.cli.main import main; main()"
        arguments = [sys.executable, "-c", code, "serve", str(model), "--port", "0", "--no-access-log", *options]
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        event = json.loads(self.process.stderr.readline())
        if event["event"] != "ready":
            raise RuntimeError(f"the server did not start: {event}")
        self.port = int(event["port"])
        os.set_blocking(self.process.stderr.fileno(), False)

    def resident_bytes(self) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(text.partition("VmRSS:")[2].split()[0]) * 1024
