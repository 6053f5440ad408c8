"""A model of four million tokens, its vocabularies in the graph or looked up from mapped files: ready when, how large.

$ python -m benchmarks.large_vocabulary --json large.json

Each way is loaded in a process of its own, after its files were read once (page cache warm); memory is resident
memory of that process, told apart into the process's own and mapped files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from dmoe.config.run import load_config
from dmoe.export.write import export
from dmoe.nn.build import build_model
from dmoe.schema import CategoricalField, Schema, vocabulary_path
from dmoe.weights.run import Run

SHARES = {"user": 0.70, "device": 0.25, "page": 0.04, "site": 0.008, "app": 0.002}
ROWS = 20_000

_LOAD = """
import json, sys, time
began = time.perf_counter()
from dmoe.export.onnx_model import OnnxModel
from pathlib import Path
import numpy as np, pyarrow as pa
from pyarrow import parquet
imported = time.perf_counter()
model = OnnxModel.open(Path(sys.argv[1]))
ready = time.perf_counter()
def memory():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Rss"))
    return {name: int(text.split()[0]) // 1024 for name, text in lines.items()}
loaded = memory()
table = parquet.read_table(sys.argv[2])
times = []
for start in range(0, 3000):
    raw = model.raw_rows(table.slice(start, 1), "row")
    t = time.perf_counter(); model.score(model.featuriser(raw)); times.append(time.perf_counter() - t)
batches = []
for start in range(0, len(table), 1000):
    raw = model.raw_rows(table.slice(start, 1000), "row")
    t = time.perf_counter(); model.score(model.featuriser(raw)); batches.append(time.perf_counter() - t)
print(json.dumps({
    "import_s": round(imported - began, 2), "ready_s": round(ready - imported, 2), "own_mb": loaded["RssAnon"],
    "mapped_mb": loaded["RssFile"], "own_mb_after_rows": memory()["RssAnon"],
    "row_ms": round(1000 * float(np.median(times)), 3), "thousand_rows_ms": round(1000 * float(np.median(batches)), 1),
}))
"""


def make_run(folder: Path, tokens: int) -> Run:
    """A data set and run of about `tokens` tokens, the weights as they were drawn but wide enough to matter."""
    draw = np.random.default_rng(0)
    sizes = {name: max(3, int(share * tokens)) for name, share in SHARES.items()}
    source = {"label": "click", "fields": {"categorical": list(sizes)}}
    fields = tuple(CategoricalField(name=name, vocabulary_size=size + 2) for name, size in sizes.items())
    schema = Schema(label="click", fields=fields, source=source)
    data = folder / "data"
    (data / "vocabulary").mkdir(parents=True)
    schema.write(data)
    raw = {}
    for name, size in sizes.items():
        values = [f"{name[:1]}{draw_:08x}" for draw_ in draw.choice(2**32, size, replace=False).tolist()]
        table = {
            "value": values,
            "count": pa.array(np.ones(size, np.int64)),
            "id": pa.array(np.arange(2, size + 2), pa.int32()),
        }
        parquet.write_table(pa.table(table), vocabulary_path(data, name))
        raw[name] = [values[index] for index in draw.integers(0, size, ROWS).tolist()]
    for split in ("train", "valid", "test"):
        ids = {name: draw.integers(0, size + 2, ROWS).astype(np.int32) for name, size in sizes.items()}
        (data / split).mkdir()
        clicks = draw.integers(0, 2, ROWS).astype(np.uint8)
        parquet.write_table(pa.table({**ids, "click": clicks}), data / split / "part-00000.parquet")
    parquet.write_table(pa.table(raw), folder / "raw.parquet")
    run = Run.create(folder / "run", load_config("me-moe"), schema, data)
    model = build_model(run.config.model, schema, seed=0)
    for table in model.embedding.row_tables():
        table.weight.data.normal_(std=0.3)
    run.save_weights(model.state_dict())
    return run


def measure(folder: Path, tokens: int) -> dict[str, Any]:
    run = make_run(folder, tokens)
    weights_mb = (run.path / "model.safetensors").stat().st_size / 2**20
    found: dict[str, Any] = {"tokens": sum(run.schema.vocabulary_sizes), "weights_mb": round(weights_mb)}
    for way, limit in (("looked up", 200_000), ("in the graph", 10**9)):
        began = time.perf_counter()
        model = folder / way.replace(" ", "-")
        manifest = export(run, model, max_graph_tokens=limit)
        seconds = time.perf_counter() - began
        files = sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) / 2**20
        rounds = []
        for _ in range(3):
            command = [sys.executable, "-c", _LOAD, str(model), str(folder / "raw.parquet")]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rounds.append(json.loads(done.stdout))
        best = min(rounds, key=lambda one: float(one["ready_s"]))
        found[way] = {
            "export_s": round(seconds, 1),
            "files_mb": round(files),
            "max_difference": manifest.parity.max_abs_probability,
            **best,
            "own_memory_by_weights": round(best["own_mb"] / weights_mb, 2),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_vocabulary", description=__doc__)
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), options.tokens)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{found['tokens']} tokens, weights {found['weights_mb']} MB")
    ways = ("looked up", "in the graph")
    print(f"{'':24}" + "".join(f"{way:>16}" for way in ways))
    for name in found[ways[0]]:
        print(f"{name:24}" + "".join(f"{found[way][name]:>16.3g}" for way in ways))


if __name__ == "__main__":
    main()
