"""What loading a model and its first score wait for."""

import subprocess
import sys
from pathlib import Path

import pytest

from dmoe.weights.run import Run

# Each takes from a tenth of a second to several. pandas is not here: pyarrow imports it wherever it is installed.
NEVER = {"numba", "llvmlite", "scipy", "sklearn", "sympy", "torch._dynamo", "torch.onnx", "duckdb", "polars",
         "matplotlib", "optuna", "jinja2", "typer", "rich"}  # fmt: skip


@pytest.mark.parametrize(("model", "besides"), [("run", {"onnxruntime"}), ("in_graph", {"torch"})])
def test_a_first_score_imports_nothing_heavy(
    run: Run, in_graph: Path, log: Path, tmp_path: Path, model: str, besides: set[str]
) -> None:
    with log.open("rb") as lines:
        (tmp_path / "log.csv").write_bytes(b"".join(line for line, _ in zip(lines, range(40), strict=False)))
    folder = run.path if model == "run" else in_graph
    code = (
        f"import sys, dmoe; found = dmoe.load({str(folder)!r}).predict_proba({str(tmp_path / 'log.csv')!r}); "
        f"print(len(found), sorted({NEVER | besides} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "39 []"
