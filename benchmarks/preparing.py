"""Measures preparing: against FuxiCTR on one file, and how time and memory grow with the rows.

The log has the columns and the cardinalities of Avazu (`dmoe generate --preset avazu`) and is made on first use.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.arguments import DEFAULT_ENVIRONMENTS
from benchmarks.environments import ROOT, python_of
from dmoe.config.data import read_data_config
from dmoe.disk.files import write_json
from dmoe.tokens.times import deriver

SPLITS = ("train", "valid", "test")
READ_BYTES = 1 << 22
SAMPLE_S = 0.1
DMOE = [sys.executable, "-c", "from dmoe.cli.main import main; main()"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one process and all that it starts. `peak_bytes`: the largest sum of their proportional set sizes."""

    seconds: float
    peak_bytes: int


def run(command: Sequence[str], log: Path) -> Cost:
    """Runs a command to its end.

    Raises: RuntimeError with the end of its output if it fails.
    """
    started, peak = time.perf_counter(), 0
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=ROOT, env=_environment())
        while process.poll() is None:
            peak = max(peak, sum(map(_proportional_bytes, _family(process.pid))))
            time.sleep(SAMPLE_S)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {log.read_text(errors='replace')[-2000:]}")
    return Cost(seconds, peak)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


def _family(root: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            text = (folder / "stat").read_text()
            parents[int(folder.name)] = int(text.rpartition(")")[2].split()[1])
    found = [root]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _proportional_bytes(process: int) -> int:
    """Private memory and this process's part of what is shared; pages of mapped files are the kernel's to drop."""
    total = 0
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("Pss_Anon", "Pss_Shmem"):
                total += 1024 * int(rest.split()[0])
    return total


def read_speed(path: Path) -> float:
    """Bytes a second of reading a file from the disk, its pages dropped from memory before."""
    with path.open("rb", buffering=0) as stream:
        os.fsync(stream.fileno())  # pages not yet written stay
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        while stream.read(READ_BYTES):
            pass
        return path.stat().st_size / (time.perf_counter() - started)


def generated(folder: Path, rows: int) -> Path:
    """A log of at least `rows` rows in the folder, made if there is none."""
    log = folder / f"avazu-{rows}.csv"
    if not log.is_file():
        run([*DMOE, "generate", str(log), "--rows", str(rows), "--preset", "avazu"], folder / "generate.log")
    return log


def cut(log: Path, rows: int, target: Path) -> Path:
    """The header and first rows of a log."""
    with log.open("rb") as source, target.open("wb") as out:
        out.writelines(islice(source, rows + 1))
    return target


def _config_of(log: Path) -> Path:
    return log.with_name(log.name.removesuffix(".csv") + ".data.yaml")


def compare(log: Path, rows: int, folder: Path, environments: Path, rounds: int) -> dict[str, Any]:
    """Both preparations of the same three files, in turns; all fields are categorical texts.

    The derived fields are written out as columns, since FuxiCTR derives them by code of the user's.
    """
    inputs = folder / "compare"
    inputs.mkdir(exist_ok=True)
    fields = write_splits(log, rows, inputs)
    values = {
        "label": fields["label"],
        "split": {"kind": "given"},
        "fields": {"categorical": fields["categorical"], "min_count": fields["min_count"]},
    }
    (inputs / "fields.json").write_text(json.dumps(fields))
    (inputs / "data.yaml").write_text(json.dumps(values))  # JSON is YAML
    ours = [*DMOE, "prepare", "--config", str(inputs / "data.yaml"), "--output", str(inputs / "dmoe")]
    ours += [word for name in SPLITS for word in ("--input", f"{name}={inputs / name}.csv")]
    worker = ROOT / "benchmarks" / "workers" / "fuxictr_prepare.py"
    theirs = [str(python_of("fuxictr", environments)), str(worker), str(inputs)]
    costs: dict[str, list[Cost]] = {"dmoe": [], "FuxiCTR": []}
    for _ in range(rounds):
        for name, command in (("dmoe", ours), ("FuxiCTR", theirs)):
            shutil.rmtree(inputs / name.lower(), ignore_errors=True)
            costs[name].append(run(command, folder / f"{name}.log"))
    ratios = [theirs.seconds / ours.seconds for ours, theirs in zip(*costs.values(), strict=True)]
    return {
        "rows": rows,
        "fields": len(fields["categorical"]),
        "contestants": {
            name: {
                "seconds": [cost.seconds for cost in of_name],
                "rows_per_second": rows / statistics.median(cost.seconds for cost in of_name),
                "peak_bytes": max(cost.peak_bytes for cost in of_name),
            }
            for name, of_name in costs.items()
        },
        "ratio": statistics.median(ratios),
        "ratio_by_round": ratios,
    }


def write_splits(log: Path, rows: int, folder: Path) -> dict[str, Any]:
    """Writes the first rows as train.csv, valid.csv and test.csv, 8:1:1; gives label, fields and least count."""
    plan = read_data_config(_config_of(log))
    names = list(plan.fields.categorical)
    derivers = {name: deriver(derivation) for name, derivation in plan.derive.items()}
    bounds = {"train": rows * 8 // 10, "valid": rows // 10, "test": rows // 10}
    with log.open(encoding="utf-8") as source:
        columns = next(source).rstrip("\n").split(",")
        places = [columns.index(plan.source_column(name)) for name in names]
        label = columns.index(plan.label_columns()[0])
        for split, size in bounds.items():
            with (folder / f"{split}.csv").open("w", encoding="utf-8") as out:
                out.write(",".join([plan.label_columns()[0], *names]) + "\n")
                for line in islice(source, size):
                    values = line.rstrip("\n").split(",")
                    cells = [values[place] for place in places]
                    made = [
                        str(derivers[name](cell)) if name in derivers else cell
                        for name, cell in zip(names, cells, strict=True)
                    ]
                    out.write(",".join([values[label], *made]) + "\n")
    return {"label": plan.label_columns()[0], "categorical": names, "min_count": plan.fields.min_count}


def growth(log: Path, sizes: Sequence[int], folder: Path, memory: str) -> Iterator[dict[str, Any]]:
    """Time, peak memory and share of the disk's read speed of preparing the first rows of a log."""
    for rows in sizes:
        part = cut(log, rows, folder / "part.csv")
        disk = read_speed(part)
        output = folder / "growth"
        shutil.rmtree(output, ignore_errors=True)
        words = ["prepare", "--config", str(_config_of(log)), "--input", str(part), "--output", str(output)]
        cost = run([*DMOE, *words, "--memory", memory], folder / "growth.log")
        speed = part.stat().st_size / cost.seconds
        yield {
            "rows": rows,
            "bytes": part.stat().st_size,
            "seconds": cost.seconds,
            "rows_per_second": rows / cost.seconds,
            "peak_bytes": cost.peak_bytes,
            "disk_bytes_per_second": disk,
            "share_of_disk_speed": speed / disk,
        }
        shutil.rmtree(output)
        part.unlink()


def print_results(results: dict[str, Any], console: Console) -> None:
    if "compare" in results:
        found = results["compare"]
        table = Table(
            "contestant", "s", "rows/s", "peak GiB", title=f"{found['rows']:,} rows × {found['fields']} fields"
        )
        for name, row in found["contestants"].items():
            seconds = ", ".join(f"{one:.1f}" for one in row["seconds"])
            table.add_row(name, seconds, f"{row['rows_per_second']:,.0f}", f"{row['peak_bytes'] / 2**30:.2f}")
        console.print(table)
        console.print(
            f"ratio {found['ratio']:.1f}, by round {', '.join(f'{one:.1f}' for one in found['ratio_by_round'])}"
        )
    if "growth" in results:
        table = Table(
            "rows", "s", "rows/s", "peak GiB", "disk MB/s", "share of it", title=f"memory {results['memory']}"
        )
        for row in results["growth"]:
            table.add_row(
                f"{row['rows']:,}",
                f"{row['seconds']:.1f}",
                f"{row['rows_per_second']:,.0f}",
                f"{row['peak_bytes'] / 2**30:.2f}",
                f"{row['disk_bytes_per_second'] / 1e6:,.0f}",
                f"{row['share_of_disk_speed']:.1%}",
            )
        console.print(table)


def plot(results: dict[str, Any], path: Path) -> None:
    """Seconds and peak memory over the rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    rows = [row["rows"] / 1e6 for row in results["growth"]]
    left.plot(rows, [row["seconds"] for row in results["growth"]], marker="o")
    left.set(xlabel="million rows", ylabel="seconds", ylim=0, xlim=0)
    right.plot(rows, [row["peak_bytes"] / 2**30 for row in results["growth"]], marker="o")
    right.set(xlabel="million rows", ylabel="peak memory, GiB", ylim=0, xlim=0)
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(path)
    pyplot.close(figure)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preparing", description=__doc__)
    parser.add_argument("what", choices=["compare", "growth"], nargs="+")
    parser.add_argument("--folder", type=Path, default=DEFAULT_ENVIRONMENTS / "preparing", help="for the files")
    parser.add_argument("--log", type=Path, help="an avazu log of `dmoe generate`, with its .data.yaml beside it")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the comparison (1,000,000)")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison (3)")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 5, 10, 20, 40], help="of the curve, million rows")
    parser.add_argument("--memory", default="2GB", help="--memory of dmoe prepare in the curve")
    parser.add_argument("--environments", type=Path, default=DEFAULT_ENVIRONMENTS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curve here, as .svg or .png")
    arguments = parser.parse_args(words)
    folder = arguments.folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [int(size * 1e6) for size in arguments.sizes]
    most = max([*(sizes if "growth" in arguments.what else []), arguments.rows])
    log = arguments.log or generated(folder, most)
    results: dict[str, Any] = {
        "machine": {"processors": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()[0]},
        "memory": arguments.memory,
    }
    console = Console(stderr=True)
    if "compare" in arguments.what:
        environments = arguments.environments.expanduser()
        results["compare"] = compare(log, arguments.rows, folder, environments, arguments.rounds)
    if "growth" in arguments.what:
        results["growth"] = []
        for row in growth(log, sizes, folder, arguments.memory):
            results["growth"].append(row)
            console.print(f"{row['rows']:,} rows: {row['seconds']:.1f} s")
            if arguments.json:
                write_json(arguments.json, results)
        if arguments.plot:
            plot(results, arguments.plot)
    print_results(results, Console())
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
