"""One training on 1, 2 and 4 processes of this machine, a thread each, and a model of what more would do.

    python -m benchmarks.scaling [--rows 1000000] [--batch 10000] [--steps 10]
    python -m benchmarks.scaling --memory 20000000    # a table of so many rows × 48 over 4 processes

Wall times mean little where processes share cores; processor time, bytes and balance do not depend on that. The model
says what a step would take on a network with the figures given; it stands and falls with them.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dmoe.config.run import OptimiserConfig
from dmoe.decorrelation import CorrLoss
from dmoe.distributed.layout import RowLayout
from dmoe.distributed.world import World, world_from_environment
from dmoe.nn.experts import expert_class
from dmoe.nn.model import DMoE
from dmoe.nn.objective import DecorrelationTerm, Objective
from dmoe.shards.batch import Batch
from dmoe.training.engine import Engine

FIELDS, WIDTH, UNITS = 24, 16, 128
# Of the model: a link of 25 Gbit/s a process, a message of 20 µs, and a core for each process.
BYTES_PER_S, LATENCY_S = 25e9 / 8, 20e-6


class Timed(World):
    """Counts the time that its process waits for others."""

    waited_s = 0.0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return self._timed(lambda: super(Timed, self).total(values))

    def exchange(self, sent: torch.Tensor, counts: Any, received_counts: Any) -> torch.Tensor:
        return self._timed(lambda: super(Timed, self).exchange(sent, counts, received_counts))

    def _timed(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.waited_s += time.perf_counter() - began


def batch_of(rows: int, vocabulary: int, step: int) -> Batch:
    """Ids by a law as of words, the frequent ones small, as vocabularies number them."""
    generator = np.random.default_rng([1, step])
    ids_BC = (vocabulary ** generator.random((rows, FIELDS)) - 1).astype(np.int32)
    labels_BT = (generator.random((rows, 1)) < 0.2).astype(np.float32)
    return Batch(torch.from_numpy(ids_BC), torch.zeros(rows, 0), torch.from_numpy(labels_BT))


def worker(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    plain = world_from_environment(600.0)
    world = Timed(plain.rank, plain.size, plain.group, plain.store)
    vocabulary = options.rows // FIELDS
    experts = [
        expert_class("crossnet")(FIELDS, WIDTH, layers=3),
        expert_class("dnn")(FIELDS, WIDTH, hidden_units=[128]),
    ]
    torch.manual_seed(0)
    model = DMoE(
        [vocabulary] * FIELDS, 0, WIDTH, experts=experts, expert_units=UNITS, tower_units=(UNITS,), world=world
    )
    objective = Objective(
        [DecorrelationTerm(CorrLoss(process_group=world.group), "output", 1.0)], process_group=world.group
    )
    config = OptimiserConfig(embedding_l2=1e-6)
    engine = Engine(model, objective, config, clip_norm=10.0, device=torch.device("cpu"), world=world)
    asked: list[int] = []
    given: list[int] = []
    for step in range(options.steps + 2):
        if step == 2:  # compiled and warm
            world.barrier()
            world.sent_bytes, world.waited_s = 0, 0.0
            wall, processor = time.perf_counter(), time.process_time()
        batch = batch_of(options.batch, vocabulary, step)
        own = world.share(options.batch)
        share = Batch(*(one[own.start : own.stop] for one in (batch.ids_BC, batch.numeric_BN, batch.labels_BT)))
        engine.step(share, step)
        if model.embedding.exchange is not None and step >= 2:
            asked.append(model.embedding.exchange.asked)
            given.append(model.embedding.exchange.given)
    found = {
        "wall_s": (time.perf_counter() - wall) / options.steps,
        "processor_s": (time.process_time() - processor) / options.steps,
        "waited_s": world.waited_s / options.steps,
        "sent_bytes": world.sent_bytes / options.steps,
        "asked": float(np.mean(asked)) if asked else 0.0,
        "given": float(np.mean(given)) if given else 0.0,
        "dense": sum(one.numel() for one in engine.dense),
    }
    every = world.gather(found)
    if world.is_first:
        print(json.dumps(every))
    world.end()


def memory_worker(rows: int) -> None:
    """A table of `rows` × 48 with deferred Adam, a step on a batch of it; the memory of each process."""
    from dmoe.nn.tables.table import MultiTableEmbedding
    from dmoe.optim import DeferredAdam

    torch.set_num_threads(1)
    world = world_from_environment(3600.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = MultiTableEmbedding([rows], 0, [48], process=(world.rank, world.size))
    store = DeferredAdam(table.weight, lr=1e-3, l2=1e-6)
    held = torch.arange(0, table.layout.held, 1000)
    store.read(held)
    store.write(held, torch.ones(len(held), 48))
    store.flush()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    every = world.gather({"before_mb": before / 1024, "peak_mb": after / 1024, "held": table.layout.held})
    if world.is_first:
        print(json.dumps(every))
    world.end()


def run(processes: int, arguments: list[str]) -> list[dict[str, float]]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "benchmarks.scaling", "--worker", *arguments]
        environment = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [one.communicate()[0] for one in started]
    if any(one.returncode for one in started):
        raise SystemExit("a process failed")
    found: list[dict[str, float]] = json.loads(outputs[0])
    return found


def modelled(processes: int, options: argparse.Namespace, alone: dict[str, float]) -> dict[str, float]:
    """Seconds of a step: compute divided, rows and sums by their counted bytes, messages by their number."""
    vocabulary = options.rows // FIELDS
    ids_BC = batch_of(options.batch, vocabulary, 0).ids_BC.numpy() + np.arange(FIELDS) * vocabulary
    share = ids_BC[: max(1, options.batch // processes)]
    rows = len(np.unique(share))
    layout = RowLayout(options.rows, 0, processes)
    places = layout.place_of(np.concatenate([np.unique(one) for one in np.array_split(ids_BC, processes)]))
    requests = np.bincount(places // layout.chunk, minlength=processes)
    table = 3 * WIDTH * 4
    exchanged = (1 - 1 / processes) * rows * (4 + 2 * table)
    moments = (UNITS * UNITS + 2 * UNITS) * 4
    summed = 2 * (1 - 1 / processes) * (alone["dense"] * 4 + moments)
    # Four exchanges go to everybody; sums go round a ring forth and back: gradients, norm, moments and their heads.
    messages = 4 * (processes - 1) + 2 * 6 * (processes - 1)
    compute = alone["processor_s"] / processes
    found = {
        "compute_s": compute,
        "rows_s": exchanged / BYTES_PER_S * float(requests.max() / requests.mean()),
        "sums_s": summed / BYTES_PER_S,
        "latency_s": messages * LATENCY_S,
        "balance": float(requests.max() / requests.mean()),
    }
    total = compute + found["rows_s"] + found["sums_s"] + found["latency_s"]
    return {**found, "step_s": total, "efficiency": alone["processor_s"] / processes / total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--memory", type=int, default=0, metavar="ROWS")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        memory_worker(options.memory) if options.memory else worker(options)
        return
    if options.memory:
        for rank, one in enumerate(run(4, ["--memory", str(options.memory)])):
            print(f"rank {rank} of 4: {one['held']:,.0f} rows, {one['peak_mb'] - one['before_mb']:,.0f} MB")
        return
    arguments = ["--rows", str(options.rows), "--batch", str(options.batch), "--steps", str(options.steps)]
    measured = {processes: run(processes, arguments) for processes in (1, 2, 4)}
    print("processes  processor ms/step  wall ms  rows/s  waiting  MB sent  rows asked of: max/mean")
    for processes, ranks in measured.items():
        wall = max(one["wall_s"] for one in ranks)
        given = [one["given"] for one in ranks]
        print(
            f"{processes:9}  {1e3 * max(one['processor_s'] for one in ranks):17.0f}  {1e3 * wall:7.0f}"
            f"  {options.batch / wall:6,.0f}  {np.mean([one['waited_s'] for one in ranks]) / wall:7.0%}"
            f"  {np.mean([one['sent_bytes'] for one in ranks]) / 1e6:7.2f}"
            f"  {max(given) / max(float(np.mean(given)), 1.0):.2f}"
        )
    print("\nmodel: 25 Gbit/s and 20 µs a message, a core a process, the same global batch")
    print("processes  compute ms  rows ms  sums ms  messages ms  step ms  efficiency  balance")
    for processes in (8, 32, 128, 512, 1024):
        found = modelled(processes, options, measured[1][0])
        times = "  ".join(
            f"{1e3 * found[key]:9.2f}" for key in ("compute_s", "rows_s", "sums_s", "latency_s", "step_s")
        )
        print(f"{processes:9}  {times}  {found['efficiency']:9.0%}  {found['balance']:7.2f}")


if __name__ == "__main__":
    main()
