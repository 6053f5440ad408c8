"""Embedding tables of one vocabulary, side by side in one wide parameter (eqs. 1 and 6 of arXiv 2505.17925).

Every expert may read its own table; all tables are indexed by the same ids, so one lookup serves all of them
and one sum of duplicates serves the backward pass.

Shape suffixes: B rows, C categorical fields, N numeric fields, F = C + N, T tables, D width of one table,
S = summed width of all tables, V = summed vocabulary sizes, U distinct table rows of a batch.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dmoe.errors import DataError
from dmoe.nn import embedding_kernels
from dmoe.row_parallel import HALF_DTYPES, empty_table, map_chunks, numpy_dtype

Array = npt.NDArray[Any]

INITIAL_STD = 1e-4
_ROWS_PER_CHUNK = 1024


class RowOptimiser(Protocol):
    """What the embedding asks of an optimiser that may hold back updates of rows that are not read."""

    sparse_gradient: bool

    @property
    def counts_reads(self) -> bool: ...

    def count_reads(self, rows_U: Tensor, counts_U: Tensor) -> None: ...

    def catch_up(self, rows_U: Tensor) -> None: ...

    def flush(self) -> None: ...


class MultiTableEmbedding(nn.Module):
    """Looks up T embeddings of every field in one pass.

    Args:
        vocabulary_sizes: rows of each categorical field; ids of a field run from 0 to its size - 1.
        num_numeric: numeric fields; each has one learned vector a table, and its embedding is value × vector.
        widths: embedding width of each of the T tables.
        sparse: whether `weight.grad` is a sparse COO tensor (rows ascending, each once) instead of a dense one.
        storage: dtype of `weight`, by default torch's default dtype; bfloat16 and float16 halve it. Results and
            `weight.grad` have the default dtype whatever it is.
        field_names: names of the categorical fields, for error messages.
        vocabulary_of_column: for each of the C id columns, the vocabulary that it reads; by default column c reads
            vocabulary c. Columns may share one.

    Shape: ``ids_BC`` (B, C) int32 or int64, ``numeric_BN`` (B, N); the result is a tuple of T contiguous
    tensors (B, C + N, D_t), categorical fields first.

    Duplicate ids are summed in batch order whatever the number of threads: equal input gives equal bits.

    Raises: ValueError if a size, width or shape is wrong; DataError naming the field if an id is out of range
    (checked on the CPU).
    """

    offsets_C: Tensor

    def __init__(
        self,
        vocabulary_sizes: Sequence[int],
        num_numeric: int,
        widths: Sequence[int],
        *,
        sparse: bool = False,
        storage: torch.dtype | None = None,
        field_names: Sequence[str] | None = None,
        vocabulary_of_column: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be at least one number >= 1, got {list(widths)}")
        if any(size < 1 for size in vocabulary_sizes):
            raise ValueError(f"vocabulary_sizes must all be >= 1, got {list(vocabulary_sizes)}")
        if num_numeric < 0 or not (vocabulary_sizes or num_numeric):
            raise ValueError(f"need at least one field, got num_numeric={num_numeric} and no vocabulary")
        vocabulary_of_column = range(len(vocabulary_sizes)) if vocabulary_of_column is None else vocabulary_of_column
        if not set(vocabulary_of_column) <= set(range(len(vocabulary_sizes))):
            raise ValueError(f"vocabulary_of_column must name vocabularies, got {list(vocabulary_of_column)}")
        if field_names is not None and len(field_names) != len(vocabulary_of_column):
            raise ValueError(f"{len(field_names)} field names for {len(vocabulary_of_column)} id columns")
        self.vocabulary_sizes = tuple(vocabulary_sizes)
        self.num_numeric = num_numeric
        self.widths = tuple(widths)
        self.sparse = sparse
        self.field_names = tuple(field_names) if field_names is not None else None
        self._first_columns = (0, *accumulate(widths))
        self._offsets = np.array((0, *accumulate(vocabulary_sizes)), dtype=np.int64)
        columns_C = np.array(vocabulary_of_column, dtype=np.int64)
        self.column_offsets: npt.NDArray[np.int64] = self._offsets[:-1][columns_C]
        # The same for other devices, to which it moves with the module.
        self.register_buffer("offsets_C", torch.from_numpy(self.column_offsets), persistent=False)
        self._column_sizes = np.diff(self._offsets)[columns_C]
        self._columns_apart = len(set(vocabulary_of_column)) == len(vocabulary_of_column)
        self._optimiser: RowOptimiser | None = None
        dtype = storage or torch.get_default_dtype()
        self.weight = nn.Parameter(empty_table(int(self._offsets[-1]), sum(widths), dtype))
        if dtype in HALF_DTYPES:
            # Autograd would otherwise round the gradient to the storage's dtype.
            self.weight.grad_dtype = torch.get_default_dtype()
        self.numeric_weight = nn.Parameter(torch.empty(num_numeric, sum(widths)))
        self.register_state_dict_pre_hook(_flush_before_saving)  # type: ignore[no-untyped-call]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Categorical rows N(0, 1e-4²); numeric vectors Xavier normal of a Linear(1, D)."""
        nn.init.normal_(self.weight, std=INITIAL_STD)
        with torch.no_grad():
            for table, width in enumerate(self.widths):
                self.numeric_weight[:, self.table_slice(table)].normal_(std=math.sqrt(2 / (1 + width)))

    def table_slice(self, table: int) -> slice:
        """The columns of table `table` in `weight` and `numeric_weight`."""
        return slice(self._first_columns[table], self._first_columns[table + 1])

    def table(self, table: int) -> Tensor:
        """The (V, D) weights of one table, detached, with no update held back."""
        if self._optimiser is not None:
            self._optimiser.flush()
        return self.weight.detach()[:, self.table_slice(table)]

    def field_rows(self, field: int) -> slice:
        """The rows of vocabulary `field` in `weight`."""
        return slice(int(self._offsets[field]), int(self._offsets[field + 1]))

    def attach(self, optimiser: RowOptimiser) -> None:
        """Lets `optimiser` bring rows up to date before they are read, and take the gradient form it wants.

        From then on a forward pass in training mode first catches up the rows it reads; in evaluation mode,
        and before `state_dict`, all rows.
        """
        self._optimiser = optimiser
        self.sparse = optimiser.sparse_gradient

    def detach(self) -> None:
        """Ends what `attach` began; no update may be held back any more."""
        self._optimiser = None

    @contextmanager
    def updates_held_back(self) -> Iterator[None]:
        """Inside, `state_dict` gives the rows as they are, for a state that holds the optimiser's as well."""
        optimiser, self._optimiser = self._optimiser, None
        try:
            yield
        finally:
            self._optimiser = optimiser

    def distinct_rows(self, ids_BC: Tensor) -> Tensor:
        """The rows of `weight` that `ids_BC` reads, int64 (U,), ascending, each once."""
        return LookupBatch(self, self._checked(ids_BC)).rows_U

    def forward(self, ids_BC: Tensor, numeric_BN: Tensor | None = None) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return self._traceable(ids_BC, numeric_BN)
        batch = self.prepared(ids_BC)
        numeric_BN = self._checked_numeric(numeric_BN, len(ids_BC))
        return cast(
            tuple[Tensor, ...],
            _Lookup.apply(self.weight, self.numeric_weight, numeric_BN, batch),  # type: ignore[no-untyped-call]
        )

    def prepared(self, ids_BC: Tensor) -> "LookupBatch":
        """A batch whose rows are up to date, for `forward` or `dmoe.nn.assembly` to look up."""
        batch = LookupBatch(self, self._checked(ids_BC))
        if self._optimiser is not None:
            if self.training and torch.is_grad_enabled():
                self._optimiser.catch_up(batch.rows_U)
                if self._optimiser.counts_reads:
                    counts_U = torch.bincount(batch.inverse_BC.reshape(-1), minlength=len(batch.rows_U))
                    self._optimiser.count_reads(batch.rows_U, counts_U)
            else:
                self._optimiser.flush()
        return batch

    def extra_repr(self) -> str:
        rows, width = self.weight.shape
        return f"rows={rows}, columns={self.num_columns}+{self.num_numeric}, widths={self.widths}, {width=}"

    @property
    def num_columns(self) -> int:
        """Id columns C."""
        return len(self.column_offsets)

    def _traceable(self, ids_BC: Tensor, numeric_BN: Tensor | None) -> tuple[Tensor, ...]:
        """The same lookup in plain torch operations, for export and compilation."""
        parts = []
        if self.num_columns:
            rows_BCS = nn.functional.embedding(ids_BC + self.offsets_C, self.weight)
            parts.append(rows_BCS.to(self.numeric_weight.dtype))
        if self.num_numeric:
            if numeric_BN is None:
                raise ValueError(f"the model has {self.num_numeric} numeric fields; pass numeric")
            parts.append(numeric_BN.unsqueeze(-1) * self.numeric_weight)
        return torch.split(torch.cat(parts, dim=1), list(self.widths), dim=-1)

    def _checked(self, ids_BC: Tensor) -> Tensor:
        if ids_BC.ndim != 2 or ids_BC.shape[1] != self.num_columns:
            raise ValueError(f"ids must be (rows, {self.num_columns}), got {tuple(ids_BC.shape)}")
        if ids_BC.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"ids must be int32 or int64, got {ids_BC.dtype}")
        ids_BC = ids_BC.contiguous()
        if ids_BC.device.type == "cpu":
            sizes_C = self._column_sizes
            position = embedding_kernels.first_bad_id(ids_BC.numpy(), sizes_C)
            if position >= 0:
                row, field = divmod(position, ids_BC.shape[1])
                name = f" '{self.field_names[field]}'" if self.field_names else ""
                raise DataError(
                    f"row {row} of the batch: categorical field {field}{name} has id {int(ids_BC[row, field])}, "
                    f"but its vocabulary has ids 0 to {sizes_C[field] - 1}; "
                    "encode the rows with the vocabularies that the model was made with"
                )
        return ids_BC

    def _checked_numeric(self, numeric_BN: Tensor | None, num_rows: int) -> Tensor:
        if numeric_BN is None:
            if self.num_numeric:
                raise ValueError(f"the model has {self.num_numeric} numeric fields; pass numeric")
            return self.numeric_weight.new_empty(num_rows, 0)
        if tuple(numeric_BN.shape) != (num_rows, self.num_numeric):
            raise ValueError(f"numeric must be ({num_rows}, {self.num_numeric}), got {tuple(numeric_BN.shape)}")
        return numeric_BN.to(self.numeric_weight.dtype)


