"""Embedding tables of one vocabulary, side by side in one wide parameter (eqs. 1 and 6 of arXiv 2505.17925).

Every expert may read its own table; all tables are indexed by the same ids, so one lookup serves all of them
and one sum of duplicates serves the backward pass.

Shape suffixes: B rows, C categorical fields, N numeric fields, F = C + N, T tables, D width of one table,
S = summed width of all tables, V = summed vocabulary sizes, U distinct table rows of a batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dmoe.distributed.layout import RowLayout
from dmoe.kernels.row_parallel import HALF_DTYPES, compiled_loops_serve, empty_table
from dmoe.nn.tables.lookup import BatchRows, Source, TableRows, check_ids, look_up, look_up_in_torch
from dmoe.schema import OOV_ID

INITIAL_STD = 1e-4
# Rows drawn at once of a table of which other processes hold a part; a multiple of 16, as torch draws normal numbers.
_DRAWN_ROWS = 1 << 16
_without_rows: ContextVar[bool] = ContextVar("without_rows", default=False)


@contextmanager
def without_rows() -> Iterator[None]:
    """Inside, tables are made without memory for their rows, on the device `meta`; `set_rows` then gives them some."""
    token = _without_rows.set(True)
    try:
        yield
    finally:
        _without_rows.reset(token)


def room_for_rows(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """The matrix, not initialised, of a new table."""
    if _without_rows.get():
        return torch.empty(rows, columns, dtype=dtype, device="meta")
    return empty_table(rows, columns, dtype)


class MultiTableEmbedding(nn.Module):
    """Looks up T embeddings of every field in one pass.

    Args:
        vocabulary_sizes: rows of each categorical field; ids of a field run from 0 to its size - 1.
        num_numeric: numeric fields; each has one learned vector a table, and its embedding is value × vector.
        widths: embedding width of each of the T tables.
        storage: dtype of `weight`, by default torch's default dtype; bfloat16 and float16 halve it. Results have the
            default dtype whatever it is.
        field_names: names of the categorical fields, for error messages.
        vocabulary_of_column: for each of the C id columns, the vocabulary that it reads; by default column c reads
            vocabulary c. Columns may share one.
        process: (rank, size) where each of `size` processes holds a part of the rows (`dmoe.distributed.layout`); by
            default one holds all. The first values of a row do not depend on it. Without all rows, a forward pass needs
            `rows`.

    Shape: ``ids_BC`` (B, C) int32 or int64, ``numeric_BN`` (B, N); the result is a tuple of T tensors
    (B, C + N, D_t), categorical fields first.

    A training step that updates only the rows of its batch reads them first (`batch_rows`, then `read` of an
    embedding optimiser) and passes them as `rows`; their gradient is then that of `rows.values_US`. Without `rows`
    the table itself is read, and its gradient is dense.

    Duplicate ids are summed in batch order whatever the number of threads: equal input gives equal bits.

    Raises: ValueError if a size, width or shape is wrong; DataError naming the field if an id is out of range.
    """

    offsets_C: Tensor

    def __init__(
        self,
        vocabulary_sizes: Sequence[int],
        num_numeric: int,
        widths: Sequence[int],
        *,
        storage: torch.dtype | None = None,
        field_names: Sequence[str] | None = None,
        vocabulary_of_column: Sequence[int] | None = None,
        process: tuple[int, int] = (0, 1),
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
        self.field_names = tuple(field_names) if field_names is not None else None
        self._first_columns = (0, *accumulate(widths))
        self._offsets = np.array((0, *accumulate(vocabulary_sizes)), dtype=np.int64)
        columns_C = np.array(vocabulary_of_column, dtype=np.int64)
        self.register_buffer("offsets_C", torch.from_numpy(self._offsets[:-1][columns_C]), persistent=False)
        self._offsets_on_host_C = torch.from_numpy(self._offsets[:-1][columns_C])
        self._column_sizes = np.diff(self._offsets)[columns_C]
        self._columns_of_vocabulary = np.bincount(columns_C, minlength=len(vocabulary_sizes)).tolist()
        self._columns_apart = len(set(vocabulary_of_column)) == len(vocabulary_of_column)
        self._on_host = False
        dtype = storage or torch.get_default_dtype()
        self.layout = RowLayout(int(self._offsets[-1]), *process)
        self.weight = nn.Parameter(room_for_rows(self.layout.held, sum(widths), dtype))
        self.numeric_weight = nn.Parameter(torch.empty(num_numeric, sum(widths)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Categorical rows N(0, 1e-4²); numeric vectors Xavier normal of a Linear(1, D)."""
        if self.weight.is_meta:
            pass
        elif self.layout.size == 1:
            nn.init.normal_(self.weight, std=INITIAL_STD)
        else:
            self._draw_rows()
        with torch.no_grad():
            for table, width in enumerate(self.widths):
                self.numeric_weight[:, self.table_slice(table)].normal_(std=math.sqrt(2 / (1 + width)))

    @torch.no_grad()
    def _draw_rows(self) -> None:
        """Draws all rows, a few at a time, and keeps those that are held here."""
        self.weight.zero_()
        width, start = self.weight.shape[1], 0
        while start < self.num_rows:
            stop = start + _DRAWN_ROWS
            if self.num_rows - stop < 16:  # a last block of its own would be drawn by another rule
                stop = self.num_rows
            drawn_US = nn.init.normal_(torch.empty(stop - start, width, dtype=self.weight.dtype), std=INITIAL_STD)
            self.put_rows(start, drawn_US)
            start = stop

    @torch.no_grad()
    def put_rows(self, start: int, values_US: Tensor) -> None:
        """Sets rows `start` and those that follow, as far as they are held here."""
        rows_U, held_U = self.layout.held_of(start, start + len(values_US))
        self.weight[torch.from_numpy(held_U)] = values_US[torch.from_numpy(rows_U - start)].to(self.weight)

    def set_rows(self, rows_VS: Tensor) -> None:
        """Takes these rows as they are, also from memory that must not be written to: the table is not trained."""
        self.weight = nn.Parameter(rows_VS, requires_grad=False)

    def table_slice(self, table: int) -> slice:
        """The columns of table `table` in `weight` and `numeric_weight`."""
        return slice(self._first_columns[table], self._first_columns[table + 1])

    def table(self, table: int) -> Tensor:
        """The (V, D) weights of one table, detached."""
        return self.weight.detach()[:, self.table_slice(table)]

    def field_rows(self, field: int) -> slice:
        """The rows of vocabulary `field` in `weight`."""
        return slice(int(self._offsets[field]), int(self._offsets[field + 1]))

    def unseen_rows(self) -> npt.NDArray[np.int64]:
        """For each vocabulary the row of its unseen values; the only one of a vocabulary that has no such."""
        rows_K: npt.NDArray[np.int64] = self._offsets[:-1] + np.minimum(OOV_ID, np.diff(self._offsets) - 1)
        return rows_K

    @property
    def num_rows(self) -> int:
        """Rows V of all vocabularies, here or elsewhere."""
        return self.layout.rows

    @property
    def num_columns(self) -> int:
        """Id columns C."""
        return len(self._column_sizes)

    def keep_rows_on_host(self) -> None:
        """From here on `to` moves everything but the rows, which stay in host memory; a batch's are copied over."""
        self._on_host = True

    def check_ids(self, ids_BC: Tensor) -> None:
        """Raises: as the class does, for ids that it cannot look up."""
        check_ids(ids_BC, self._column_sizes, self.field_names)

    def batch_rows(self, ids_BC: Tensor) -> BatchRows:
        """The rows of `weight` that a batch reads; ids must be known to be in range."""
        is_near = ids_BC.device.type == self.offsets_C.device.type
        offsets_C = self.offsets_C if is_near else self._offsets_on_host_C
        places = zip(self._columns_of_vocabulary, self.vocabulary_sizes, strict=True)
        room = sum(min(len(ids_BC) * columns, size) for columns, size in places)
        return BatchRows(ids_BC.contiguous(), offsets_C, self.num_rows, room, self._columns_apart)

    def forward(
        self, ids_BC: Tensor, numeric_BN: Tensor | None = None, rows: TableRows | None = None
    ) -> tuple[Tensor, ...]:
        if numeric_BN is None and self.num_numeric:
            raise ValueError(f"the model has {self.num_numeric} numeric fields; pass numeric")
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            source = Source(self.weight, ids_BC, self.offsets_C, self._columns_apart)
            return look_up_in_torch(source, self.numeric_weight, numeric_BN, self.widths)
        if numeric_BN is None:
            numeric_BN = self.numeric_weight.new_empty(len(ids_BC), 0)
        if tuple(numeric_BN.shape) != (len(ids_BC), self.num_numeric):
            raise ValueError(f"numeric must be ({len(ids_BC)}, {self.num_numeric}), got {tuple(numeric_BN.shape)}")
        numeric_BN = numeric_BN.to(self.numeric_weight.dtype)
        source = self.source(ids_BC, rows)
        form = look_up if compiled_loops_serve(ids_BC) or source.on_device is not None else look_up_in_torch
        return form(source, self.numeric_weight, numeric_BN, self.widths)

    def source(self, ids_BC: Tensor, rows: TableRows | None) -> Source:
        """What the ids of a batch are looked up in: `rows` if there are, else the table."""
        if rows is not None:
            return Source.of(rows)
        self.check_ids(ids_BC)
        assert self.layout.size == 1, "rows that other processes hold are fetched by FieldEmbedding"
        direct = self.weight.dtype not in HALF_DTYPES and self.weight.device == ids_BC.device
        if direct and not (torch.is_grad_enabled() and self.weight.requires_grad):
            return Source(self.weight, ids_BC.contiguous(), self.offsets_C, self._columns_apart)
        # The few distinct rows are copied, widened and moved once each.
        batch = self.batch_rows(ids_BC)
        values_US = self.weight.index_select(0, batch.rows_U.to(self.weight.device).clamp(min=0))
        return Source.of(TableRows(batch, values_US.to(ids_BC.device, self.numeric_weight.dtype)))

    def extra_repr(self) -> str:
        rows, width = self.num_rows, self.weight.shape[1]
        return f"{rows=}, columns={self.num_columns}+{self.num_numeric}, widths={self.widths}, {width=}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MultiTableEmbedding":
        if not self._on_host:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]
        weight = self._parameters.pop("weight")
        try:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]
        finally:
            self._parameters["weight"] = weight
