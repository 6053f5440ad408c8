"""Training steps on a CUDA device: ours in several forms, FuxiCTR where it is installed, and what the card can do.

    python -m benchmarks.gpu [CASE …] [--rounds 3] [--steps 30] [--json FILE] [--markdown FILE]

All contestants of a case train in this process by turns, a round each, on the same batches; a step's time is that of
`--steps` steps between two waits for the device. Cases are those of `python -m benchmarks` (docs/performance.md).
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import batches
from benchmarks.arguments import positive
from benchmarks.arithmetic import dense_work
from benchmarks.cases import Case, all_cases, choose
from benchmarks.workers.dmoe_worker import make_engine, make_model
from dmoe.shards.batch import Batch
from dmoe.shards.prefetch import prefetch
from dmoe.training.device import moved_ahead, with_following

CASES = ("cin-crossnet-l2", "dcnv2-l2", "3xdcnv2-l2", "growth-vocabulary-20000000", "growth-experts-8")
WARM_UP = 8
NUM_BATCHES = 16
COPY_BYTES = 1 << 30


@dataclass
class Contestant:
    """One way to train a case. `step` trains on the next batch; `milliseconds` of each round."""

    name: str
    make: Callable[[Case, list[Batch]], Callable[[], object]]
    milliseconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    failed: str | None = None


def ours(optimiser: str = "deferred", *, tables: str = "device", precision: str = "float32", storage: str = "float32"):
    """A contestant's `make` with dmoe's `Engine`."""

    def make(case: Case, made: list[Batch]) -> Callable[[], object]:
        contestant = replace(case.contestants[0], optimiser=optimiser, storage=storage)
        job = case.job(contestant)
        model = make_model(job)
        if tables == "host":
            for table in model.embedding.row_tables():
                table.keep_rows_on_host()
        model.to("cuda")
        half = torch.bfloat16 if precision == "bfloat16" else None
        engine = make_engine(model, job, "cuda", autocast=half, host_tables=tables == "host")
        source: Iterator[Batch] = cycle(made)
        if tables == "device":
            source = prefetch(moved_ahead(source, torch.device("cuda")), depth=2, name="benchmark-moves")
        pairs = with_following(source)
        done = 0

        def step() -> None:
            nonlocal done
            batch, following = next(pairs)
            with tf32(precision == "tf32"):
                engine.step(batch, done, following)
            done += 1

        return step

    return make


def fuxictr(optimiser: str):
    """A contestant's `make` with FuxiCTR's layers and its own training step."""

    def make(case: Case, made: list[Batch]) -> Callable[[], object]:
        from benchmarks.workers import fuxictr_worker as peer

        job = case.job(replace(case.contestants[0], optimiser=optimiser))
        torch.manual_seed(job["seed"])
        model = peer.Single(job) if job["head"] == "linear" else peer.MixtureOfExperts(job)
        model.device = torch.device("cuda")
        model.to("cuda")
        sparse = peer.SparseTraining(model) if optimiser == "sparse" else None
        # Its loader hands over columns on the host; here they are on the device already, which favours it.
        columns = cycle(
            [
                {
                    name: column.to("cuda")
                    for name, column in peer._as_columns(one.ids_BC.numpy(), one.labels_B.numpy()).items()
                }
                for one in made
            ]
        )
        model.train()

        def step() -> None:
            batch = next(columns)
            if sparse is not None:
                sparse.step(batch)
            else:
                model.train_step(batch).item()  # as its training loop reads it

        return step

    return make


def _on_device(columns: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: column.to("cuda") for name, column in columns.items()}


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Inside, float32 matrix products take TF32 inputs."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def contestants(peers: bool) -> list[Contestant]:
    found = [
        Contestant("dmoe, deferred", ours()),
        Contestant("dmoe, deferred, TF32", ours(precision="tf32")),
        Contestant("dmoe, deferred, bfloat16 autocast", ours(precision="bfloat16")),
        Contestant("dmoe, deferred, bfloat16 tables and autocast", ours(precision="bfloat16", storage="bfloat16")),
        Contestant("dmoe, dense", ours("dense")),
        Contestant("dmoe, deferred, tables in host memory", ours(tables="host")),
    ]
    if peers:
        found += [Contestant("FuxiCTR, Adam", fuxictr("adam")), Contestant("FuxiCTR, SparseAdam", fuxictr("sparse"))]
    return found


def batches_of(case: Case) -> list[Batch]:
    sizes = batches.vocabulary_sizes(case.vocabulary_rows, case.num_fields)
    ids_RF = batches.draw_ids(sizes, case.batch_size * NUM_BATCHES, seed=0)
    labels_R = (np.random.default_rng([0, len(sizes)]).random(len(ids_RF)) < batches.CLICK_RATE).astype(np.float32)
    found = []
    for start in range(0, len(ids_RF), case.batch_size):
        rows = slice(start, start + case.batch_size)
        ids_BC = torch.from_numpy(ids_RF[rows].copy())
        found.append(Batch(ids_BC, torch.empty(len(ids_BC), 0), torch.from_numpy(labels_R[rows][:, None].copy())))
    return found


def measure(case: Case, taking_part: list[Contestant], rounds: int, steps: int) -> dict[str, Any]:
    """Each contestant in turn, a round each: its median step and the highest memory on the device."""
    made = batches_of(case)
    for _ in range(rounds):
        for one in taking_part:
            if one.failed is None:
                _round(case, one, made, steps)
    return {
        "case": case.name,
        "batch_size": case.batch_size,
        "vocabulary_rows": case.vocabulary_rows,
        "roofline": roofline(case),
        "contestants": [
            {
                "name": one.name,
                "ms": one.milliseconds,
                "median_ms": statistics.median(one.milliseconds) if one.milliseconds else None,
                "peak_bytes": one.peak_bytes,
                "failed": one.failed,
            }
            for one in taking_part
        ],
    }


def _round(case: Case, one: Contestant, made: list[Batch], steps: int) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        step = one.make(case, made)
        for _ in range(WARM_UP):
            step()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    except (RuntimeError, ValueError, ImportError) as error:  # memory, or a model that a peer has not
        one.failed = " ".join(str(error).split())[:200]
        return
    one.milliseconds.append((time.perf_counter() - began) / steps * 1e3)
    one.peak_bytes = max(one.peak_bytes, torch.cuda.max_memory_allocated())


def roofline(case: Case) -> dict[str, float]:
    """Measured rates of the card at the case's own shapes, and the time that they leave as the least."""
    work = dense_work(case)
    found: dict[str, float] = {"dense_gflop": work.flop / 1e9}
    for name, dtype, allowed in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        layers = [
            (
                torch.randn(rows, inputs, device="cuda", dtype=dtype),
                torch.randn(inputs, outputs, device="cuda", dtype=dtype),
            )
            for rows, inputs, outputs in work.layers
        ]

        def products(layers: list[tuple[torch.Tensor, ...]] = layers) -> None:
            for inputs_BI, weight_IO in layers:
                output_BO = inputs_BI @ weight_IO
                output_BO @ weight_IO.T
                inputs_BI.T @ output_BO

        with tf32(allowed):
            found[f"products_{name}_ms"] = _timed(products)
    source = torch.ones(COPY_BYTES // 4, device="cuda")
    target = torch.zeros_like(source)
    found["copy_gb_per_second"] = 2 * COPY_BYTES / _timed(lambda: target.copy_(source)) / 1e6
    table = torch.ones(case.vocabulary_rows, case.table_width, device="cuda")
    rows = torch.randint(len(table), (case.batch_size * case.num_fields,), device="cuda")
    moved = 2 * rows.numel() * case.table_width * 4
    found["gather_gb_per_second"] = moved / _timed(lambda: torch.index_select(table, 0, rows)) / 1e6
    return found


def _timed(work: Callable[[], object], repeats: int = 10) -> float:
    """Milliseconds, the median of `repeats`."""
    work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def as_markdown(found: dict[str, Any]) -> str:
    lines = [f"Card: {found['card']}, torch {found['torch']}, CUDA {found['cuda']}.", ""]
    for case in found["cases"]:
        roof = case["roofline"]
        lines += [
            f"**{case['case']}**: batch {case['batch_size']:,}, {case['vocabulary_rows']:,} rows; "
            f"{roof['dense_gflop']:.0f} GFLOP of matrix products take {roof['products_float32_ms']:.2f} ms in float32, "
            f"{roof['products_tf32_ms']:.2f} in TF32, {roof['products_bfloat16_ms']:.2f} in bfloat16; copy "
            f"{roof['copy_gb_per_second']:,.0f} GB/s, gather of rows {roof['gather_gb_per_second']:,.0f} GB/s.",
            "",
            "| | ms a step | by round | rows/s | peak GiB |",
            "|---|---|---|---|---|",
        ]
        for one in case["contestants"]:
            if one["median_ms"] is None:
                lines.append(f"| {one['name']} | {one['failed']} | | | |")
                continue
            by_round = ", ".join(f"{ms:.2f}" for ms in one["ms"])
            speed, peak = case["batch_size"] / one["median_ms"] * 1e3, one["peak_bytes"] / 2**30
            lines.append(f"| {one['name']} | {one['median_ms']:.2f} | {by_round} | {speed:,.0f} | {peak:.2f} |")
        lines.append("")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help="names of cases, shell wildcards allowed")
    parser.add_argument("--rounds", type=positive, default=3, help="times that each contestant takes its turn")
    parser.add_argument("--steps", type=positive, default=30, help="steps of a turn that are timed")
    parser.add_argument("--only-ours", action="store_true", help="leave FuxiCTR out")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    chosen = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("benchmarks.gpu: torch sees no CUDA device", file=sys.stderr)
        return 2
    found: dict[str, Any] = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cases": [],
    }
    for case in choose(chosen.cases, all_cases()):
        found["cases"].append(measure(case, contestants(not chosen.only_ours), chosen.rounds, chosen.steps))
        print(as_markdown(found | {"cases": found["cases"][-1:]}), flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
        if chosen.markdown:
            chosen.markdown.write_text(as_markdown(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
