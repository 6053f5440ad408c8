"""Whole runs of a group of four ranks, in float64: a program.

`python -m tests.distributed.runs FOLDER` under RANK and WORLD_SIZE, FOLDER holding the data set `data`, leaves the runs
there: `one`, `three`, `again` (stopped and resumed by three), `other` (begun by four, continued by two, then by three),
`bad` (a loss that is not finite at one rank), and what each rank said of them in `said-<rank>.json`.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from dmoe.distributed.launch import ends_at_once
from dmoe.distributed.world import World, world_from_environment
from dmoe.errors import DmoeError
from dmoe.nn import build
from dmoe.nn.objective import Losses, Objective
from dmoe.nn.output import DMoEOutput
from dmoe.shards.batch import Batch
from dmoe.training.engine import Engine
from dmoe.training.loop import train
from tests.small_runs import small_config

CONFIG = small_config(
    "training.device=cpu",
    "training.clip_norm=0.5",
    "training.unseen={site: 0.2}",
    "training.evaluations_per_epoch=2",
    "training.patience=5",
    "optimiser.embedding_l2_rarity=0.5",
    "model.field_std=0.1",
    "training.calibration=platt",
    "training.memory_gb=0.000012",  # windows of a part of train
)


def in_float64() -> None:
    """Tables, too, which a configuration does not offer."""
    torch.set_default_dtype(torch.float64)
    build._STORAGE["float32"] = torch.float64


@contextmanager
def stopped_after(step: int, here: bool) -> Iterator[None]:
    """SIGTERM comes to this process, if it is to be here, while it does a step."""
    real = Engine.step

    def stopping(self: Engine, batch: Batch, number: int, following: Batch | None = None) -> torch.Tensor:
        if here and number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, number, following)

    Engine.step = stopping  # type: ignore[method-assign]
    try:
        yield
    finally:
        Engine.step = real  # type: ignore[method-assign]


@contextmanager
def bad_loss_at(step: int, here: bool) -> Iterator[None]:
    real = Objective.forward

    def bad(self: Objective, output: DMoEOutput, *rest: object, **more: object) -> Losses:
        losses = real(self, output, *rest, **more)  # type: ignore[arg-type]
        if here and rest[-1] == step:
            return Losses(losses.total * torch.nan, losses.logloss, losses.decorrelation)
        return losses

    Objective.forward = bad  # type: ignore[method-assign]
    try:
        yield
    finally:
        Objective.forward = real  # type: ignore[method-assign]


def main(folder: Path) -> None:
    in_float64()
    whole = world_from_environment(60.0)
    groups = {size: dist.new_group(list(range(size))) for size in (2, 3, 4)}
    rank, data = whole.rank, folder / "data"
    worlds = iter(range(100))

    def world(size: int) -> World | None:
        """The first processes; each time with keys of their own in the store."""
        assert whole.store is not None
        store = dist.PrefixStore(str(next(worlds)), whole.store)
        if size == 1:
            return World() if rank == 0 else None
        return World(rank, size, groups[size], store) if rank < size else None

    said: dict[str, str] = {}

    def run(name: str, size: int, *, resume: bool = False) -> None:
        part = world(size)
        if part is not None:
            try:
                train(CONFIG, data, folder / name, resume=resume, world=part)
            except DmoeError as error:
                said[f"{name} {size}"] = f"{type(error).__name__}: {error}"
        whole.barrier()

    run("three", 3)
    with stopped_after(11, rank == 1):
        run("again", 3)
    run("again", 3, resume=True)
    with stopped_after(11, rank == 2):
        run("other", 4)
    with stopped_after(20, rank == 0):
        run("other", 2, resume=True)
    run("other", 3, resume=True)
    with bad_loss_at(17, rank == 1):
        run("bad", 3)
    (folder / f"said-{rank}.json").write_text(json.dumps(said))
    run("one", 1)
    whole.end()


if __name__ == "__main__":
    ends_at_once(lambda: main(Path(sys.argv[1])))