def _flush_before_saving(module: nn.Module, _prefix: str, _keep_vars: bool) -> None:
    if isinstance(module, MultiTableEmbedding) and module._optimiser is not None:
        module._optimiser.flush()


class LookupBatch:
    """The ids of one batch and, once asked for, its distinct rows; shared by forward and backward."""

    def __init__(self, embedding: MultiTableEmbedding, ids_BC: Tensor) -> None:
        self.ids_BC = ids_BC
        self.offsets_C = embedding.column_offsets
        self._device_offsets_C = embedding.offsets_C
        self.num_table_rows = len(embedding.weight)
        self.columns_apart = embedding._columns_apart
        self.widths = embedding.widths
        self.first_columns = embedding._first_columns
        self.sparse = embedding.sparse
        self.num_fields = ids_BC.shape[1] + embedding.num_numeric
        self._distinct: tuple[Tensor, Tensor] | None = None

    @property
    def rows_U(self) -> Tensor:
        return self._find_distinct()[0]

    @property
    def inverse_BC(self) -> Tensor:
        """Where the row of each position stands in `rows_U`."""
        return self._find_distinct()[1]

    def index_BC(self) -> Tensor:
        return self.ids_BC + self._device_offsets_C

    def rows_to_read(self, weight_VS: Tensor, dtype: torch.dtype) -> tuple[Array, Array, Array]:
        """On the CPU: ids, their offsets and the table that they point into, of `dtype`."""
        weight_VS = weight_VS.detach()
        if weight_VS.dtype not in HALF_DTYPES:
            return self.ids_BC.numpy(), self.offsets_C, weight_VS.numpy()
        # Each distinct row is widened once; the few that a batch has then serve as its table.
        return self.inverse_BC.numpy(), np.zeros_like(self.offsets_C), weight_VS[self.rows_U].to(dtype).numpy()

    def _find_distinct(self) -> tuple[Tensor, Tensor]:
        if self._distinct is not None:
            return self._distinct
        if self.ids_BC.device.type != "cpu":
            rows_U, inverse_BC = torch.unique(self.index_BC(), sorted=True, return_inverse=True)
            self._distinct = rows_U, inverse_BC
            return self._distinct
        ids, offsets = self.ids_BC.numpy(), self.offsets_C
        words = (self.num_table_rows + 63) // 64
        bits, ranks = np.zeros(words, np.uint64), np.empty(words, np.int64)
        rows = embedding_kernels.distinct_rows(ids, offsets, bits, ranks)
        inverse = np.empty(ids.shape, np.int32)

        def fill(start: int, stop: int) -> None:
            embedding_kernels.positions_of(start, stop, ids, offsets, bits, ranks, inverse)

        map_chunks(len(ids), _ROWS_PER_CHUNK, fill)
        self._distinct = torch.from_numpy(rows), torch.from_numpy(inverse)
        return self._distinct


