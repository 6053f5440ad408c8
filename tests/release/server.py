"""A server that was started as its users start it. No test of its own."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen


def outside() -> dict[str, str]:
    """The environment of a process that is to import the installed dmoe and not this checkout's."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@contextmanager
def served(command: Sequence[str], place: Path) -> Iterator[str]:
    """The model's address, once the server that `command` starts is ready; it must stop when asked to."""
    token = place / "token"
    token.write_text("0123456789abcdef-token")
    with subprocess.Popen(
        [*command, "--token-file", str(token), "--port", "0"],
        stderr=subprocess.PIPE, text=True, env=outside(), cwd=place,
    ) as server:  # fmt: skip
        try:
            assert server.stderr is not None
            said: list[str] = []
            for line in server.stderr:
                said.append(line)
                if '"ready"' in line:
                    break
            else:
                raise AssertionError(f"the server ended: {said}")
            yield f"http://127.0.0.1:{json.loads(said[-1])['port']}/v2/models/dmoe"
        finally:
            server.terminate()
            code = server.wait(60)
    assert code == 0


def probability_of_an_example(address: str) -> float:
    """What a server says of a row made of the examples that it gives of its columns."""
    headers = {"content-type": "application/json", "authorization": "Bearer 0123456789abcdef-token"}
    with urlopen(Request(address, headers=headers)) as answered:
        columns = json.load(answered)["inputs"]
    row = [{"name": one["name"], "datatype": one["datatype"], "shape": [1], "data": [one["example"]]}
           for one in columns]  # fmt: skip
    with urlopen(Request(f"{address}/infer", json.dumps({"inputs": row}).encode(), headers)) as answered:
        return float(json.load(answered)["outputs"][0]["data"][0])
