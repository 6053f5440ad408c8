"""Training steps on a CUDA device: ours in several forms, FuxiCTR and TorchRec, and what the card can do.

    python -m benchmarks.gpu [CASE …] [--rounds 3] [--steps 30] [--json FILE] [--page docs/performance-gpu.md]

All contestants of a case train in this process by turns, a round each, on the same batches; a step's time is that of
`--steps` steps between two waits for the device. Cases are those of `python -m benchmarks` (docs/performance.md), and
`production`, the mixture of that preset. A peer that is not installed, or has not the model, says so in its line.
`--device cpu` tries that everything runs where no card is; its figures mean nothing, and no page is written of them.
"""

import argparse
import gc
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import positive
from benchmarks.devices import Device, tf32
from benchmarks.gpu_cases import CASES, PRODUCTION, GpuCase, gpu_cases
from benchmarks.gpu_contestants import WARM_UP, Contestant, contestants
from dmoe.shards.batch import Batch

NUM_BATCHES = 16
COPY_BYTES = 1 << 30


def measure(case: GpuCase, taking_part: list[Contestant], device: Device, rounds: int, steps: int) -> dict[str, Any]:
    """Each contestant in turn, a round each: its median step and the highest memory on the device."""
    made = case.batches(NUM_BATCHES)
    for _ in range(rounds):
        for one in taking_part:
            if one.failed is None:
                _round(case, one, made, device, steps)
    return {
        "case": case.name,
        "batch_size": case.batch_size,
        "vocabulary_rows": case.rows,
        "roofline": roofline(case, device),
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


def _round(case: GpuCase, one: Contestant, made: list[Batch], device: Device, steps: int) -> None:
    gc.collect()
    device.begin_peak()
    try:
        step = one.make(case, made, device)
        for _ in range(WARM_UP if device.is_cuda else 1):
            step()
        taken = device.wall_milliseconds(lambda _: step(), steps)
    except (RuntimeError, ValueError, ImportError) as error:  # memory, or a model that a peer has not
        one.failed = " ".join(str(error).split())[:200]
        return
    one.milliseconds.append(taken)
    one.peak_bytes = max(one.peak_bytes, device.peak_bytes())


def roofline(case: GpuCase, device: Device) -> dict[str, float]:
    """Measured rates of the card at the case's own shapes, and the time that they leave as the least."""
    shapes, repeats = case.layers(), 10 if device.is_cuda else 1
    found: dict[str, float] = {"dense_gflop": 6e-9 * sum(rows * inputs * outputs for rows, inputs, outputs in shapes)}
    for name, dtype, allowed in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        layers = [
            (
                torch.randn(rows, inputs, device=device.torch, dtype=dtype),
                torch.randn(inputs, outputs, device=device.torch, dtype=dtype),
            )
            for rows, inputs, outputs in shapes
        ]

        def products(_: int, layers: list[tuple[torch.Tensor, ...]] = layers) -> None:
            for inputs_BI, weight_IO in layers:
                output_BO = inputs_BI @ weight_IO
                output_BO @ weight_IO.T
                inputs_BI.T @ output_BO

        with tf32(allowed):
            products(0)
            found[f"products_{name}_ms"] = device.milliseconds(products, repeats)
    size = COPY_BYTES if device.is_cuda else COPY_BYTES >> 8
    source = torch.ones(size // 4, device=device.torch)
    target = torch.zeros_like(source)
    found["copy_gb_per_second"] = 2 * size / device.milliseconds(lambda _: target.copy_(source), repeats) / 1e6
    table = torch.ones(case.rows, case.width, device=device.torch)
    rows = torch.randint(len(table), (case.batch_size * case.ids,), device=device.torch)
    moved = 2 * rows.numel() * case.width * 4
    taken = device.milliseconds(lambda _: torch.index_select(table, 0, rows), repeats)
    found["gather_gb_per_second"] = moved / taken / 1e6
    return found


def as_markdown(found: dict[str, Any]) -> str:
    cuda = f", CUDA {found['cuda']}" if found["cuda"] else ""
    lines = [f"{found['card']}; torch {found['torch']}{cuda}.", ""]
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
                lines.append(f"| {one['name']} | left out: {one['failed']} | | | |")
                continue
            by_round = ", ".join(f"{ms:.2f}" for ms in one["ms"])
            speed, peak = case["batch_size"] / one["median_ms"] * 1e3, one["peak_bytes"] / 2**30
            lines.append(f"| {one['name']} | {one['median_ms']:.2f} | {by_round} | {speed:,.0f} | {peak:.2f} |")
        lines.append("")
    return "\n".join(lines)


def as_page(found: dict[str, Any], words: str) -> str:
    """The whole page of figures, from one run."""
    return (
        "# Performance on a GPU\n\n"
        f"Written by `{words}`, all contestants of a case in turns on the same batches. Products, copies and gathers\n"
        "are measured on the card in the same run; what a step cannot be faster than is the larger of its products\n"
        "and its rows. What each contestant is: [GPUs](gpu.md).\n\n" + as_markdown(found)
    )


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases", nargs="*", help=f"names, shell wildcards allowed; by default {', '.join([*CASES, PRODUCTION])}"
    )
    parser.add_argument("--rounds", type=positive, default=3, help="times that each contestant takes its turn")
    parser.add_argument("--steps", type=positive, default=30, help="steps of a turn that are timed")
    parser.add_argument("--only-ours", action="store_true", help="leave FuxiCTR and TorchRec out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, after each case")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page of figures there, after each case")
    chosen = parser.parse_args(words)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: torch sees no CUDA device; --device cpu tries that the code runs", file=sys.stderr)
        return 2
    if chosen.device == "cpu" and chosen.page:
        print("benchmarks.gpu: --page is for figures of a card; leave it out with --device cpu", file=sys.stderr)
        return 2
    try:
        cases = gpu_cases(chosen.cases)
    except ValueError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    device = Device(chosen.device)
    found: dict[str, Any] = {
        "card": device.name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.is_cuda else None,
        "cases": [],
    }
    given = sys.argv[1:] if words is None else words
    for case in cases:
        taking_part = contestants(not chosen.only_ours)
        found["cases"].append(measure(case, taking_part, device, chosen.rounds, chosen.steps))
        print(as_markdown(found | {"cases": found["cases"][-1:]}), flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
        if chosen.page:
            page = as_page(found, " ".join(["python -m benchmarks.gpu", *given]))
            chosen.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
