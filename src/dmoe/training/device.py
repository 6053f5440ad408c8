"""The device that a process trains on, and batches on their way to it while it computes."""

from collections.abc import Generator, Iterator

import torch

from dmoe.config.run import TrainingConfig
from dmoe.distributed.world import World, local_rank
from dmoe.errors import ConfigError
from dmoe.shards.batch import Batch
from dmoe.weights.run import choose_device


def training_device(recipe: TrainingConfig, world: World) -> torch.device:
    """The device that this process trains on: of several processes of a machine, each has one of its own.

    Raises: ConfigError if it is not there, or cannot do what the recipe asks for.
    """
    device = choose_device(recipe.device)
    if recipe.precision == "tf32" and device.type != "cuda":
        raise ConfigError("training.precision: tf32 is of CUDA devices, and torch sees none; set float32 or bfloat16")
    if not world.several or device.type != "cuda":
        return device
    if device.index is not None:
        raise ConfigError(
            f"training.device: {recipe.device} names one device for several processes; say cuda, and each takes its own"
        )
    own, found = local_rank(world), torch.cuda.device_count()
    if own >= found:
        raise ConfigError(
            f"training.device: each process needs a CUDA device of its own, and torch sees {found} here; start so "
            "many, or set training.device=cpu"
        )
    return torch.device("cuda", own)


def moved_ahead(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The same batches on `device`, copied from pinned memory on a stream of their own where it has streams.

    Meant to run in a thread ahead of the one that trains: what is yielded has arrived.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        pinned = batch.pinned()
        with torch.cuda.stream(stream):
            moved = pinned.to(device)
        # The copy is waited for here, in this thread: the training one and its stream are not held up.
        stream.synchronize()
        # Training may be behind: its memory is not to be given to a later batch before it was read.
        for tensor in moved.tensors():
            tensor.record_stream(torch.cuda.default_stream(device))
        yield moved


def pinned_ahead(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """The same batches in memory that a device copies from by itself. Meant for a thread ahead of training."""
    for batch in batches:
        yield batch.pinned()


def with_following(batches: Iterator[Batch]) -> Iterator[tuple[Batch, Batch | None]]:
    """Each batch and the next one, None after the last."""
    before: Batch | None = None
    for batch in batches:
        if before is not None:
            yield before, batch
        before = batch
    if before is not None:
        yield before, None
