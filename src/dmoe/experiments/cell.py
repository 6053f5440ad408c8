"""One cell, in a process of its own: train, measure, leave `cell.json`.

    python -m dmoe.experiments.cell CELL --data DATA [--part ROWS] [--truth FILE] [--threads N] [--keep-weights]

CELL holds `run.yaml`, a plain run configuration. A lock makes sure that one process at a time works on a cell, also
when the runner that started it was killed and another took over: the second finds the cell finished.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from dmoe.config.run import RunConfig, load_config
from dmoe.disk.files import read_json, read_json_lines, write_json
from dmoe.errors import DmoeError
from dmoe.evaluation.watch import CorrelationWatch
from dmoe.experiments.analysis import analyse
from dmoe.experiments.planted import Truth
from dmoe.experiments.stored import CELL_FORMAT
from dmoe.machine.allocator import keep_freed_memory
from dmoe.training.loop import train
from dmoe.weights.run import Run

DONE = "cell.json"


def run_cell(
    folder: Path, data: Path, *, part: int | None = None, truth: Path | None = None, keep_weights: bool = False
) -> None:
    """Brings a cell to its end from wherever it stopped; does nothing if it is finished.

    `part`: the latest training rows that `data` holds of the log, None if it is the whole.

    Raises: as `dmoe.training.loop.train`.
    """
    with FileLock(folder / ".lock"):
        if (folder / DONE).is_file():
            return
        config = load_config(folder / "run.yaml")
        output = folder / "run"
        for leftover in folder.glob(".run.*.part"):
            shutil.rmtree(leftover)
        if not (output / "metrics.json").is_file():
            watch = CorrelationWatch(data)
            train(config, data, output, resume=True, on_evaluation=watch)
        run = Run.open(output)
        planted = Truth.read(truth) if truth else None
        found = analyse(run, data, folder / "scores.parquet", planted)
        # Last, because its presence says that the cell is finished.
        write_json(folder / DONE, _summary(run, config, part, found))
        if not keep_weights:
            (output / "model.safetensors").unlink()
            shutil.rmtree(output / "vocabulary", ignore_errors=True)


def _summary(run: Run, config: RunConfig, part: int | None, found: dict[str, Any]) -> dict[str, Any]:
    final = read_json(run.path / "metrics.json")
    environment = run.environment
    return {
        "format_version": CELL_FORMAT,
        "config": config.values(),
        "part": part,
        "resolved": run.config.model_dump(mode="json"),
        **found,
        "training": [
            {
                "step": line["step"],
                "epoch": line["epoch"],
                "train_logloss": line["train_logloss"],
                "valid_auc": line["valid"]["auc"],
                "valid_logloss": line["valid"]["logloss"],
                "cec": line.get("cec"),
                "dead_columns": line.get("dead_columns"),
                "best": line["best"],
            }
            for line in read_json_lines(run.path / "metrics.jsonl")
        ],
        "parameters": final["parameters"],
        "seconds": final["seconds"],
        "steps": final["steps"],
        "best_epoch": final["best_epoch"],
        "rows_per_second": final["rows_per_second"],
        "peak_memory_bytes": environment["peak_memory_bytes"],
        "versions": environment["versions"],
        "hardware": environment["hardware"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="dmoe.experiments.cell")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", type=int)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep-weights", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    try:
        run_cell(
            options.folder, options.data,
            part=options.part, truth=options.truth, keep_weights=options.keep_weights,
        )  # fmt: skip
    except DmoeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
