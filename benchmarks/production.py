"""Time and memory of a training step of the production mixture, by the number of its fields and of its experts.

$ python -m benchmarks.production --json production.json
$ python -m benchmarks.plots production.json --prefix production- --output figures

The mixture of the preset `production`: experts GwPFM and FlatDNN on table 0 (width 16, all fields), IPNN on table 1
(width 64, three tenths of the fields), which the gate reads too; more experts repeat these three. FuxiCTR's side is
the same model from its layers, docs/performance.md says how. All contestants read the same batches in turns.
"CPU ms" is processor time of all threads, which other programs on the machine disturb less than the clock.
"""

import argparse
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import batches
from benchmarks.arguments import DEFAULT_ENVIRONMENTS, positive
from benchmarks.environments import InstallationError, python_of
from benchmarks.process import Worker, WorkerError
from benchmarks.report import TIMES, contestants_table
from benchmarks.run import add_ratios, describe_machine, summarise
from dmoe.disk.files import write_json

FORMAT_VERSION = 1
SEED = 2025
KINDS = ("gwpfm", "flatdnn", "ipnn")
TABLE_OF = {"gwpfm": 0, "flatdnn": 0, "ipnn": 1}
WIDTHS = (16, 64)
PRESET_FIELDS, PRESET_NUMERIC, PRESET_CHOSEN, PRESET_ROWS = 513, 70, 153, 900_000
LISTS = (5, 20)  # values that a row has at most
LIST_ROWS = 5_000
# glibc then keeps what a step frees for the next one, as `dmoe train` sees to by itself.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 60)}


@dataclass(frozen=True, slots=True)
class Contestant:
    """A worker, and what its environment has beside that of all."""

    name: str
    worker: str
    environment: str
    memory_kept: bool = False


CONTESTANTS = (
    Contestant("dmoe", "production_dmoe", "dmoe"),
    Contestant("FuxiCTR", "production_fuxictr", "fuxictr"),
    Contestant("FuxiCTR, memory kept", "production_fuxictr", "fuxictr", memory_kept=True),
)


@dataclass(frozen=True, slots=True)
class Case:
    """So many fields of all kinds in the preset's proportions, and so many experts."""

    fields: int
    experts: int
    batch_size: int = 2048
    units: int = 256

    @property
    def name(self) -> str:
        return f"{self.fields} fields, {self.experts} expert{'s' if self.experts > 1 else ''}"

    @property
    def num_numeric(self) -> int:
        return round(self.fields * PRESET_NUMERIC / PRESET_FIELDS)

    @property
    def num_categorical(self) -> int:
        return self.fields - self.num_numeric - len(LISTS)

    def job(self) -> dict[str, Any]:
        """What a worker has to know, threads and the file of batches apart."""
        kinds = [KINDS[index % len(KINDS)] for index in range(self.experts)]
        tables = [TABLE_OF[kind] for kind in kinds]
        rows = round(PRESET_ROWS * self.fields / PRESET_FIELDS)
        return {
            "experts": kinds,
            "tables": tables,
            "widths": list(WIDTHS[: max(tables) + 1]),
            "vocabulary_sizes": batches.vocabulary_sizes(rows, self.num_categorical),
            "lists": [{"rows": LIST_ROWS, "length": length} for length in LISTS],
            "num_numeric": self.num_numeric,
            "num_chosen": round(self.fields * PRESET_CHOSEN / PRESET_FIELDS) - len(LISTS),
            "batch_size": self.batch_size,
            "units": self.units,
            "gate_units": 64,
            "alpha": 10.0,
            "seed": SEED,
        }


def write_rows(path: Path, job: dict[str, Any], num_batches: int) -> None:
    """`path`.npz with `ids`, `numeric` and `labels` of `num_batches` batches; a list has 0 to all of its values."""
    rows = job["batch_size"] * num_batches
    generator = np.random.default_rng(SEED)
    columns = [batches.draw_ids(job["vocabulary_sizes"], rows, SEED)]
    for index, one in enumerate(job["lists"]):
        ids = batches.draw_ids([one["rows"]] * one["length"], rows, SEED + 1 + index)
        present = np.arange(one["length"]) < generator.integers(0, one["length"] + 1, rows)[:, None]
        columns.append(np.where(present, ids, 0).astype(np.int32))
    np.savez(
        path,
        ids=np.concatenate(columns, axis=1),
        numeric=generator.standard_normal((rows, job["num_numeric"]), dtype=np.float32),
        labels=(generator.random(rows) < batches.CLICK_RATE).astype(np.float32),
    )


