"""Runs one case: all contestants ready at once, then in turns (A B C, A B C, …), one computing at a time."""

import os
import platform
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from benchmarks import batches
from benchmarks.arithmetic import DenseWork, dense_work
from benchmarks.cases import SEED, Case, Contestant
from benchmarks.environments import InstallationError, python_of
from benchmarks.process import Worker, WorkerError
from dmoe.schema import CategoricalField, Schema

# Batches behind a file, so that opening it is spread over as many as in a small evaluation split.
FILE_BATCHES = 50
ROW_GROUP_ROWS = 65_536
LARGEST_GATHER_TABLE = 1 << 30


@dataclass(frozen=True, slots=True)
class Settings:
    """How long, with how many threads, and where peers live."""

    repeats: int
    steps: int
    threads: int
    environments: Path
    only_ours: bool


def run_case(case: Case, settings: Settings) -> dict[str, Any]:
    """Everything that was measured, as it goes into the JSON file."""
    contestants = [one for one in case.contestants if one.worker == "dmoe" or not settings.only_ours]
    with tempfile.TemporaryDirectory(prefix="dmoe-benchmark-") as name, ExitStack() as stack:
        folder = Path(name)
        common = {"threads": settings.threads, **_write_inputs(case, settings, folder)}
        hardware = _start_hardware(case, common, settings, folder, stack)
        running: list[tuple[Contestant, Worker]] = []
        rows: list[dict[str, Any]] = []
        for index, one in enumerate(contestants):
            row: dict[str, Any] = {"name": one.name, "worker": one.worker, "mode": one.mode}
            rows.append(row)
            try:
                _check_memory(case, one)
                python = python_of(one.worker, settings.environments)
                worker = Worker(python, one.worker, {**case.job(one), **common}, folder / f"{index}.log")
                stack.callback(worker.close)
                warm_up = worker.run(one.mode, 1 if one.mode.endswith("score-files") else case.warm_up)
            except (WorkerError, InstallationError, MemoryError) as error:
                row["left_out"] = str(error)
                continue
            row |= {**worker.ready, "warm_up_ms": warm_up, "ms": []}
            running.append((one, worker))
        rates: dict[str, list[float]] = {"products": [], "copy": [], "gather": []}
        by_name = {row["name"]: row for row in rows}
        for _ in range(settings.repeats):
            for mode, times in rates.items():
                times += hardware.run(mode, 1)
            for one, worker in list(running):
                try:
                    times = worker.run(one.mode, 1 if one.mode.endswith("score-files") else settings.steps)
                except WorkerError as error:
                    by_name[one.name]["left_out"] = str(error)
                    running.remove((one, worker))
                    continue
                by_name[one.name]["ms"].append(times)
        for one, worker in running:
            by_name[one.name]["peak_bytes"] = worker.ask({"command": "memory"})["peak_bytes"]
        profile = _profile(running, settings.steps)
        sample = np.load(common["batches"])["ids"][: case.batch_size]
    for row in rows:
        summarise(row, case.batch_size)
    add_ratios(rows)
    return {
        "case": case.name,
        "experts": list(case.experts),
        "head": case.head,
        "tasks": case.tasks,
        "embedding_l2": case.embedding_l2,
        "embedding_dim": case.sizes.embedding_dim,
        "vocabulary_rows": case.vocabulary_rows,
        "fields": case.num_fields,
        "batch_size": case.batch_size,
        "distinct_rows_of_a_batch": batches.distinct_rows(sample),
        "axis": case.axis,
        "value": case.value,
        "contestants": rows,
        "roofline": _roofline(rates, dense_work(case), case, rows[0]),
        "profile": profile,
        "memory_bound_bytes": case.memory_bound(),
    }