class _Lookup(torch.autograd.Function):
    """One gather forward; backward, one sum of duplicates for all tables."""

    @staticmethod
    def forward(
        ctx: Any, weight_VS: Tensor, numeric_weight_NS: Tensor, numeric_BN: Tensor, batch: LookupBatch
    ) -> tuple[Tensor, ...]:
        ctx.batch = batch
        ctx.shape = weight_VS.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(numeric_weight_NS, numeric_BN)
        outputs = _gather(weight_VS, batch, numeric_weight_NS.dtype)
        num_categorical = batch.ids_BC.shape[1]
        if num_categorical < batch.num_fields:
            for table, output_BFD in enumerate(outputs):
                columns = slice(batch.first_columns[table], batch.first_columns[table + 1])
                output_BFD[:, num_categorical:] = numeric_BN.unsqueeze(-1) * numeric_weight_NS[:, columns]
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        batch: LookupBatch = ctx.batch
        numeric_weight_NS, numeric_BN = ctx.saved_tensors
        need_weight, need_numeric_weight, need_numeric, _ = ctx.needs_input_grad
        weight_gradient = numeric_weight_gradient = numeric_gradient = None
        if need_weight:
            weight_gradient = weight_gradient_of(batch, gradients, ctx.shape, numeric_weight_NS)
        first = batch.ids_BC.shape[1]
        if need_numeric_weight:
            numeric_weight_gradient = torch.zeros_like(numeric_weight_NS)
        if need_numeric:
            numeric_gradient = torch.zeros_like(numeric_BN)
        for table, gradient_BFD in enumerate(gradients):
            if gradient_BFD is None or first == batch.num_fields:
                continue
            columns = slice(batch.first_columns[table], batch.first_columns[table + 1])
            numeric_part_BND = gradient_BFD[:, first:]
            if numeric_weight_gradient is not None:
                numeric_weight_gradient[:, columns] = torch.einsum("bnd,bn->nd", numeric_part_BND, numeric_BN)
            if numeric_gradient is not None:
                numeric_gradient += (numeric_part_BND * numeric_weight_NS[:, columns]).sum(-1)
        return weight_gradient, numeric_weight_gradient, numeric_gradient, None