def run_case(case: Case, contestants: tuple[Contestant, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, as it goes into the JSON file.

    Raises: WorkerError if two models of one case do not have the same number of parameters.
    """
    job = case.job()
    rows: list[dict[str, Any]] = []
    running: list[tuple[dict[str, Any], Worker]] = []
    with tempfile.TemporaryDirectory(prefix="dmoe-benchmark-") as name, ExitStack() as stack:
        folder = Path(name)
        job |= {"threads": options.threads, "batches": str(folder / "batches.npz")}
        write_rows(folder / "batches.npz", job, options.warm_up + options.repeats * options.steps)
        for index, one in enumerate(contestants):
            row: dict[str, Any] = {"name": one.name, "worker": one.worker}
            rows.append(row)
            try:
                python = python_of(one.environment, options.environments.expanduser())
                kept = KEPT if one.memory_kept else {}
                worker = Worker(python, one.worker, job, folder / f"{index}.log", environment=kept)
                stack.callback(worker.close)
                warm_up = worker.run("train", options.warm_up)
            except (WorkerError, InstallationError) as error:
                row["left_out"] = str(error)
                continue
            row |= {**worker.ready, "warm_up_ms": warm_up, "ms": [], "cpu_ms": []}
            running.append((row, worker))
        counts = {row["name"]: row["parameters"] for row, _ in running}
        if len(set(counts.values())) > 1:
            raise WorkerError(f"{case.name}: the models are not the same, they have {counts} parameters")
        for _ in range(options.repeats):
            for row, worker in running:
                for clock, times in worker.measure("train", options.steps).items():
                    row[clock].append(times)
        for row, worker in running:
            row["median_cpu_ms"] = statistics.median(chain.from_iterable(row["cpu_ms"]))
            row["peak_bytes"] = worker.ask({"command": "memory"})["peak_bytes"]
    for row in rows:
        summarise(row, case.batch_size)
    add_ratios(rows)
    return {"case": case.name, "fields": case.fields, "experts": job["experts"], "contestants": rows}


def print_case(result: dict[str, Any], console: Console) -> None:
    for row in result["contestants"]:
        if "median_ms" not in row:
            console.print(f"{row['name']} left out: {row['left_out']}")
    title = f"{result['case']}: {' + '.join(result['experts'])}"
    console.print(contestants_table(title, result["contestants"], TIMES | {"CPU ms": "median_cpu_ms"}, ",.0f"))


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.production",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fields", type=int, nargs="*", default=[64, 128, 256, 513], metavar="N")
    parser.add_argument("--experts", type=positive, nargs="*", default=list(range(1, 9)), metavar="N")
    parser.add_argument("--experts-fields", type=int, default=256, help="fields of the cases of --experts (256)")
    parser.add_argument("--repeats", type=positive, default=5, help="rounds of all contestants in turn (5)")
    parser.add_argument("--steps", type=positive, default=2, help="steps of a contestant in each round (2)")
    parser.add_argument("--warm-up", type=positive, default=2, help="steps before the first round (2)")
    parser.add_argument("--batch-size", type=positive, default=2048)
    parser.add_argument("--units", type=positive, default=256, help="of hidden and alignment layers (256)")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="of each contestant")
    parser.add_argument("--only-ours", action="store_true", help="no peers, nothing installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all raw figures here, after each case")
    parser.add_argument("--environments", type=Path, default=DEFAULT_ENVIRONMENTS, help="where peers are installed")
    options = parser.parse_args(words)
    if min([*options.fields, options.experts_fields]) < 32:
        parser.error("--fields and --experts-fields must be at least 32, for all kinds of field to be there")
    return options


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    sizes = {"batch_size": options.batch_size, "units": options.units}
    points = [("fields", fields, Case(fields, len(KINDS), **sizes)) for fields in options.fields]
    points += [("experts", count, Case(options.experts_fields, count, **sizes)) for count in options.experts]
    contestants = CONTESTANTS[:1] if options.only_ours else CONTESTANTS
    console = Console(width=None if sys.stdout.isatty() else 140)
    results: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(options.threads),
        "settings": {"repeats": options.repeats, "steps": options.steps, **sizes},
        "cases": [],
    }
    measured: dict[Case, dict[str, Any]] = {}
    for axis, value, case in points:
        if case not in measured:
            measured[case] = run_case(case, contestants, options)
            print_case(measured[case], console)
        results["cases"].append({"axis": axis, "value": value, **measured[case]})
        if options.json:
            write_json(options.json, results)
    failed = any("left_out" in case["contestants"][0] for case in results["cases"])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
