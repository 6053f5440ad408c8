"""Rows of embedding tables on a CUDA device: which of them a batch reads, their values, the sums of their gradients.

Nothing here waits for the device: results that have no length known beforehand fill a capacity that is, and their
length stays a tensor. No sum depends on the order in which programs run, so equal input gives equal bits.

The kernels are Triton's. Without a device they run in its interpreter (environment variable TRITON_INTERPRET=1 before
triton is imported), which is how they are tested there.

Shape suffixes: B rows, C id columns, P = B·C positions, V table rows, U capacity for distinct rows, F fields of an
output, S table width, D width of one of the tables side by side, K chunks of positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from dmoe.kernels import row_triton_kernels as kernels

# Sorted positions of one chunk: a sum within it runs one after the other, and the chunks' sums are then added up.
CHUNK = 64

# Elements that one program works on at a time, a few for each of its threads.
TILE = 512
WARPS = 4
_POSITIONS_PER_PROGRAM = 1024
_JOINED = 16


@dataclass(frozen=True, slots=True)
class DistinctRows:
    """The distinct table rows of one batch.

    `rows_U`: int64, ascending, each once, then -1. `count`: int32 (1,), how many there are. `inverse_BC`: int32, where
    the row of each position stands in `rows_U`. `order_P`: the positions sorted by their row, equal rows in batch
    order. `segments_P`: int32, the place in `rows_U` of each of `order_P`. `starts_U1`: int32 (U + 1,), the first of
    `order_P` that belongs to each row, P for those that are not there.
    """

    rows_U: Tensor
    count: Tensor
    inverse_BC: Tensor
    order_P: Tensor
    segments_P: Tensor
    starts_U1: Tensor

    def counts_U(self) -> Tensor:
        """How often the batch holds each row; 0 for those that are not there."""
        return self.starts_U1[1:] - self.starts_U1[:-1]

    @torch.no_grad()
    def gather(self, values_US: Tensor, widths: Sequence[int], num_fields: int) -> list[Tensor]:
        """For each of the tables side by side in `values_US`, the rows of all positions: (B, num_fields, D).

        Fields beyond C are left as memory was.
        """
        num_rows, num_columns = self.inverse_BC.shape
        outputs = [values_US.new_empty(num_rows, num_fields, width) for width in widths]
        first = 0
        for output_BFD, width in zip(outputs, widths, strict=True):
            columns, group = tile(width)
            grid = (triton.cdiv(num_rows * num_columns, group),)
            if num_rows * num_columns:
                kernels.gather[grid](
                    values_US, self.inverse_BC, output_BFD, num_rows * num_columns, num_columns, num_fields * width,
                    width, values_US.shape[1], first, group, columns, **options(),
                )  # fmt: skip
            first += width
        return outputs

    @torch.no_grad()
    def sum_gradients(self, gradients: Sequence[Tensor | None], widths: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The gradient (U, S) of the distinct rows, from those (B, F, D) of the tables side by side.

        Spare rows get zeros. The fields beyond C of a gradient belong to others. Positions of one row are added in
        batch order within each chunk of `CHUNK` sorted positions, and the sums of the chunks after that.
        """
        num_columns = self.inverse_BC.shape[1]
        num_positions, room = self.inverse_BC.numel(), len(self.rows_U)
        width = sum(widths)
        summed_US = torch.zeros(room, width, dtype=dtype, device=self.rows_U.device)
        chunks = triton.cdiv(num_positions, CHUNK)
        first = 0
        for gradient_BFD, table_width in zip(gradients, widths, strict=True):
            if gradient_BFD is not None and num_positions:
                if gradient_BFD.stride(2) != 1:
                    gradient_BFD = gradient_BFD.contiguous()
                parts = [summed_US.new_empty(chunks, table_width) for _ in range(2)]
                columns, group = tile(table_width)
                kernels.sum_pieces[(triton.cdiv(room + chunks, group),)](
                    gradient_BFD, self.order_P, self.segments_P, self.starts_U1, summed_US, *parts,
                    num_positions, room, num_columns, gradient_BFD.stride(0), gradient_BFD.stride(1), table_width,
                    width, first, CHUNK, group, columns, **options(),
                )  # fmt: skip
                if chunks > 1:
                    kernels.join_pieces[(chunks - 1,)](
                        self.segments_P, self.starts_U1, summed_US, *parts, table_width, width, first, CHUNK,
                        _JOINED, columns, **options(),
                    )  # fmt: skip
            first += table_width
        return summed_US