def _write_inputs(case: Case, settings: Settings, folder: Path) -> dict[str, Any]:
    sizes = batches.vocabulary_sizes(case.vocabulary_rows, case.num_fields)
    count = case.warm_up + settings.repeats * settings.steps
    if case.reads_files:
        count = max(count, FILE_BATCHES)
    path = folder / "batches.npz"
    batches.write_batches(path, sizes, case.batch_size, count, SEED)
    inputs = {"batches": str(path), "data": None, "columns": None}
    if case.reads_files:
        arrays = np.load(path)
        columns = {f"f{field}": arrays["ids"][:, field] for field in range(case.num_fields)}
        columns["label"] = arrays["labels"]
        np.savez(folder / "columns.npz", **columns)
        fields = tuple(CategoricalField(name=f"f{index}", vocabulary_size=size) for index, size in enumerate(sizes))
        (folder / "data" / "train").mkdir(parents=True)
        Schema(label="label", fields=fields).write(folder / "data")
        part = folder / "data" / "train" / "part-00000.parquet"
        parquet.write_table(pa.table(columns), part, row_group_size=ROW_GROUP_ROWS)
        inputs |= {"data": str(folder / "data"), "columns": str(folder / "columns.npz")}
    return inputs


def _start_hardware(case: Case, common: dict[str, Any], settings: Settings, folder: Path, stack: ExitStack) -> Worker:
    width = case.table_width
    job = {
        "threads": common["threads"],
        "seed": SEED,
        "products": [list(shape) for shape in dense_work(case).layers],
        "gather": {
            "table_rows": min(case.vocabulary_rows, LARGEST_GATHER_TABLE // (4 * width)),
            "width": width,
            "rows": case.batch_size * case.num_fields,
        },
    }
    worker = Worker(python_of("hardware", settings.environments), "hardware", job, folder / "hardware.log")
    stack.callback(worker.close)
    for mode in ("products", "copy", "gather"):
        worker.run(mode, 1)
    return worker


def _check_memory(case: Case, one: Contestant) -> None:
    expected = case.expected_bytes(one)
    if expected > available_bytes():
        raise MemoryError(
            f"needs about {expected / 2**30:.1f} GiB beside the others, {available_bytes() / 2**30:.1f} GiB are free"
        )


def available_bytes() -> int:
    return _kilobytes("MemAvailable") * 1024


def _kilobytes(key: str) -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"/proc/meminfo has no {key}; the benchmarks run on Linux only")


def _profile(running: list[tuple[Contestant, Worker]], steps: int) -> dict[str, float] | None:
    """Milliseconds a step of each part of ours, measured after the timed rounds."""
    for one, worker in running:
        if one.worker == "dmoe" and one.mode == "train":
            parts: dict[str, float] = worker.ask({"command": "profile", "steps": steps})
            return parts
    return None


def summarise(row: dict[str, Any], batch_size: int) -> None:
    """Median, least and greatest time of a step, and rows a second."""
    times = [time for one_round in row.get("ms", []) for time in one_round]
    if not times:
        return
    row["median_ms"], row["min_ms"], row["max_ms"] = statistics.median(times), min(times), max(times)
    row["rows_per_second"] = batch_size / row["median_ms"] * 1e3


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """How many times longer than the first contestant: of the medians, and round by round."""
    ours = rows[0]
    for row in rows:
        if "median_ms" in row and "median_ms" in ours:
            row["ratio"] = row["median_ms"] / ours["median_ms"]
            pairs = zip(row["ms"], ours["ms"], strict=False)
            row["ratio_by_round"] = [statistics.median(theirs) / statistics.median(own) for theirs, own in pairs]


def _roofline(rates: dict[str, list[float]], work: DenseWork, case: Case, ours: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.workers.hardware_worker import COPY_FLOATS

    medians = {mode: statistics.median(times) / 1e3 for mode, times in rates.items()}
    # The measured products are those of the linear layers; the Gram matrices are charged at the same rate.
    products_per_second = (work.flop - work.gram_flop) / medians["products"]
    training = ours["mode"].startswith("train")
    flop = work.flop if training else work.forward_flop
    dense_ms = flop / products_per_second * 1e3
    gathered = 4 * case.table_width * case.batch_size * case.num_fields
    result = {
        "products_gflop_per_second": products_per_second / 1e9,
        "copy_gb_per_second": 2 * 4 * COPY_FLOATS / medians["copy"] / 1e9,
        "gather_gb_per_second": gathered / medians["gather"] / 1e9,
        "dense_gflop": flop / 1e9,
        "dense_ms": dense_ms,
        "raw_ms": rates,
    }
    if "median_ms" in ours:
        result["ratio"] = ours["median_ms"] / dense_ms
    return result


def describe_machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(_kilobytes("MemTotal") / 2**20, 1),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "load_before": os.getloadavg()[0],
    }