def _gather(weight_VS: Tensor, batch: LookupBatch, dtype: torch.dtype) -> tuple[Tensor, ...]:
    num_rows, num_categorical = batch.ids_BC.shape
    shapes = [(num_rows, batch.num_fields, width) for width in batch.widths]
    if weight_VS.device.type != "cpu":
        rows_BCS = weight_VS[batch.index_BC()]
        outputs = [weight_VS.new_empty(shape, dtype=dtype) for shape in shapes]
        for table, output_BFD in enumerate(outputs):
            columns = slice(batch.first_columns[table], batch.first_columns[table + 1])
            output_BFD[:, :num_categorical] = rows_BCS[..., columns]
        return tuple(outputs)
    ids, offsets, weight = batch.rows_to_read(weight_VS, dtype)
    first_columns, widths = np.array(batch.first_columns), np.array(batch.widths)
    num_positions = num_rows * batch.num_fields
    flat = np.empty(num_positions * int(first_columns[-1]), numpy_dtype(dtype))

    def copy(start: int, stop: int) -> None:
        embedding_kernels.gather(start, stop, ids, offsets, weight, first_columns, widths, batch.num_fields, flat)

    map_chunks(num_rows, _ROWS_PER_CHUNK, copy)
    # Separate tensors over one buffer, not views of one tensor: autograd then allows in-place use of each.
    return tuple(
        torch.from_numpy(flat[num_positions * first : num_positions * (first + shape[2])].reshape(shape))
        for first, shape in zip(batch.first_columns, shapes, strict=False)
    )


