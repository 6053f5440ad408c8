"""Requests drawn from the server's own OpenAPI description: none may end in an undocumented answer."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.serving.conftest import Process

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def test_every_answer_is_documented(in_graph: Path, serve: Callable[..., Process], tmp_path: Path) -> None:
    server = serve(in_graph, "--no-access-log")
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json"]
    options = ["--phases", "examples,coverage,fuzzing", "--max-examples", "60", "--seed", "1", "--no-color"]
    checks = [word for check in CHECKS for word in ("-c", check)]
    done = subprocess.run([*command, *options, *checks], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 passed" not in done.stdout
