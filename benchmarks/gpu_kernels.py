"""What the kernels of the embedding tables take on a CUDA device, beside what its memory and its units can do.

    python -m benchmarks.gpu_kernels
    python -m benchmarks.gpu_kernels --crossover
    python -m benchmarks.gpu_kernels --rows 1000000 --widths 32 --batches 10000 --json kernels.json

Each line is a kernel at one size: the bytes that it cannot do without, its time on the device, and the rate of the one
over the other as a share of the rate at which the device copies. Ids of a field follow a power law; a row waits as long
as the batches before made it wait. Needs torch, triton and numba alone.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import triton
from torch import Tensor, nn

from benchmarks.devices import Device, tf32
from dmoe.kernels import row_access, row_triton
from dmoe.optim import deferred_triton, make_embedding_optimiser
from dmoe.optim.deferred_triton import DeferredRows

FIELDS = 40
# Batches that rows have behind them when their step is timed; each is another one.
BEFORE = 24
ROUNDS = 8
# λ, and steps that rows miss.
REPLAYS = ((0.0, 100), (1e-6, 100), (1e-6, 1000))
BETAS, EPS, LR = (0.9, 0.999), 1e-8, 1e-3
on = Device("cuda")  # `main` chooses


@dataclass(frozen=True)
class Line:
    """A kernel's time at one size; `bytes` is what it must move."""

    what: str
    rows: int
    width: int
    batch: int
    distinct: int
    bytes: float
    milliseconds: float
    share: float


class Workload:
    """Batches over one table of `rows` rows in `FIELDS` fields of equal size."""

    def __init__(self, rows: int, batch: int) -> None:
        self.device = on.torch
        size = rows // FIELDS
        self.rows, self.batch = size * FIELDS, batch
        self.offsets_C = torch.arange(FIELDS, device=self.device) * size
        self.room = FIELDS * min(batch, size)
        generator = torch.Generator(self.device).manual_seed(1)
        self.ids = [
            (torch.rand(batch, FIELDS, generator=generator, device=self.device) ** 6 * size).int()
            for _ in range(BEFORE + ROUNDS)
        ]

    def distinct(self, ids_BC: Tensor) -> row_triton.DistinctRows:
        return row_triton.distinct_rows(ids_BC, self.offsets_C, self.rows, self.room)


def milliseconds(work: Callable[[int], object], rounds: int | None = None) -> float:
    return on.milliseconds(work, rounds or ROUNDS)


def wall_milliseconds(work: Callable[[int], object]) -> float:
    work(0)
    return on.wall_milliseconds(work, ROUNDS)