def weight_gradient_of(
    batch: LookupBatch,
    gradients: Sequence[Tensor | None],
    shape: torch.Size,
    like: Tensor,
    places: Sequence[Array] | None = None,
) -> Tensor:
    """The gradient of `weight`, sparse or dense, from those of its T tables.

    `places`: on the CPU, for each table where the id columns stand in its gradient; by default in their order.
    """
    rows_U, inverse_BC = batch.rows_U, batch.inverse_BC
    present = [(table, gradient) for table, gradient in enumerate(gradients) if gradient is not None]
    if like.device.type == "cpu":
        summed = np.zeros((len(rows_U), shape[1]), numpy_dtype(like.dtype))
        num_categorical = inverse_BC.shape[1]
        inverse, in_order = inverse_BC.numpy(), np.arange(num_categorical)
        arrays = {table: gradient.contiguous().numpy() for table, gradient in present}

        def add(first_field: int, last_field: int) -> None:
            for table, array in arrays.items():
                first_column = batch.first_columns[table]
                of = in_order if places is None else places[table]
                embedding_kernels.scatter_add(first_field, last_field, inverse, array, of, first_column, summed)

        # Where a table row belongs to one column, how the columns are divided changes no sum. Few wide ranges:
        # the gradient is read in the order in which it lies in memory.
        threads = torch.get_num_threads() if batch.columns_apart else 1
        map_chunks(num_categorical, max(1, -(-num_categorical // threads)), add)
        summed_US = torch.from_numpy(summed)
    else:
        summed_US = _segment_sums(batch, present, len(rows_U), shape[1], like)
    if batch.sparse:
        return torch.sparse_coo_tensor(
            rows_U.unsqueeze(0), summed_US, size=shape, is_coalesced=True, check_invariants=False
        )
    dense_VS = like.new_zeros(shape)
    dense_VS[rows_U] = summed_US
    return dense_VS


def _segment_sums(
    batch: LookupBatch, present: Sequence[tuple[int, Tensor]], num_distinct: int, width: int, like: Tensor
) -> Tensor:
    """The sums of duplicates in torch operations, in batch order (stable sort): no atomics, so repeatable."""
    flat_P = batch.inverse_BC.reshape(-1).long()
    order_P = torch.argsort(flat_P, stable=True)
    counts_U = torch.bincount(flat_P, minlength=num_distinct)
    summed_US = like.new_zeros(num_distinct, width)
    num_categorical = batch.ids_BC.shape[1]
    for table, gradient_BFD in present:
        columns = slice(batch.first_columns[table], batch.first_columns[table + 1])
        sorted_PD = gradient_BFD[:, :num_categorical].reshape(-1, batch.widths[table])[order_P]
        summed_US[:, columns] = torch.segment_reduce(sorted_PD, "sum", lengths=counts_U)
    return summed_US
