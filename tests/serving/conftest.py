"""A server in this process, and servers of their own."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from dmoe.serving.app import Application
from dmoe.serving.settings import Settings
from tests.export.conftest import in_graph, log, looked_up, run  # noqa: F401 (fixtures)
from tests.prepare.logs import COLUMNS, random_rows

# The raw columns of the log in tests/prepare/logs.py that the model reads.
INPUTS = ("price", "age", "raw", "hits", "site", "user", "time")
INFER = "/v2/models/dmoe/infer"


def rows(count: int, seed: int = 3) -> pd.DataFrame:
    return pd.DataFrame(random_rows(count, seed), columns=list(COLUMNS))[list(INPUTS)]


def body(table: pd.DataFrame, **more: Any) -> dict[str, Any]:
    """An Open Inference request of text columns."""
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [len(table)], "data": table[name].tolist()} for name in table
    ]
    return {"inputs": inputs, **more}


@asynccontextmanager
async def client(model: Path, **options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Application]]:
    """A client of an application in this process; failures inside it become its own 500 answers."""
    application = Application(Settings(model=model, access_log=False, **options))
    transport = httpx.ASGITransport(application.guard)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as session:
            yield session, application
    finally:
        application.close()


class Process:
    """`dmoe serve` in a process of its own."""

    def __init__(self, model: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        code = "from dmoe.cli.main import main; main()"
        arguments = [sys.executable, "-c", code, "serve", str(model), "--port", "0", *options]
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)
        self.ready = self.next_event("ready")
        self.url = f"http://127.0.0.1:{self.ready['port']}"

    def next_event(self, name: str) -> dict[str, Any]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"the server ended without '{name}'")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*arguments: Any, **options: Any) -> Process:
        started.append(Process(*arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.stop()
