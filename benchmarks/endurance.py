"""Minutes of mixed load on `dmoe serve`, with models exchanged and a SIGTERM at the end: what came back.

$ python -m benchmarks.endurance MODEL OTHER_MODEL LOG --seconds 600 --json endurance.json

The load generator shares the cores with the server. Every answered row is compared with what the version that
answered gives in this process.
"""

import argparse
import asyncio
import json
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from benchmarks.load import ARROW, INFER, JSON, Answer, Connection, Server, arrow_body, json_body, raw_table, request
from dmoe.export.onnx_model import OnnxModel

MAX_BODY_MB = 1
READ_TIMEOUT_S = 2
# 408 and 413 end a bad request; 429, 503 and 504 are the documented answers to too much load.
ALLOWED = {"valid": {200, 429, 503, 504}, "malformed": {400, 415}, "oversized": {413}, "slow": {408}}


class Load:
    """The traffic: who asks what, and what was answered."""

    def __init__(self, models: dict[str, OnnxModel], table: pa.Table) -> None:
        self._table = table
        self._expected = {version: model.predict_proba(table) for version, model in models.items()}
        numbers = [one.column for one in next(iter(models.values())).inputs if one.kind == "number"]
        self._singles = [request(json_body(table.slice(row, 1), numbers)) for row in range(256)]
        self._batches = [(row, request(json_body(table.slice(row, 100), numbers))) for row in range(0, 900, 100)]
        self._arrows = [(row, request(arrow_body(table.slice(row, 200)), ARROW)) for row in range(0, 800, 200)]
        valid = json_body(table.slice(0, 1), numbers)
        self._malformed = [
            request(b"{"),
            request(valid.replace(b'"BYTES"', b'"TEXT"')),
            request(valid.replace(b'"shape": [1]', b'"shape": [2]')),
            request(valid[: len(valid) // 2]),
            request(valid, "text/plain"),
            request(b"not arrow", ARROW),
            request(arrow_body(table.slice(0, 9))[:-300][: 600], ARROW),
        ]  # fmt: skip
        self.counts: dict[str, Counter[int]] = {kind: Counter() for kind in ALLOWED}
        self.by_version: Counter[str] = Counter()
        self.wrong = self.rows = self.cut_off = 0
        self.largest_difference = 0.0
        self.running = True
        self.terminated = False

    async def valid(self, port: int, seed: int) -> None:
        draw = random.Random(seed)
        connection = Connection(port)
        while self.running:
            turn = draw.random()
            if turn < 0.9:
                start, count = draw.randrange(256), 1
                content = self._singles[start]
            elif turn < 0.95:
                start, content = draw.choice(self._batches)
                count = 100
            else:
                start, content = draw.choice(self._arrows)
                count = 200
            answer = await self._ask(connection, "valid", content)
            if answer is None:
                return
            if answer.status == 200:
                self._check(answer, start, count)

    def _check(self, answer: Answer, start: int, count: int) -> None:
        if answer.body[:1] == b"{":
            values = json.loads(answer.body)
            version, found = values["model_version"], np.array(values["outputs"][0]["data"])
        else:
            with ipc.open_stream(answer.body) as reader:
                table = reader.read_all()
            version = table.schema.metadata[b"model_version"].decode()
            found = table["probability"].to_numpy()
        self.by_version[version] += 1
        self.rows += count
        difference = np.abs(found - self._expected[version][start : start + count]).max() if len(found) == count else 1
        self.largest_difference = max(self.largest_difference, float(difference))
        self.wrong += bool(difference > 1e-5)

    async def malformed(self, port: int, seed: int) -> None:
        draw = random.Random(seed)
        connection = Connection(port)
        while self.running and await self._ask(connection, "malformed", draw.choice(self._malformed)):
            await asyncio.sleep(0.02)

    async def oversized(self, port: int) -> None:
        connection = Connection(port)
        head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {JSON}\r\n"
        declared = head.encode() + b"content-length: 99999999\r\n\r\n"
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        while self.running:
            if not await self._ask(connection, "oversized", declared):
                return
            if not await self._ask(
                connection, "oversized", head.encode() + b"transfer-encoding: chunked\r\n\r\n" + chunk * 17
            ):
                return
            await asyncio.sleep(0.05)

    async def slow(self, port: int) -> None:
        connection = Connection(port)
        single = self._singles[0]
        while self.running:
            head_only = single[: random.randrange(5, 60)]
            for cut in (head_only, single[:-10]):
                if not await self._ask(connection, "slow", cut):
                    return

    async def _ask(self, connection: Connection, kind: str, content: bytes) -> Answer | None:
        try:
            answer = await connection.send(content)
        except (OSError, EOFError):
            if self.terminated:
                return None
            # A refused body is answered before it was sent: the rest of it may meet a closed connection.
            self.cut_off += kind != "oversized"
            return Answer(0, b"", True)
        self.counts[kind][answer.status] += 1
        return answer


async def swap(load: Load, port: int, current: Path, folders: list[Path], every_s: float) -> int:
    """Exchanges the model again and again; how often."""
    connection = Connection(port)
    done = 0
    while load.running:
        await asyncio.sleep(every_s)
        (current.parent / "next").symlink_to(folders[(done + 1) % 2])
        (current.parent / "next").rename(current)
        answer = await connection.send(request(b"{}", path="/v2/repository/models/dmoe/load"))
        if answer.status != 200:
            raise RuntimeError(f"a swap failed: {answer.body.decode()}")
        done += 1
    return done


async def run(folders: list[Path], log: Path, seconds: float) -> dict[str, Any]:
    models = {model.manifest.version: model for model in map(OnnxModel.open, folders)}
    table = raw_table(next(iter(models.values())), log, 1000)
    load = Load(models, table)
    with tempfile.TemporaryDirectory() as scratch:
        current = Path(scratch) / "current"
        current.symlink_to(folders[0].resolve())
        server = Server(current, "--max-body-mb", str(MAX_BODY_MB), "--read-timeout-s", str(READ_TIMEOUT_S))
        port = server.port
        tasks = [asyncio.create_task(load.valid(port, seed)) for seed in range(8)]
        tasks += [asyncio.create_task(load.malformed(port, seed)) for seed in range(2)]
        tasks += [asyncio.create_task(load.oversized(port)), *(asyncio.create_task(load.slow(port)) for _ in range(3))]
        swapping = asyncio.create_task(swap(load, port, current, [one.resolve() for one in folders], 5))
        memory = []
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            await asyncio.sleep(1)
            memory.append(server.resident_bytes())
        swapping.cancel()
        # The load goes on while the server is told to stop.
        load.terminated = True
        server.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(server.process.wait, 60)
        load.running = False
        await asyncio.gather(*tasks)
    quarter = max(1, len(memory) // 4)
    undocumented = {
        kind: {status: count for status, count in counts.items() if status not in ALLOWED[kind]}
        for kind, counts in load.counts.items()
    }
    return {
        "seconds": seconds,
        "answers": {kind: dict(counts) for kind, counts in load.counts.items()},
        "undocumented": {kind: counts for kind, counts in undocumented.items() if counts},
        "by_version": dict(load.by_version),
        "rows": load.rows,
        "wrong": load.wrong,
        "largest_difference": load.largest_difference,
        "cut_off_before_sigterm": load.cut_off,
        "exit_code": code,
        "memory_mb": {
            "second_quarter": round(float(np.median(memory[quarter : 2 * quarter])) / 2**20, 1),
            "last_quarter": round(float(np.median(memory[-quarter:])) / 2**20, 1),
            "peak": round(max(memory) / 2**20, 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    parser.add_argument("models", nargs=2, type=Path, help="two model folders of one run, exchanged every 5 s")
    parser.add_argument("log", type=Path, help="raw log with at least 1000 rows")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = asyncio.run(run(options.models, options.log, options.seconds))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, value in found.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
