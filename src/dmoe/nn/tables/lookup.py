"""From ids to rows of a table, and from gradients of positions back to sums for each row.

Three forms of one look-up: compiled loops on the CPU, kernels on a CUDA device with Triton, and torch's own operations
elsewhere and under export.

Shape suffixes: B rows of a batch, C id columns, N numeric fields, F = C + N, T tables side by side, D width of one,
S = summed width of all, R rows to look up in, U distinct table rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dmoe.errors import DataError
from dmoe.kernels import row_access
from dmoe.kernels.row_parallel import FEW_ROWS, map_chunks, numpy_dtype
from dmoe.nn.tables import kernels

if TYPE_CHECKING:
    from dmoe.kernels.row_triton import DistinctRows

Array = npt.NDArray[Any]

_ROWS_PER_CHUNK = 1024


class BatchRows:
    """Which rows of a table the ids of a batch read, each once, and where each position finds its own.

    Args:
        ids_BC: ids, column by column of a vocabulary.
        offsets_C: the table's row of each column's id 0, on the same device.
        num_rows: rows of the table.
        room: the most distinct rows that a batch of this size can hold.
        columns_apart: whether no row belongs to two columns.
    """

    def __init__(self, ids_BC: Tensor, offsets_C: Tensor, num_rows: int, room: int, columns_apart: bool) -> None:
        self.ids_BC, self.offsets_C, self.room = ids_BC, offsets_C, room
        self.num_rows, self.columns_apart = num_rows, columns_apart

    @property
    def rows_U(self) -> Tensor:
        """The distinct rows, int64, ascending; where kernels find them, -1 in the places left of `room`."""
        return self._distinct[0]

    @property
    def inverse_BC(self) -> Tensor:
        """Where the row of each position stands in `rows_U`."""
        return self._distinct[1]

    def placed_on(self, device: torch.device) -> "BatchRows":
        """The same with the places of positions on `device`; the rows stay where their table is."""
        nowhere_C = torch.zeros(len(self.offsets_C), dtype=torch.int64, device=device)  # rows are found already
        moved = BatchRows(self.ids_BC, nowhere_C, self.num_rows, self.room, self.columns_apart)
        moved.on_device = None  # the values that come there have no spare places
        moved._distinct = self.rows_U, copied(self.inverse_BC, device)
        return moved

    def counts_U(self) -> Tensor:
        """How many positions read each row."""
        if self.on_device is not None:
            return self.on_device.counts_U()
        return torch.bincount(self.inverse_BC.reshape(-1), minlength=len(self.rows_U))

    @cached_property
    def on_device(self) -> "DistinctRows | None":
        """The rows as kernels find and use them, where they serve."""
        if not row_access.kernels_serve(self.ids_BC):
            return None
        from dmoe.kernels import row_triton  # triton is there on Linux alone

        return row_triton.distinct_rows(self.ids_BC, self.offsets_C, self.num_rows, self.room)

    @cached_property
    def _distinct(self) -> tuple[Tensor, Tensor]:
        if self.on_device is not None:
            return self.on_device.rows_U, self.on_device.inverse_BC
        if self.ids_BC.device.type != "cpu":
            rows_U, inverse_BC = torch.unique(self.ids_BC + self.offsets_C, sorted=True, return_inverse=True)
            return rows_U, inverse_BC
        ids, offsets = self.ids_BC.numpy(), self.offsets_C.numpy()
        words = (self.num_rows + 63) // 64
        bits, ranks = np.zeros(words, np.uint64), np.empty(words, np.int64)
        rows = kernels.distinct_rows(ids, offsets, bits, ranks)
        inverse = np.empty(ids.shape, np.int32)

        def fill(start: int, stop: int) -> None:
            kernels.positions_of(start, stop, ids, offsets, bits, ranks, inverse)

        map_chunks(len(ids), _ROWS_PER_CHUNK, fill)
        return torch.from_numpy(rows), torch.from_numpy(inverse)


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a tensor of the host on `device`, which from pinned memory it takes by itself: nobody waits for it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, copy=True)


class RowStore(Protocol):
    """Where the rows of a table are while it is trained."""

    def read(self, rows_U: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class TableRows:
    """What a batch reads of a table: the values (U, S) of its distinct rows, and where each position finds its own."""

    batch: BatchRows
    values_US: Tensor

    @classmethod
    def read(cls, batch: BatchRows, store: RowStore) -> "TableRows":
        """Values of their own, to which a backward pass leaves `gradient_US`."""
        return cls(batch, store.read(batch.rows_U).requires_grad_())

    @property
    def rows_U(self) -> Tensor:
        return self.batch.rows_U

    @property
    def gradient_US(self) -> Tensor:
        """What backward passes left; zeros where no loss read the table."""
        found_US = self.values_US.grad
        return torch.zeros_like(self.values_US) if found_US is None else found_US


class Source(NamedTuple):
    """Position (b, c) reads row `index_BC[b, c] + offsets_C[c]` of `rows_RS`.

    `on_device`: the rows of the batch, of which `rows_RS` are the values, where kernels look them up.
    """

    rows_RS: Tensor
    index_BC: Tensor
    offsets_C: Tensor
    columns_apart: bool
    on_device: "DistinctRows | None" = None

    @classmethod
    def of(cls, rows: TableRows) -> "Source":
        """The few rows that were read serve as the table."""
        batch = rows.batch
        none_C = torch.zeros_like(batch.offsets_C)
        return cls(rows.values_US, batch.inverse_BC, none_C, batch.columns_apart, batch.on_device)

    def arrays(self) -> tuple[Array, Array, Array]:
        """On the CPU: index, offsets and rows as the compiled loops take them."""
        return self.index_BC.numpy(), self.offsets_C.numpy(), self.rows_RS.detach().numpy()


def check_ids(ids_BC: Tensor, sizes_C: Array, names: Sequence[str] | None = None) -> None:
    """That `ids_BC` are integers within the vocabularies of `sizes_C` rows; off the CPU it waits for the device.

    Raises: ValueError for a wrong shape or dtype, DataError naming row and field of an id that is out of range.
    """
    if ids_BC.ndim != 2 or ids_BC.shape[1] != len(sizes_C):
        raise ValueError(f"ids must be (rows, {len(sizes_C)}), got {tuple(ids_BC.shape)}")
    if ids_BC.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"ids must be int32 or int64, got {ids_BC.dtype}")
    if ids_BC.device.type != "cpu":
        outside_BC = (ids_BC < 0) | (ids_BC >= torch.from_numpy(sizes_C).to(ids_BC.device))
        if not bool(outside_BC.any()):
            return
        ids_BC = ids_BC.cpu()
    position = _first_bad_id(ids_BC.numpy(), sizes_C)
    if position >= 0:
        row, column = divmod(position, ids_BC.shape[1])
        raise bad_id(row, column, int(ids_BC[row, column]), int(sizes_C[column]), names)


def _first_bad_id(ids_BC: Array, sizes_C: Array) -> int:
    if len(ids_BC) > FEW_ROWS:
        return kernels.first_bad_id(ids_BC, sizes_C)
    outside_P = ((ids_BC < 0) | (ids_BC >= sizes_C)).reshape(-1)
    return int(outside_P.argmax()) if outside_P.any() else -1


def bad_id(row: int, column: int, found: int, size: int, names: Sequence[str] | None) -> DataError:
    """What to say of the first id of a batch that is outside its vocabulary of `size`."""
    name = f" '{names[column]}'" if names else ""
    return DataError(
        f"row {row} of the batch: categorical field {column}{name} has id {found}, but its vocabulary has ids 0 to "
        f"{size - 1}; encode the rows with the vocabularies that the model was made with"
    )


def look_up(source: Source, numeric_weight_NS: Tensor, numeric_BN: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """On the CPU, and where kernels serve: T contiguous tensors (B, C + N, D_t), categorical fields first."""
    found: tuple[Tensor, ...] = _Lookup.apply(  # type: ignore[no-untyped-call]
        source.rows_RS, numeric_weight_NS, numeric_BN, source, tuple(widths)
    )
    return found


def look_up_in_torch(
    source: Source, numeric_weight_NS: Tensor, numeric_BN: Tensor | None, widths: Sequence[int]
) -> tuple[Tensor, ...]:
    """The same in torch's operations, on any device and under export."""
    parts = []
    if source.index_BC.shape[1]:
        rows_BCS = nn.functional.embedding(source.index_BC + source.offsets_C, source.rows_RS)
        parts.append(rows_BCS.to(numeric_weight_NS.dtype))
    if numeric_BN is not None and len(numeric_weight_NS):
        parts.append(numeric_BN.unsqueeze(-1) * numeric_weight_NS)
    return torch.split(torch.cat(parts, dim=1), list(widths), dim=-1)


