"""Batches on their way to a device while it computes."""

from collections.abc import Generator, Iterator

import torch

from dmoe.shards.batch import Batch


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


def with_following(batches: Iterator[Batch]) -> Iterator[tuple[Batch, Batch | None]]:
    """Each batch and the next one, None after the last."""
    before: Batch | None = None
    for batch in batches:
        if before is not None:
            yield before, batch
        before = batch
    if before is not None:
        yield before, None
