"""`dmoe serve` against ONNX Runtime in this process, and against servers one writes around the run.

$ python -m benchmarks.serving MODEL RUN LOG --json serving.json      # litserve: pip install litserve

All servers are up together and take turns, a burst each. The load generator is one process on the same cores as the
servers, which it takes a part of: rates through HTTP are for both together.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.load import ARROW, Connection, Server, arrow_body, json_body, raw_table, request
from dmoe.export.onnx_model import GRAPH_ROWS, OnnxModel
from dmoe.machine.limits import usable_threads

BATCH = 1000


def rows_body(table: pa.Table, numbers: list[str]) -> bytes:
    rows = table.to_pylist()
    for row in rows:
        for name in numbers:
            row[name] = float(row[name]) if row[name] else None
    return json.dumps({"rows": rows}).encode()


def in_process(model: OnnxModel, table: pa.Table, seconds: float) -> dict[str, float]:
    """One row on one thread, a new one each time; and rows/s of the graph on all cores, inputs prepared."""
    features = model.featuriser(model.raw_rows(table, "log"))
    rows = [{name: column[row : row + 1] for name, column in features.items()} for row in range(len(table))]
    times = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for row in rows:
            began = time.perf_counter()
            model.graph.run(row, ("probability",))
            times.append(time.perf_counter() - began)
    parts = [
        {name: column[start : start + GRAPH_ROWS] for name, column in features.items()}
        for start in range(0, len(table) - GRAPH_ROWS + 1, GRAPH_ROWS)
    ]

    def work() -> int:
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            for part in parts:
                model.graph.run(part, ("probability",))
                done += GRAPH_ROWS
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(usable_threads()) as pool:
        done = sum(pool.map(lambda _: work(), range(usable_threads())))
    rate = done / (time.perf_counter() - began)
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    return {"p50_ms": float(p50), "p99_ms": float(p99), "rows_per_s": rate}


async def burst(port: int, contents: list[bytes], connections: int, rows: int, seconds: float) -> dict[str, float]:
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def ask(first: int) -> None:
        connection, turn = Connection(port), first
        while time.perf_counter() < until:
            began = time.perf_counter()
            answer = await connection.send(contents[turn % len(contents)])
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}: {answer.body[:200]!r}")
            times.append(time.perf_counter() - began)
            turn += connections
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(ask(first) for first in range(connections)))
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    taken = time.perf_counter() - began
    return {"p50_ms": float(p50), "p99_ms": float(p99), "rows_per_s": rows * len(times) / taken}


def start_peer(kind: str, run: Path) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", f"benchmarks.workers.serving_{kind}", str(run), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"{kind} ended at once: {' '.join(command)}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, port
        time.sleep(0.1)
    raise RuntimeError(f"{kind} did not start")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    model = OnnxModel.open(options.model)
    table = raw_table(model, options.log, 4 * BATCH)
    numbers = [one.column for one in model.inputs if one.kind == "number"]
    singles = [table.slice(row, 1) for row in range(200)]
    batches = [table.slice(start, BATCH) for start in range(0, 4 * BATCH, BATCH)]
    server = Server(options.model)
    running = [server.process]
    cases: dict[str, Callable[[], dict[str, float]]] = {"in process": lambda: in_process(model, table, options.burst)}

    def case(port: int, contents: list[bytes], connections: int, rows: int) -> Callable[[], dict[str, float]]:
        return lambda: asyncio.run(burst(port, contents, connections, rows, options.burst))

    single = [request(json_body(one, numbers)) for one in singles]
    cases["dmoe, 1 row, 1 connection"] = case(server.port, single, 1, 1)
    cases["dmoe, 1 row, 8 connections"] = case(server.port, single, 8, 1)
    cases["dmoe, 1000 rows, JSON"] = case(server.port, [request(json_body(one, numbers)) for one in batches], 4, BATCH)
    cases["dmoe, 1000 rows, Arrow"] = case(server.port, [request(arrow_body(one), ARROW) for one in batches], 4, BATCH)
    for kind, (process, port) in {kind: start_peer(kind, options.run) for kind in ("fastapi", "litserve")}.items():
        running.append(process)
        cases[f"{kind} + torch, 1 row, 8 connections"] = case(
            port, [request(rows_body(one, numbers), path="/infer") for one in singles], 8, 1
        )
        cases[f"{kind} + torch, 1000 rows, JSON"] = case(
            port, [request(rows_body(one, numbers), path="/infer") for one in batches], 4, BATCH
        )
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    try:
        for turn in range(options.rounds + 1):
            for name, run in cases.items():
                found = run()
                if turn:  # the first warms up
                    rounds[name].append(found)
    finally:
        for process in running:
            os.killpg(process.pid, 9) if process is not server.process else process.kill()
    summary = {
        name: {key: float(np.median([one[key] for one in found])) for key in found[0]} for name, found in rounds.items()
    }
    ceiling = [one["rows_per_s"] for one in rounds["in process"]]
    for name, found in rounds.items():
        ratios = [one["rows_per_s"] / own for one, own in zip(found, ceiling, strict=True)]
        summary[name]["of_in_process"] = float(np.median(ratios))
    return {"rounds": options.rounds, "load_before": os.getloadavg()[0], "cases": summary}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("log", type=Path, help="raw log with at least 4000 rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--burst", type=float, default=1.5, help="seconds of each case in each round")
    parser.add_argument("--json", type=Path)
    found = measure(options := parser.parse_args())
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{'':40}{'p50 ms':>10}{'p99 ms':>10}{'rows/s':>12}{'of in-process':>15}")
    for name, one in found["cases"].items():
        print(
            f"{name:40}{one['p50_ms']:>10.2f}{one['p99_ms']:>10.2f}{one['rows_per_s']:>12,.0f}{one['of_in_process']:>15.2f}"
        )


if __name__ == "__main__":
    main()
