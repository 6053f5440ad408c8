"""The training of `benchmarks.scaling` beside what else does it: two processes, the same batches and dense part.

    python -m benchmarks.scaling_peers [--rows 1000000] [--batch 10000] [--steps 5] [--python PYTHON]

- dmoe with its own row-wise Adagrad, and with Adam and L2 of whole tables (`deferred`);
- TorchRec: tables split by row, row-wise Adagrad fused into the backward pass, the dense part by DDP. It needs an
  environment of its own with fbgemm-gpu-cpu 1.8.0 and torchrec 1.8.0 (`--no-deps`) beside torch 2.13: `--python`;
- plain DDP: every process has all tables, their dense gradient is summed, Adam steps over everything.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.scaling import FIELDS, UNITS, WIDTH, batch_of
from dmoe.config.run import OptimiserConfig
from dmoe.distributed.launch import ends_at_once
from dmoe.distributed.world import World, world_from_environment
from dmoe.nn.experts import expert_class
from dmoe.nn.model import DMoE
from dmoe.nn.objective import Objective
from dmoe.shards.batch import Batch
from dmoe.training.engine import Engine

ENGINES = ("rowwise-adagrad", "deferred", "torchrec", "ddp")
PROCESSES = 2


class Given(nn.Module):
    """In the place of a model's tables: embeddings that were looked up elsewhere."""

    found: tuple[Tensor, ...] = ()

    def forward(self, *_: object) -> tuple[Tensor, ...]:
        return self.found


def model_of(vocabulary: int, world: World | None = None) -> DMoE:
    torch.manual_seed(0)
    experts = [
        expert_class("crossnet")(FIELDS, WIDTH, layers=3),
        expert_class("dnn")(FIELDS, WIDTH, hidden_units=[128]),
    ]
    return DMoE([vocabulary] * FIELDS, 0, WIDTH, experts=experts, expert_units=UNITS, tower_units=(UNITS,), world=world)


def step_of(engine: str, vocabulary: int, world: World) -> Callable[[Batch, int], Any]:
    if engine in ("rowwise-adagrad", "deferred"):
        config = OptimiserConfig(embedding=engine, embedding_l2=1e-6 if engine == "deferred" else 0.0)
        model = model_of(vocabulary, world)
        own = Engine(
            model,
            Objective([], process_group=world.group),
            config,
            clip_norm=None,
            device=torch.device("cpu"),
            world=world,
        )
        return own.step
    return _step_of_torchrec(vocabulary) if engine == "torchrec" else _step_of_ddp(vocabulary)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch.ids_BC, batch.numeric_BN).logit
    return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels_BT[:, 0])


def _step_of_ddp(vocabulary: int) -> Callable[[Batch, int], Any]:
    model = model_of(vocabulary)
    for one in model.parameters():
        one.requires_grad_(one.numel() > 0)  # DDP dies on the others
    shared = nn.parallel.DistributedDataParallel(model)
    adam = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], fused=True)

    def step(batch: Batch, _: int) -> None:
        adam.zero_grad(set_to_none=True)
        _loss(shared, batch).backward()
        adam.step()

    return step


def _step_of_torchrec(vocabulary: int) -> Callable[[Batch, int], Any]:
    from torch.distributed.optim import _apply_optimizer_in_backward
    from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingEnv, ShardingPlan
    from torchrec.optim import RowWiseAdagrad

    model = model_of(2)
    widths = sum(table.weight.shape[1] for table in model.embedding.row_tables())
    sizes = model.embedding.widths
    given = Given()
    model.embedding = given  # type: ignore[assignment]
    dense = nn.parallel.DistributedDataParallel(model)
    adam = torch.optim.Adam(model.parameters(), fused=True)
    keys = [f"f{field}" for field in range(FIELDS)]
    tables = EmbeddingCollection(
        tables=[
            EmbeddingConfig(name=f"t_{key}", embedding_dim=widths, num_embeddings=vocabulary, feature_names=[key])
            for key in keys
        ],
        device=torch.device("cpu"),
    )
    _apply_optimizer_in_backward(RowWiseAdagrad, tables.parameters(), {"lr": 1e-3})
    sharder = EmbeddingCollectionSharder()
    plan = construct_module_sharding_plan(
        tables,
        per_param_sharding={f"t_{key}": row_wise() for key in keys},
        sharder=sharder,
        local_size=PROCESSES,
        world_size=PROCESSES,
        device_type="cpu",
    )
    sharded = DistributedModelParallel(
        nn.ModuleDict({"tables": tables}),
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=ShardingPlan({"tables": plan}),
        sharders=[sharder],
        init_data_parallel=False,
    ).module["tables"]

    def step(batch: Batch, _: int) -> None:
        adam.zero_grad(set_to_none=True)
        ids_CB = batch.ids_BC.t().contiguous()
        lengths = torch.ones(ids_CB.numel(), dtype=torch.int32)
        found = sharded(KeyedJaggedTensor(keys, ids_CB.reshape(-1), lengths=lengths)).wait()
        values_BFS = torch.stack([found[key].values() for key in keys], dim=1)
        given.found = torch.split(values_BFS, list(sizes), dim=2)
        _loss(dense, batch).backward()
        adam.step()

    return step


def worker(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    world = world_from_environment(600.0)
    vocabulary = options.rows // FIELDS
    step = step_of(options.worker, vocabulary, world)
    share = world.share(options.batch)
    batches = [batch_of(options.batch, vocabulary, number) for number in range(options.steps + 2)]
    for number, batch in enumerate(batches):
        if number == 2:  # compiled and warm
            world.barrier()
            wall, processor = time.perf_counter(), time.process_time()
        own = (one[share.start : share.stop] for one in (batch.ids_BC, batch.numeric_BN, batch.labels_BT))
        step(Batch(*own), number)
    found = world.gather(
        [(time.process_time() - processor) / options.steps, (time.perf_counter() - wall) / options.steps]
    )
    if world.is_first:
        print(json.dumps(found))
    world.barrier()


def measured(engine: str, python: str, options: argparse.Namespace) -> list[list[float]]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    numbers = ["--rows", str(options.rows), "--batch", str(options.batch), "--steps", str(options.steps)]
    started = []
    for rank in range(PROCESSES):
        own = {"RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(PROCESSES), "OMP_NUM_THREADS": "1"}
        command = [python, "-W", "ignore", "-m", "benchmarks.scaling_peers", "--worker", engine, *numbers]
        started.append(subprocess.Popen(command, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True))
    outputs = [one.communicate()[0] for one in started]
    if any(one.returncode for one in started):
        raise SystemExit(f"{engine}: a process failed")
    found: list[list[float]] = json.loads(outputs[0].splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torchrec")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        ends_at_once(lambda: worker(options))
        return
    print(f"{PROCESSES} processes, a thread each; milliseconds a step of each process")
    for engine in options.engines:
        found = measured(engine, options.python if engine == "torchrec" else sys.executable, options)
        processor, wall = (max(one[place] for one in found) for place in (0, 1))
        print(f"{engine:16}  processor {1e3 * processor:7.0f}  wall {1e3 * wall:7.0f}", flush=True)


if __name__ == "__main__":
    main()