def roofline() -> dict[str, float]:
    """Bytes a second of a copy, counting those read and those written, and operations a second of matrix products."""
    found = {"copy": _copy_rate(2**30 if on.is_cuda else 2**20)}
    for name, dtype, fast in (
        ("bfloat16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        with tf32(fast):
            found[name] = _product_rate(8192 if on.is_cuda else 64, dtype)
    return found


def _copy_rate(size: int) -> float:
    source = torch.empty(size, dtype=torch.uint8, device=on.torch)
    target = torch.empty_like(source)
    return 2 * size / milliseconds(lambda _: target.copy_(source), 20) * 1e3


def _product_rate(size: int, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size, device=on.torch, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    torch.mm(left, right, out=out)
    return 2.0 * size**3 / milliseconds(lambda _: torch.mm(left, right, out=out)) * 1e3


def kernels(work: Workload, width: int, storage: torch.dtype, l2: float, copy: float) -> Iterator[Line]:
    """Each kernel of a step in turn, and the step."""
    table = DeferredRows(torch.zeros(work.rows, width, dtype=storage, device=work.device), LR, BETAS, EPS, l2)
    scale = torch.ones(1, dtype=torch.float64, device=work.device)
    gradient_BCS = torch.randn(work.batch, FIELDS, width, device=work.device)
    for ids_BC in work.ids[:BEFORE]:
        step(work, table, ids_BC, gradient_BCS, scale)
    ids = work.ids[BEFORE:]
    found = [work.distinct(ids_BC) for ids_BC in ids]
    distinct = int(statistics.median([int(one.count) for one in found]))
    positions, row = work.batch * FIELDS, 4 * width
    stored = width * storage.itemsize
    name = f"{str(storage).removeprefix('torch.')}, {'L2' if l2 else 'no L2'}"

    def line(what: str, number_of_bytes: float, taken: float) -> Line:
        share = number_of_bytes / (taken / 1e3) / copy
        return Line(f"{what} ({name})", work.rows, width, work.batch, distinct, number_of_bytes, taken, share)

    if storage == torch.float32 and not l2:
        taken = milliseconds(lambda number: work.distinct(ids[number]))
        yield line("distinct rows", 8 * positions + 8 * distinct, taken)
        values_US = torch.randn(work.room, width, device=work.device)
        taken = milliseconds(lambda number: found[number].gather(values_US, [width], FIELDS))
        yield line("gather", positions * (4 + row) + distinct * row, taken)
        taken = milliseconds(lambda number: found[number].sum_gradients([gradient_BCS], [width], torch.float32))
        yield line("sum of duplicates", positions * (8 + row) + distinct * row, taken)
    gradient_US = torch.randn(work.room, width, device=work.device)
    reads, writes = [], []
    for number in range(len(ids)):
        rows_U = found[number].rows_U
        reads.append(milliseconds(lambda _, rows_U=rows_U: table.read(rows_U), 1))  # type: ignore[misc]
        writes.append(milliseconds(lambda _, rows_U=rows_U: table.write(rows_U, gradient_US, scale), 1))  # type: ignore[misc]
    # Both moments and the weight are read and written, and the row is given or its gradient taken.
    moved = distinct * (16 * width + 2 * stored + row + 16)
    yield line("read and catch up", moved, statistics.median(reads))
    yield line("update", moved, statistics.median(writes))
    whole = 2 * moved + positions * (24 + 2 * row) + 3 * distinct * row
    taken = milliseconds(lambda number: step(work, table, ids[number], gradient_BCS, scale))
    yield line("step of the table", whole, taken)
    taken = wall_milliseconds(lambda number: step(work, table, ids[number], gradient_BCS, scale))
    yield line("step of the table, with the host", whole, taken)
    if on.is_cuda:
        yield line("step of the table, as a graph", whole, _as_graph(work, table, gradient_BCS, scale))
    flushes = []
    for ids_BC in ids[:3]:
        for _ in range(10):
            step(work, table, ids_BC, gradient_BCS, scale)
        flushes.append(milliseconds(lambda _: table.flush(), 1))
    elements = work.rows * width
    share_of_moments = 16 if l2 else 8
    yield line("flush after 10 steps", elements * (share_of_moments + 2 * storage.itemsize), statistics.median(flushes))


def _as_graph(work: Workload, table: DeferredRows, gradient_BCS: Tensor, scale: Tensor) -> float:
    ids_BC = work.ids[BEFORE].clone()
    graph, taken = torch.cuda.CUDAGraph(), table.step_count
    with torch.cuda.graph(graph):
        step(work, table, ids_BC, gradient_BCS, scale)
    table.step_count = taken  # nothing has run yet

    def once(number: int) -> None:
        ids_BC.copy_(work.ids[BEFORE + number])
        graph.replay()
        table.step_count += 1

    return wall_milliseconds(once)


def step(work: Workload, table: DeferredRows, ids_BC: Tensor, gradient_BCS: Tensor, scale: Tensor) -> None:
    """What a training step asks of a table, with the gradient given."""
    found = work.distinct(ids_BC)
    width = gradient_BCS.shape[2]
    values_US = table.read(found.rows_U)
    found.gather(values_US, [width], FIELDS)
    gradient_US = found.sum_gradients([gradient_BCS], [width], torch.float32)
    table.write(found.rows_U, gradient_US, scale)


def torch_forms(work: Workload, width: int, copy: float) -> Iterator[Line]:
    """The same step with torch's own lookup: dense gradients and fused Adam, or sparse ones and SparseAdam."""
    gradient_BCS = torch.randn(work.batch, FIELDS, width, device=work.device)
    elements = work.rows * width
    for is_sparse in (False, True):
        weight = nn.Parameter(torch.zeros(work.rows, width, device=work.device))
        kind = torch.optim.SparseAdam if is_sparse else partial(torch.optim.Adam, fused=True)
        once = partial(_torch_step, work, weight, kind([weight], lr=LR), gradient_BCS, is_sparse)
        for number in range(3):
            once(number)
        taken = wall_milliseconds(once)
        # Of the dense form: the gradient is zeroed, added to and read; weight and moments are read and written.
        moved = 0 if is_sparse else 4 * elements * 8
        name = "torch: SparseAdam" if is_sparse else "torch: fused Adam, dense gradient"
        yield Line(name, work.rows, width, work.batch, 0, moved, taken, moved / (taken / 1e3) / copy)


def _torch_step(
    work: Workload,
    weight: nn.Parameter,
    optimiser: torch.optim.Optimizer,
    gradient_BCS: Tensor,
    is_sparse: bool,
    number: int,
) -> None:
    index_BC = work.ids[number % len(work.ids)] + work.offsets_C
    nn.functional.embedding(index_BC, weight, sparse=is_sparse).backward(gradient_BCS)  # type: ignore[no-untyped-call]
    optimiser.step()
    optimiser.zero_grad()


def replay_rate(width: int, l2: float, missed: int) -> float:
    """Steps of one element a second, of rows that all miss `missed` steps."""
    rows = (2**25 if on.is_cuda else 2**8) // width
    table = DeferredRows(
        torch.full((rows, width), 1e-2, device=on.torch), LR, BETAS, EPS, l2, history_length=missed + 1
    )
    nobody = torch.full((1,), -1, device=on.torch)
    nothing = torch.zeros(1, width, device=on.torch)
    scale = torch.ones(1, dtype=torch.float64, device=on.torch)
    taken = []
    for _ in range(3):
        for _ in range(missed):
            table.write(nobody, nothing, scale)
        taken.append(milliseconds(lambda _: table.flush(), 1))
    return rows * width * missed / statistics.median(taken) * 1e3


def crossover(width: int, batch: int, most_rows: int) -> None:
    """Steps of tables of growing size, `deferred` and `dense`: what `optimiser.dense_rows` can be for such batches."""
    fastest, rows = 0, FIELDS * 8
    while rows <= most_rows:
        taken = {kind: _table_step(kind, Workload(rows, batch), width) for kind in ("deferred", "dense")}
        print(f"width {width}, batch {batch}, {rows} rows: " + ", ".join(f"{k} {ms:.3f} ms" for k, ms in taken.items()))
        if taken["dense"] > taken["deferred"]:
            break
        fastest, rows = rows, 2 * rows
    print(f"width {width}, batch {batch}: dense is the faster one up to {fastest} rows", flush=True)


def _table_step(kind: str, work: Workload, width: int) -> float:
    """With the host, as launches count where tables are small."""
    weight = nn.Parameter(torch.zeros(work.rows, width, device=work.device))
    store = make_embedding_optimiser(kind, weight, lr=LR)
    gradient_BCS = torch.randn(work.batch, FIELDS, width, device=work.device)

    def once(number: int) -> None:
        found = work.distinct(work.ids[number])
        found.gather(store.read(found.rows_U), [width], FIELDS)
        store.write(found.rows_U, found.sum_gradients([gradient_BCS], [width], torch.float32))

    return wall_milliseconds(once)


def sweep(rows: int, width: int, batch: int, copy: float) -> None:
    """Times of kernels by the shape of their programs."""
    work = Workload(rows, batch)
    for warps in (1, 2, 4, 8):
        for elements in (32 * warps, 64 * warps, 128 * warps, 256 * warps):
            row_triton.WARPS = warps
            row_triton.TILE = deferred_triton.REPLAY_TILE = elements
            lines = [*kernels(work, width, torch.float32, 0.0, copy), *kernels(work, width, torch.float32, 1e-6, copy)]
            times = "  ".join(f"{line.what.split(' (')[0]} {line.milliseconds:.3f}" for line in lines)
            print(f"warps {warps} elements {elements}: {times}  L2 {replay_rate(width, 1e-6, 100):.3g}", flush=True)


def main(words: list[str] | None = None) -> None:
    global on
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_kernels", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 20_000_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[2048, 10_000, 65_536])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="the CPU interprets kernels, slowly")
    parser.add_argument(
        "--crossover", action="store_true", help="up to how many rows a table is faster dense, and nothing else"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument(
        "--sweep", action="store_true", help="times by the shape of programs, at the first sizes, alone"
    )
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "benchmarks.gpu_kernels: torch sees no CUDA device; --device cpu tries that the code runs\n")
    on = Device(arguments.device)
    if not on.is_cuda:
        row_access.kernels_serve = lambda _: True  # in Triton's interpreter
    limits = roofline()
    card = on.name
    print(f"{card}, torch {torch.__version__}, triton {triton.__version__}")
    print(f"copy {limits['copy'] / 1e9:.0f} GB/s (read and written)", end="")
    print(*(f"; {name} {limits[name] / 1e12:.0f} TFLOP/s" for name in ("bfloat16", "tf32", "float32")), flush=True)
    if arguments.crossover:
        for width in arguments.widths:
            for batch in arguments.batches:
                crossover(width, batch, max(arguments.rows))
        return
    if arguments.sweep:
        sweep(arguments.rows[0], arguments.widths[0], arguments.batches[0], limits["copy"])
        return
    lines: list[Line] = []
    rates = {}
    print(
        f"{'kernel':48} {'rows':>10} {'width':>5} {'batch':>6} {'distinct':>9} {'MB':>8} {'ms':>8} {'GB/s':>6} of copy"
    )
    for rows in arguments.rows:
        for width in arguments.widths:
            for batch in arguments.batches:
                for line in _of_size(rows, width, batch, limits["copy"]):
                    lines.append(line)
                    rate = line.bytes / line.milliseconds / 1e6
                    print(
                        f"{line.what:48} {line.rows:10} {line.width:5} {line.batch:6} {line.distinct:9} "
                        f"{line.bytes / 1e6:8.1f} {line.milliseconds:8.3f} {rate:6.0f} {line.share:7.0%}",
                        flush=True,
                    )
                on.begin_peak()
    for width in arguments.widths:
        for l2, missed in REPLAYS:
            name = f"replay of {missed} missed steps, width {width}, {'L2' if l2 else 'no gradient at all'}"
            rates[name] = replay_rate(width, l2, missed)
            print(f"{name}: {rates[name] / 1e9:.1f} thousand million steps of an element a second", flush=True)
    if arguments.json is not None:
        whole = {"card": card, "limits": limits, "lines": [asdict(line) for line in lines], "replay": rates}
        arguments.json.write_text(json.dumps(whole, indent=1))


def _of_size(rows: int, width: int, batch: int, copy: float) -> Iterator[Line]:
    work = Workload(rows, batch)
    for storage, l2 in ((torch.float32, 0.0), (torch.float32, 1e-6), (torch.bfloat16, 0.0)):
        yield from kernels(work, width, storage, l2, copy)
    if not on.is_cuda or 4 * 4 * rows * width < torch.cuda.mem_get_info()[0]:
        yield from torch_forms(work, width, copy)


if __name__ == "__main__":
    main()