class _Lookup(torch.autograd.Function):
    """One gather forward; backward, one sum of duplicates for all tables."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_RS: Tensor,
        numeric_weight_NS: Tensor,
        numeric_BN: Tensor,
        source: Source,
        widths: tuple[int, ...],
    ) -> tuple[Tensor, ...]:
        # Not its rows: what autograd knows them by would then keep itself alive.
        ctx.index, ctx.apart, ctx.shape, ctx.widths = source.index_BC, source.columns_apart, rows_RS.shape, widths
        ctx.on_device = source.on_device
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(numeric_weight_NS, numeric_BN)
        outputs = _gather(source, len(numeric_weight_NS), widths, numeric_weight_NS.dtype)
        num_categorical = source.index_BC.shape[1]
        if len(numeric_weight_NS):
            for first, output_BFD in zip(accumulate(widths, initial=0), outputs, strict=False):
                columns = slice(first, first + output_BFD.shape[2])
                output_BFD[:, num_categorical:] = numeric_BN.unsqueeze(-1) * numeric_weight_NS[:, columns]
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        numeric_weight_NS, numeric_BN = ctx.saved_tensors
        need_rows, need_numeric_weight, need_numeric, *_ = ctx.needs_input_grad
        rows_gradient = numeric_weight_gradient = numeric_gradient = None
        if need_rows:
            like = numeric_weight_NS
            if ctx.on_device is None:
                rows_gradient = sum_of_duplicates(ctx.index, gradients, ctx.widths, ctx.shape, ctx.apart, like)
            else:
                rows_gradient = ctx.on_device.sum_gradients(gradients, ctx.widths, like.dtype)
        first_numeric = ctx.index.shape[1]
        if need_numeric_weight:
            numeric_weight_gradient = torch.zeros_like(numeric_weight_NS)
        if need_numeric:
            numeric_gradient = torch.zeros_like(numeric_BN)
        for first, gradient_BFD in zip(accumulate(ctx.widths, initial=0), gradients, strict=False):
            if gradient_BFD is None or not len(numeric_weight_NS):
                continue
            columns = slice(first, first + gradient_BFD.shape[2])
            numeric_part_BND = gradient_BFD[:, first_numeric:]
            if numeric_weight_gradient is not None:
                numeric_weight_gradient[:, columns] = torch.einsum("bnd,bn->nd", numeric_part_BND, numeric_BN)
            if numeric_gradient is not None:
                numeric_gradient += (numeric_part_BND * numeric_weight_NS[:, columns]).sum(-1)
        return rows_gradient, numeric_weight_gradient, numeric_gradient, None, None


def _gather(source: Source, num_numeric: int, widths: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    num_rows, num_categorical = source.index_BC.shape
    num_fields = num_categorical + num_numeric
    if source.on_device is not None:
        return tuple(source.on_device.gather(source.rows_RS.to(dtype), widths, num_fields))
    index, offsets, rows = source.arrays()
    firsts_T, widths_T = np.array([0, *accumulate(widths)]), np.array(widths)
    num_positions = num_rows * num_fields
    if num_rows <= FEW_ROWS:
        return _gather_few(index + offsets, rows, widths, num_fields, numpy_dtype(dtype))
    flat = np.empty(num_positions * int(firsts_T[-1]), numpy_dtype(dtype))

    def copy(start: int, stop: int) -> None:
        kernels.gather(start, stop, index, offsets, rows, firsts_T, widths_T, num_fields, flat)

    map_chunks(num_rows, _ROWS_PER_CHUNK, copy)
    # Separate tensors over one buffer, not views of one tensor: autograd then allows in-place use of each.
    return tuple(
        torch.from_numpy(flat[num_positions * first : num_positions * (first + width)].reshape(num_rows, -1, width))
        if num_positions
        else torch.empty(num_rows, num_fields, width, dtype=dtype)
        for first, width in zip(firsts_T.tolist(), widths, strict=False)
    )


def _gather_few(
    rows_BC: Array, rows: Array, widths: Sequence[int], num_fields: int, dtype: np.dtype[Any]
) -> tuple[Tensor, ...]:
    num_rows, num_categorical = rows_BC.shape
    read_BCS, outputs = rows[rows_BC], []
    for first, width in zip(accumulate(widths, initial=0), widths, strict=False):
        output_BFD = np.empty((num_rows, num_fields, width), dtype)
        output_BFD[:, :num_categorical] = read_BCS[:, :, first : first + width]
        outputs.append(torch.from_numpy(output_BFD))
    return tuple(outputs)


def sum_of_duplicates(
    index_BC: Tensor,
    gradients: Sequence[Tensor | None],
    widths: Sequence[int],
    shape: torch.Size,
    columns_apart: bool,
    like: Tensor,
    places: Sequence[Array] | None = None,
) -> Tensor:
    """On the CPU: the gradient of the rows that `index_BC` names, from those of T tables, in batch order.

    `places`: for each table where the id columns stand in its gradient; by default in their order.
    """
    summed = np.zeros(shape, numpy_dtype(like.dtype))
    num_categorical = index_BC.shape[1]
    index, in_order = index_BC.numpy(), np.arange(num_categorical)
    arrays = [None if gradient is None else gradient.contiguous().numpy() for gradient in gradients]

    def add(first_field: int, last_field: int) -> None:
        for table, (first_column, array) in enumerate(zip(accumulate(widths, initial=0), arrays, strict=False)):
            if array is not None:
                of = in_order if places is None else places[table]
                kernels.scatter_add(first_field, last_field, index, array, of, first_column, summed)

    # Where a table row belongs to one column, how the columns are divided changes no sum. Few wide ranges:
    # the gradient is read in the order in which it lies in memory.
    threads = torch.get_num_threads() if columns_apart else 1
    map_chunks(num_categorical, max(1, -(-num_categorical // threads)), add)
    return torch.from_numpy(summed)
