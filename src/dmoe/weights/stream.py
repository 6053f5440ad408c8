"""A file of weights of which several processes hold the rows, written and read in ranges of rows.

Shape suffixes: U rows of a range, S width of a table.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

import torch
from torch import Tensor

from dmoe.disk.files import give_usual_mode, written_aside
from dmoe.distributed.layout import WAYS, RowLayout
from dmoe.distributed.world import World
from dmoe.weights.mapped import DTYPES
from dmoe.weights.run import Run

# About so many bytes are together at the first process.
_BLOCK_BYTES = 1 << 26


def save_together(run: Run, tensors: Mapping[str, Tensor], layouts: Mapping[str, RowLayout], world: World) -> None:
    """Writes the best weights as one process would: whole tables, their rows in the order of the vocabularies.

    All processes call it; the first one writes, and holds a few rows of the others at a time.
    """
    if not world.several:
        run.save_weights(dict(tensors))
        return
    shapes = {
        name: [layouts[name].rows, *value.shape[1:]] if name in layouts else list(value.shape)
        for name, value in tensors.items()
    }
    # As safetensors orders them: the widest numbers first, so that all are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    with _written(run, world) as file:
        if file is not None:
            file.write(_header(tensors, shapes, names))
        for name in names:
            if name not in layouts:
                if file is not None:
                    file.write(_bytes(tensors[name]))
                continue
            for rows_US in rows_in_order(tensors[name], layouts[name], world):
                if file is not None:
                    file.write(_bytes(rows_US))


@contextmanager
def _written(run: Run, world: World) -> Iterator[IO[bytes] | None]:
    if world.is_first:
        with written_aside(run.weights) as aside:
            with aside.open("wb") as file:
                yield file
            give_usual_mode(aside)
    else:
        yield None
    world.barrier()


def rows_in_order(held_LS: Tensor, layout: RowLayout, world: World) -> Iterator[Tensor]:
    """At the first process all rows of a table, a range after the other; elsewhere empty ranges."""
    width = held_LS[:1].numel() or 1
    length = max(1, _BLOCK_BYTES // (width * held_LS.element_size() * WAYS)) * WAYS
    parts = [layout.of(rank) for rank in range(world.size)]
    for start in range(0, layout.rows, length):
        stop = min(start + length, layout.rows)
        rows = [part.held_of(start, stop) for part in parts]
        mine = held_LS.detach()[torch.from_numpy(rows[world.rank][1])].cpu()
        counts = [len(one) for one, _ in rows]
        came = world.exchange(
            _movable(mine), [len(mine), *[0] * (world.size - 1)], counts if world.is_first else [0] * world.size
        ).view(mine.dtype)
        if not world.is_first:
            yield came
            continue
        together_US = mine.new_empty(stop - start, *held_LS.shape[1:])
        for (rows_U, _), values_US in zip(rows, torch.split(came, counts), strict=True):
            together_US[torch.from_numpy(rows_U - start)] = values_US
        yield together_US


def _movable(values: Tensor) -> Tensor:
    """The same bits of a dtype that every backend sends."""
    return values.contiguous().view(torch.uint8) if values.element_size() == 2 else values.contiguous()


def _header(tensors: Mapping[str, Tensor], shapes: Mapping[str, list[int]], names: list[str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": Run.weights_metadata()}
    at = 0
    for name in names:
        length = torch.Size(shapes[name]).numel() * tensors[name].element_size()
        entries[name] = {
            "dtype": DTYPES[tensors[name].dtype],
            "shape": shapes[name],
            "data_offsets": [at, at + length],
        }
        at += length
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(values: Tensor) -> bytes:
    flat = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().tobytes()