@torch.no_grad()
def distinct_rows(ids_BC: Tensor, offsets_C: Tensor, num_table_rows: int, room: int) -> DistinctRows:
    """The distinct rows of `ids_BC` + `offsets_C`.

    Args:
        ids_BC: int32 or int64, each within its vocabulary.
        offsets_C: int64, the table's row of each column's id 0.
        room: for U rows; no batch of this size may hold more.
    """
    device = ids_BC.device
    ids_BC = ids_BC.contiguous()
    num_positions = ids_BC.numel()
    # Keys of 32 bits, where they do, are half as much to sort.
    keys_P = torch.empty(num_positions, dtype=torch.int32 if num_table_rows < 2**31 else torch.int64, device=device)
    grid = (triton.cdiv(num_positions, _POSITIONS_PER_PROGRAM),)
    rows_U = torch.full((room,), -1, dtype=torch.int64, device=device)
    starts_U1 = torch.full((room + 1,), num_positions, dtype=torch.int32, device=device)
    inverse_BC = torch.empty(ids_BC.shape, dtype=torch.int32, device=device)
    if num_positions == 0:
        nothing_P = torch.empty(0, dtype=torch.int32, device=device)
        count = torch.zeros(1, dtype=torch.int32, device=device)
        return DistinctRows(rows_U, count, inverse_BC, nothing_P.long(), nothing_P, starts_U1)
    kernels.keys[grid](ids_BC, offsets_C, keys_P, num_positions, ids_BC.shape[1], _POSITIONS_PER_PROGRAM, **options())
    sorted_P, order_P = torch.sort(keys_P, stable=True)
    segments_P = torch.zeros(num_positions, dtype=torch.int32, device=device)
    torch.cumsum(sorted_P[1:] != sorted_P[:-1], 0, dtype=torch.int32, out=segments_P[1:])
    kernels.places[grid](
        sorted_P, order_P, segments_P, rows_U, inverse_BC, starts_U1, num_positions, _POSITIONS_PER_PROGRAM,
        **options(),
    )  # fmt: skip
    return DistinctRows(rows_U, segments_P[-1:] + 1, inverse_BC, order_P, segments_P, starts_U1)


@torch.no_grad()
def take_rows(table_VS: Tensor, rows_U: Tensor) -> Tensor:
    """The rows (U, S) of a table; zeros where `rows_U` is -1."""
    values_US = table_VS.new_empty(len(rows_U), table_VS.shape[1])
    columns, group = tile(table_VS.shape[1])
    grid = (triton.cdiv(len(rows_U), group),)
    if len(rows_U):
        kernels.take[grid](table_VS, rows_U, values_US, len(rows_U), table_VS.shape[1], group, columns, **options())
    return values_US


@torch.no_grad()
def put_rows(table_VS: Tensor, rows_U: Tensor, values_US: Tensor) -> None:
    """Writes rows, each at most once in `rows_U`, to a table; -1 is skipped."""
    columns, group = tile(table_VS.shape[1])
    grid = (triton.cdiv(len(rows_U), group),)
    if len(rows_U):
        values_US = values_US.contiguous()
        kernels.put[grid](table_VS, rows_U, values_US, len(rows_U), table_VS.shape[1], group, columns, **options())


def options() -> dict[str, Any]:
    """How kernels are compiled: no product is contracted with a sum, so variants of a kernel round alike."""
    return {"num_warps": WARPS, "enable_fp_fusion": False}


def tile(width: int, elements: int | None = None) -> tuple[int, int]:
    """A power of two that holds the columns, and how many rows of them a program of so many elements works on."""
    columns = triton.next_power_of_2(width)
    return columns, max(1, (TILE if elements is None else elements) // columns)
