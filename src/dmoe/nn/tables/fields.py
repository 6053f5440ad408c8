"""Fields to embeddings: which tables hold a field, how wide it is there, and how several values become one.

Tables whose fields are read alike stand side by side in one bank (`MultiTableEmbedding`). With plain fields that all
experts read there is one bank, and nothing but its lookup.

Shape suffixes: B rows, C id columns, P id columns of one bank, N numeric fields, F fields that a table holds,
T tables, D width of a table, W width of a field of its own, L values of a multi-valued field.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dmoe.distributed.exchange import RowExchange
from dmoe.distributed.world import World
from dmoe.errors import DataError
from dmoe.kernels.row_access import rows_of
from dmoe.kernels.row_parallel import HALF_DTYPES, compiled_loops_serve
from dmoe.nn.tables.assembly import Lookup, Order, Part, Places, assemble
from dmoe.nn.tables.bank import Bank, NumericVectors, TokenField
from dmoe.nn.tables.lookup import BatchRows, TableRows, bad_id, check_ids
from dmoe.nn.tables.shrinkage import Shrinkage
from dmoe.nn.tables.table import MultiTableEmbedding


class FieldEmbedding(nn.Module):
    """Looks up the embeddings that each of T tables has of the fields that are read from it.

    Args:
        fields: the fields with a vocabulary; a number is a plain field of so many rows.
        num_numeric: numeric fields, value × a learned vector a table; they come after the others.
        widths: width D of each table.
        readers: for each field, numeric ones last, the tables that hold it; by default all.
        storage: dtype of the tables; by default torch's default dtype.
        world: processes that each hold a part of the rows; all must then call `forward` as often. By default one.

    Shape: ``ids_BC`` (B, C) integers, the columns of each field in turn, ``numeric_BN`` (B, N); a tuple of T tensors
    (B, F_t, D_t), the fields of `fields_of_table[t]` in this order.

    Raises: ValueError for fields, widths or readers that do not fit together.
    """

    sizes_C: Tensor

    def __init__(
        self,
        fields: Sequence[int | TokenField],
        num_numeric: int,
        widths: Sequence[int],
        *,
        readers: Sequence[Collection[int]] | None = None,
        storage: torch.dtype | None = None,
        world: World | None = None,
    ) -> None:
        super().__init__()
        process = (0, 1) if world is None else (world.rank, world.size)
        self.fields = tuple(field if isinstance(field, TokenField) else TokenField(field) for field in fields)
        self.num_numeric, self.widths = num_numeric, tuple(widths)
        num_fields = len(self.fields) + num_numeric
        everywhere = tuple(range(len(self.widths)))
        tables = [everywhere] * num_fields if readers is None else [tuple(sorted(set(one))) for one in readers]
        if len(tables) != num_fields:
            raise ValueError(f"readers must have an entry for each of {num_fields} fields, got {len(tables)}")
        self.fields_of_table = tuple(
            tuple(field for field in range(num_fields) if table in tables[field]) for table in everywhere
        )
        if not all(self.fields_of_table):
            empty = [table for table in everywhere if not self.fields_of_table[table]]
            raise ValueError(f"table {empty[0]} would hold no field")
        _check_fields(self.fields)
        owners = [field if field.shares is None else self.fields[field.shares] for field in self.fields]
        sizes = [owner.rows for owner, field in zip(owners, self.fields, strict=True) for _ in range(field.length)]
        self.register_buffer("sizes_C", torch.tensor(sizes, dtype=torch.int64), persistent=False)
        self._column_sizes = np.array(sizes, dtype=np.int64)
        # The field of each id column, for errors; not said where a model is made without a schema.
        self.column_names: Sequence[str] | None = None
        self.banks = nn.ModuleList()
        self.numeric: NumericVectors | None = None
        groups = _groups(self.fields, tables, self.widths)
        plain = len(groups) <= 1 and all(one == everywhere for one in tables) and not _special(self.fields)
        firsts = [0, *accumulate(field.length for field in self.fields)]
        if plain:
            sizes = [field.rows for field in self.fields]
            rows = MultiTableEmbedding(sizes, num_numeric, widths, storage=storage, process=process)
            self.banks.append(Bank.plain(rows, everywhere))
        else:
            for numbers, of, width in groups:
                self.banks.append(Bank(self.fields, numbers, firsts, of, self.widths, width, storage, process))
            if num_numeric:
                self.numeric = NumericVectors(tables[len(self.fields) :], self.widths)
        self._plain = plain
        self.exchange: RowExchange | None = None
        if world is not None and world.several:
            self.exchange = RowExchange(world, [table.layout for table in self.row_tables()])
        self._orders = [] if plain else [self._order(table) for table in everywhere]
        # On the CPU, where the fields of each bank, and last the numeric ones, stand in each table.
        self._places = [] if plain else [self._places_of(bank.numbers) for bank in self.each_bank()]
        self._numeric_places = [places[places >= 0] for places in self._places_of(range(len(self.fields), num_fields))]

    def check_ids(self, ids_BC: Tensor) -> None:
        """Raises: DataError or ValueError for ids that the tables cannot look up."""
        check_ids(ids_BC, self._column_sizes, self.column_names)

    def name_columns(self, names: Sequence[str]) -> None:
        """The field of each id column, for errors."""
        self.column_names = tuple(names)
        for bank in self.each_bank():
            if isinstance(bank.tables, MultiTableEmbedding):
                columns = range(len(names)) if self._plain else bank.columns_P.tolist()
                bank.tables.field_names = tuple(names[column] for column in columns)

    def bad_id(self, row: int, column: int, found: int) -> DataError:
        """What to say of an id that `in_range` reports."""
        return bad_id(row, column, found, int(self._column_sizes[column]), self.column_names)

    def in_range(self, ids_BC: Tensor) -> tuple[Tensor, Tensor]:
        """The ids with 0 for those outside their vocabulary, and [row, column, id] of the first such one, -1 for none.

        For a device, where `check_ids` would wait.
        """
        outside_BC = (ids_BC < 0) | (ids_BC >= self.sizes_C)
        num_ids, columns = ids_BC.numel(), max(1, ids_BC.shape[1])
        places_BC = torch.arange(num_ids, device=ids_BC.device).reshape(ids_BC.shape)
        found_P = torch.where(outside_BC, places_BC, num_ids).reshape(-1)
        first = torch.cat([found_P, found_P.new_full((1,), num_ids)]).amin()
        # One id more, so that there is one to look at where none is outside.
        id_there = torch.cat([ids_BC.reshape(-1), ids_BC.new_zeros(1)]).index_select(0, first.reshape(1)).squeeze(0)
        position = torch.stack([first // columns, first % columns, id_there.long()])
        return ids_BC.masked_fill(outside_BC, 0), torch.where(first < num_ids, position, -1)

    def batch_rows(self, ids_BC: Tensor) -> list[BatchRows]:
        """The rows that a batch reads of each of `row_tables`; ids must be known to be in range."""
        return [
            bank.tables.batch_rows(bank.read_ids(ids_BC if self._plain else bank.ids_of(ids_BC)))
            for bank in self.each_bank()
            if isinstance(bank.tables, MultiTableEmbedding)
        ]

    def forward(
        self, ids_BC: Tensor, numeric_BN: Tensor | None = None, rows: Sequence[TableRows] | None = None
    ) -> tuple[Tensor, ...]:
        if rows is None and not (torch.compiler.is_compiling() or torch.compiler.is_exporting()):
            self.check_ids(ids_BC)  # those of given vectors too
            if self.exchange is not None:
                rows = self.fetched(ids_BC, self.exchange)
        read = iter(rows) if rows is not None else None
        rows_of_bank = [
            next(read) if read is not None and isinstance(bank.tables, MultiTableEmbedding) else None
            for bank in self.each_bank()
        ]
        if self._plain:
            return self.each_bank()[0].look_up(ids_BC, numeric_BN, rows_of_bank[0])
        if compiled_loops_serve(ids_BC) and any(bank.direct for bank in self.each_bank()):
            return self._at_once(ids_BC, numeric_BN, rows_of_bank)
        parts: list[list[Tensor]] = [[] for _ in self.widths]
        for bank, own in zip(self.each_bank(), rows_of_bank, strict=True):
            for table, part_BFD in zip(bank.of, bank(ids_BC, own), strict=True):
                parts[table].append(part_BFD)
        for table, part_BFD in self._numeric_parts(numeric_BN):
            parts[table].append(part_BFD)
        return tuple(order(found) for order, found in zip(self._orders, parts, strict=True))

    @torch.no_grad()
    def as_they_are(self, ids_BC: Tensor) -> list[TableRows]:
        """What a batch reads of each of `row_tables`, wherever they are; ids must be known to be in range."""
        if self.exchange is not None:
            return self.fetched(ids_BC, self.exchange)
        tables = list(self.row_tables())
        there = tables[0].weight.device if tables else ids_BC.device
        found = []
        for one, table in zip(self.batch_rows(ids_BC.to(there)), tables, strict=True):
            values_US = rows_of(table.weight, one.rows_U).to(ids_BC.device, table.numeric_weight.dtype)
            found.append(TableRows(one if there == ids_BC.device else one.placed_on(ids_BC.device), values_US))
        return found

    @torch.no_grad()
    def fetched(self, ids_BC: Tensor, exchange: RowExchange) -> list[TableRows]:
        """The same from the processes that hold it; all of them must call."""
        device, batch = ids_BC.device, self.batch_rows(ids_BC.cpu())
        values = self._values_of([one.rows_U for one in batch], exchange)
        return [
            TableRows(one.placed_on(device), values_US.to(device)) for one, values_US in zip(batch, values, strict=True)
        ]

    def _values_of(self, rows: Sequence[Tensor], exchange: RowExchange) -> list[Tensor]:
        """The values of distinct rows (U,) of each of `row_tables`, where the tables are."""
        tables = list(self.row_tables())
        requests = [
            one.placed_on(table.weight.device)
            for one, table in zip(exchange.request(rows, [None] * len(rows)), tables, strict=True)
        ]
        held = [table.weight.index_select(0, one.rows_L) for one, table in zip(requests, tables, strict=True)]
        return exchange.fetch(
            requests, [values_LS.float() if values_LS.dtype in HALF_DTYPES else values_LS for values_LS in held]
        )

    def _at_once(
        self, ids_BC: Tensor, numeric_BN: Tensor | None, rows_of_bank: Sequence[TableRows | None]
    ) -> tuple[Tensor, ...]:
        """The same, with every embedding written once, to where it stands in its table."""
        lookups, parts = [], []
        for bank, places, own in zip(self.each_bank(), self._places, rows_of_bank, strict=True):
            if bank.direct:
                rows = cast(MultiTableEmbedding, bank.tables)
                lookups.append(Lookup(rows.source(bank.ids_of(ids_BC), own), rows.widths, bank.of, places))
            else:
                found = zip(bank.of, bank(ids_BC, own), strict=True)
                parts += [Part(part_BFD, table, places[table]) for table, part_BFD in found]
        for table, part_BFD in self._numeric_parts(numeric_BN):
            parts.append(Part(part_BFD, table, self._numeric_places[table]))
        shapes = [(len(held), width) for held, width in zip(self.fields_of_table, self.widths, strict=True)]
        return assemble(shapes, lookups, parts, rows.numeric_weight.dtype)

    def _numeric_parts(self, numeric_BN: Tensor | None) -> list[tuple[int, Tensor]]:
        if self.numeric is None:
            return []
        if numeric_BN is None:
            raise ValueError(f"the model has {self.num_numeric} numeric fields; pass numeric")
        found: list[tuple[int, Tensor]] = self.numeric(numeric_BN)
        return found

    def _places_of(self, numbers: Sequence[int]) -> list[Places]:
        """For each table, where the fields `numbers` stand in it, -1 for one that it does not hold."""
        where = [{field: place for place, field in enumerate(held)} for held in self.fields_of_table]
        return [np.array([held.get(field, -1) for field in numbers], dtype=np.int64) for held in where]

    def row_tables(self) -> Iterator[MultiTableEmbedding]:
        """The trained tables: their `weight` is what an embedding optimiser updates."""
        for bank in self.each_bank():
            if isinstance(bank.tables, MultiTableEmbedding):
                yield bank.tables

    def each_bank(self) -> list["Bank"]:
        """`banks`, by their type."""
        return [cast(Bank, bank) for bank in self.banks]

    def table_names(self) -> list[str]:
        """The names of the tensors that hold rows of vocabularies, in `state_dict`."""
        return [f"banks.{number}.tables.weight" for number in range(len(self.banks))]

    def place(self, field: int) -> tuple[str, slice] | None:
        """The name of the tensor, and its rows, that hold the vocabulary of a field; None if no table has it."""
        found = self._bank_of(field)
        return None if found is None else (self.table_names()[found[0]], found[2])

    def rows_of(self, field: int, table: int) -> Tensor | None:
        """The rows (V, D) or, with a width of its own, (V, W) that a table trains for a field; None if it has none.

        Detached.
        """
        found = self._bank_of(field)
        if found is None:
            return None
        _, bank, rows = found
        tables = bank.tables
        if table not in bank.of or not isinstance(tables, MultiTableEmbedding):
            return None
        return tables.table(bank.of.index(table))[rows]

    @torch.no_grad()
    def set_vectors(self, field: int, vectors_VW: Tensor) -> None:
        """Sets the embeddings of a field that has the vectors' width, in every table that holds it."""
        found = self._bank_of(field)
        if found is not None:
            tables = found[1].tables
            vectors_VS = vectors_VW.repeat(1, tables.weight.shape[1] // vectors_VW.shape[1]).to(tables.weight.dtype)
            if isinstance(tables, MultiTableEmbedding):
                tables.put_rows(found[2].start, vectors_VS)
            else:
                tables.weight[found[2]] = vectors_VS

    @torch.no_grad()
    def spread_fields(self, std: float) -> None:
        """Adds to all rows of a vocabulary one vector of normal numbers: a field's tokens start close together.

        Products of embeddings have gradients at once then; from rows near zero they have none, and units die early.
        """
        for bank in self.each_bank():
            if isinstance(bank.tables, MultiTableEmbedding) and not bank.tables.weight.is_meta:
                weight = bank.tables.weight
                for place in range(len(bank.vocabularies)):
                    vector_S = (torch.randn(weight.shape[1]) * std).to(weight)
                    rows = bank.tables.field_rows(place)
                    if bank.tables.layout.size == 1:
                        weight[rows] += vector_S
                    else:
                        weight[torch.from_numpy(bank.tables.layout.held_of(rows.start, rows.stop)[1])] += vector_S

    def shrink(self, counts: Sequence[npt.NDArray[np.int64] | None], k: float) -> None:
        """From here on rare tokens are read as partly the unseen one of their field; see `dmoe.nn.tables.shrinkage`.

        `counts`: for each field with a vocabulary, how often train holds its ids; None for one to leave as it is.
        """
        for bank in self.each_bank():
            if isinstance(bank.tables, MultiTableEmbedding):
                bank.shrinkage = Shrinkage(bank.tables, [counts[number] for number in bank.vocabularies], k)

    @torch.no_grad()
    def folded(self, weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """A state of the model with rows that need no shrinkage: the same outputs without what `shrink` began.

        `prefix`: the name of this module in the state. Of several processes all must call, each with the rows it holds.
        """
        found = dict(weights)
        if all(bank.shrinkage is None for bank in self.each_bank()):
            return found
        shrunk = [
            (prefix + name, bank.shrinkage, bank.tables)
            for name, bank in zip(self.table_names(), self.each_bank(), strict=True)
            if isinstance(bank.tables, MultiTableEmbedding)
        ]
        unseen = [torch.from_numpy(tables.unseen_rows()) for _, _, tables in shrunk]
        if self.exchange is not None:
            values = self._values_of(unseen, self.exchange)
        else:
            values = [weights[name][rows_K] for (name, _, _), rows_K in zip(shrunk, unseen, strict=True)]
        for (name, shrinkage, tables), unseen_KS in zip(shrunk, values, strict=True):
            if shrinkage is not None:
                found[name] = shrinkage.folded(tables, weights[name], unseen_KS)
        return found

    def end_shrinkage(self) -> None:
        """Ends what `shrink` began, for weights that are folded."""
        for bank in self.each_bank():
            bank.shrinkage = None

    def _bank_of(self, field: int) -> tuple[int, "Bank", slice] | None:
        """The bank that holds the vocabulary of a field, its number, and the rows there."""
        for number, bank in enumerate(self.each_bank()):
            if field in bank.vocabularies:
                return number, bank, bank.tables.field_rows(bank.vocabularies.index(field))
        return None

    def _order(self, table: int) -> Order:
        held = [list(bank.numbers) for bank in self.each_bank() if table in bank.of]
        numeric = [field for field in self.fields_of_table[table] if field >= len(self.fields)]
        return Order.of([*held, numeric] if numeric else held, self.fields_of_table[table])


def _special(fields: Sequence[TokenField]) -> bool:
    return any(field.multi_valued or field.length > 1 or field.width is not None for field in fields)


def _check_fields(fields: Sequence[TokenField]) -> None:
    for number, field in enumerate(fields):
        where = f"fields[{number}]"
        if field.rows < 1 or field.length < 1 or (field.width is not None and field.width < 1):
            raise ValueError(f"{where}: rows, length and width must be at least 1, got {field}")
        if field.length > 1 and not field.multi_valued:
            raise ValueError(f"{where}: a field of {field.length} id columns must be multi_valued")
        if field.frozen and field.width is None:
            raise ValueError(f"{where}: a frozen field needs width, that of its vectors")
        if field.pooling == "target" and field.multi_valued and field.shares is None:
            raise ValueError(f"{where}: pooling 'target' needs shares, the field that it asks")
        if field.shares is None:
            continue
        if not 0 <= field.shares < len(fields) or fields[field.shares].shares is not None:
            raise ValueError(f"{where}: shares must name a field with rows of its own, got {field.shares}")
        owner = fields[field.shares]
        if (owner.rows, owner.width, owner.frozen) != (field.rows, field.width, field.frozen) or owner.multi_valued:
            raise ValueError(f"{where}: must have the rows and width of fields[{field.shares}], a plain field")


def _groups(
    fields: Sequence[TokenField], tables: Sequence[tuple[int, ...]], widths: Sequence[int]
) -> list[tuple[list[int], tuple[int, ...], int | None]]:
    """Fields that can stand in one bank, the tables that hold it, and the width of its own; by their first fields."""
    owners = [number if field.shares is None else field.shares for number, field in enumerate(fields)]
    held: dict[int, set[int]] = {}
    listed: set[int] = set()
    for number, owner in enumerate(owners):
        held.setdefault(owner, set()).update(tables[number])
        if fields[number].multi_valued:
            listed.add(owner)
    groups: dict[tuple[tuple[int, ...], int | None, bool, bool], list[int]] = {}
    for number, owner in enumerate(owners):
        of = tuple(sorted(held[owner]))
        if not of:
            continue
        field = fields[owner]
        width = field.width
        if not field.frozen and width is not None and all(widths[table] == width for table in of):
            width = None
        # Values of one vocabulary in several columns are summed by one thread: apart from fields that need not.
        groups.setdefault((of, width, field.frozen, owner in listed), []).append(number)
    return [(numbers, of, width) for (of, width, _, _), numbers in groups.items()]
