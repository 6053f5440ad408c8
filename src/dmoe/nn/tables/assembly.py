"""The embeddings that a table gives, put together from those of its banks.

Shape suffixes: B rows, C id columns, F fields of a part or of a table, D width of a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmoe.kernels.row_parallel import FEW_ROWS, map_chunks
from dmoe.nn.tables import kernels
from dmoe.nn.tables.lookup import Source, sum_of_duplicates

Places = npt.NDArray[np.int64]

_ROWS_PER_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Order:
    """How the fields of a table are put together from those of its banks.

    `runs`: for each bank, the lengths of its runs of fields that stay together; `places`: the (bank, run) that follow
    each other. Each field is copied once, and its gradient too: indexing would gather and then scatter.
    """

    runs: tuple[tuple[int, ...], ...]
    places: tuple[tuple[int, int], ...]

    @staticmethod
    def of(held: Sequence[Sequence[int]], wanted: Sequence[int]) -> "Order":
        """`held` are the fields of each bank, those `wanted` among them."""
        where = {field: (bank, place) for bank, fields in enumerate(held) for place, field in enumerate(fields)}
        follows = {
            where[second]
            for first, second in pairwise(wanted)
            if where[second] == (where[first][0], where[first][1] + 1)
        }
        runs: list[tuple[int, ...]] = []
        run_of: dict[tuple[int, int], int] = {}
        for bank, fields in enumerate(held):
            lengths: list[int] = []
            for place in range(len(fields)):
                if lengths and (bank, place) in follows:
                    lengths[-1] += 1
                else:
                    run_of[bank, place] = len(lengths)
                    lengths.append(1)
            runs.append(tuple(lengths))
        starts = [where[field] for field in wanted if where[field] not in follows]
        return Order(tuple(runs), tuple((bank, run_of[bank, place]) for bank, place in starts))

    def __call__(self, parts: Sequence[Tensor]) -> Tensor:
        """(B, F, D) of each bank to that of the table."""
        if len(parts) == 1 and self.places == ((0, 0),) and len(self.runs[0]) == 1:
            return parts[0]
        split = [torch.split(part_BFD, list(runs), dim=1) for part_BFD, runs in zip(parts, self.runs, strict=True)]
        return torch.cat([split[bank][run] for bank, run in self.places], dim=1)


class Lookup(NamedTuple):
    """Rows of a `MultiTableEmbedding` without numeric fields."""

    source: Source
    widths: Sequence[int]  # of its own tables
    of: Sequence[int]  # the table that each of its own tables is a part of
    places: Sequence[Places]  # for each table, where the id columns stand in it


class Part(NamedTuple):
    """Embeddings (B, F, D) that are there already, and where they stand in a table."""

    embeddings: Tensor
    table: int
    places: Places


def assemble(
    shapes: Sequence[tuple[int, int]], lookups: Sequence[Lookup], parts: Sequence[Part], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """On the CPU: a tensor (B, F, D) of each table, `shapes` its (F, D), from at least one lookup and any parts.

    Every embedding is written once, and its gradient read once, where looking up each bank by itself and `Order`
    write and read all of them twice.
    """
    found: tuple[Tensor, ...] = _Assembly.apply(  # type: ignore[no-untyped-call]
        shapes,
        lookups,
        parts,
        dtype,
        *(one.source.rows_RS for one in lookups),
        *(one.embeddings.to(dtype) for one in parts),
    )
    return found


class _Assembly(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        shapes: Sequence[tuple[int, int]],
        lookups: Sequence[Lookup],
        parts: Sequence[Part],
        dtype: torch.dtype,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        # Not the tensors: what autograd knows them by would then keep itself alive.
        ctx.lookups = [
            (one.source.index_BC, one.source.columns_apart, one.source.rows_RS.shape, one.widths, one.of, one.places)
            for one in lookups
        ]
        ctx.parts = [(one.table, one.places) for one in parts]
        ctx.set_materialize_grads(False)
        rows = len(lookups[0].source.index_BC)
        outputs = tuple(torch.empty(rows, fields, width, dtype=dtype) for fields, width in shapes)
        arrays = [output_BFD.numpy() for output_BFD in outputs]
        for one in lookups:
            read = one.source.arrays()

            def look_up(start: int, stop: int, one: Lookup = one, read: tuple[Any, Any, Any] = read) -> None:
                for first_column, table in zip(accumulate(one.widths, initial=0), one.of, strict=False):
                    gather = kernels.gather_to if rows > FEW_ROWS else _gather_few
                    gather(start, stop, *read, first_column, one.places[table], arrays[table])

            map_chunks(rows, _ROWS_PER_CHUNK, look_up)
        for (table, places), part_BFD in zip(ctx.parts, tensors[len(lookups) :], strict=True):
            moved = part_BFD.numpy(), places, arrays[table]

            def put(start: int, stop: int, moved: Any = moved) -> None:
                (kernels.put_fields if rows > FEW_ROWS else _put_few)(start, stop, *moved)

            map_chunks(rows, _ROWS_PER_CHUNK, put)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[4:]
        whole = [None if gradient is None else gradient.contiguous() for gradient in gradients]
        found: list[Tensor | None] = []
        for (index, apart, shape, widths, of, places), needs in zip(ctx.lookups, needed, strict=False):
            own = [whole[table] for table in of]
            like = next((gradient for gradient in own if gradient is not None), None)
            if not needs or like is None:
                found.append(None)
                continue
            found.append(sum_of_duplicates(index, own, widths, shape, apart, like, [places[table] for table in of]))
        for (table, places), needs in zip(ctx.parts, needed[len(ctx.lookups) :], strict=True):
            gradient_BFD = whole[table]
            if not needs or gradient_BFD is None:
                found.append(None)
                continue
            part_BFD = gradient_BFD.new_empty(len(gradient_BFD), len(places), gradient_BFD.shape[2])
            moved = gradient_BFD.numpy(), places, part_BFD.numpy()

            def take(start: int, stop: int, moved: Any = moved) -> None:
                kernels.take_fields(start, stop, *moved)

            map_chunks(len(gradient_BFD), _ROWS_PER_CHUNK, take)
            found.append(part_BFD)
        return None, None, None, None, *found


def _gather_few(
    start: int,
    stop: int,
    ids_BC: Any,
    offsets_C: Any,
    weight_VS: Any,
    first_column: int,
    places_C: Places,
    out_BFD: Any,
) -> None:
    """As `kernels.gather_to`."""
    columns = np.flatnonzero(places_C >= 0)
    rows_BC = ids_BC[start:stop, columns] + offsets_C[columns]
    out_BFD[start:stop, places_C[columns]] = weight_VS[rows_BC, first_column : first_column + out_BFD.shape[2]]


def _put_few(start: int, stop: int, part_BFD: Any, places_F: Places, out_BFD: Any) -> None:
    """As `kernels.put_fields`."""
    fields = np.flatnonzero(places_F >= 0)
    out_BFD[start:stop, places_F[fields]] = part_BFD[start:stop, fields]
