"""Fields to embeddings: which tables hold a field, how wide it is there, and how several values become one.

Tables whose fields are read alike stand side by side in one bank (`MultiTableEmbedding`). With plain fields that all
experts read there is one bank, and nothing but its lookup.

Shape suffixes: B rows, C id columns, P id columns of one bank, N numeric fields, F fields that a table holds,
T tables, D width of a table, W width of a field of its own, L values of a multi-valued field.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dmoe.kernels.row_parallel import compiled_loops_serve
from dmoe.nn.tables.assembly import Lookup, Order, Part, Places, assemble
from dmoe.nn.tables.lookup import BatchRows, TableRows, check_ids
from dmoe.nn.tables.pooling import POOLINGS, Pooling
from dmoe.nn.tables.shrinkage import Shrinkage
from dmoe.nn.tables.table import MultiTableEmbedding
from dmoe.schema import Pooling as PoolingName


@dataclass(frozen=True, slots=True)
class TokenField:
    """A field with a vocabulary, as a model sees it.

    Args:
        rows: size of its vocabulary.
        length: id columns; of more than one, id 0 is no value and the others are pooled.
        pooling: how, if it is multi-valued: see `dmoe.nn.tables.pooling`.
        width: width of its embeddings, projected to that of each table by a learned matrix; by default the table's.
        shares: the field whose rows it reads; "target" pooling asks that field what matters.
        frozen: its vectors are given (`FieldEmbedding.set_vectors`) and stay as they are.
        multi_valued: whether it is pooled, even if `length` is 1.
    """

    rows: int
    length: int = 1
    pooling: PoolingName = "mean"
    width: int | None = None
    shares: int | None = None
    frozen: bool = False
    multi_valued: bool = False


class FieldEmbedding(nn.Module):
    """Looks up the embeddings that each of T tables has of the fields that are read from it.

    Args:
        fields: the fields with a vocabulary; a number is a plain field of so many rows.
        num_numeric: numeric fields, value × a learned vector a table; they come after the others.
        widths: width D of each table.
        readers: for each field, numeric ones last, the tables that hold it; by default all.
        storage: dtype of the tables; by default torch's default dtype.

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
    ) -> None:
        super().__init__()
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
        self.banks = nn.ModuleList()
        self.numeric: NumericVectors | None = None
        groups = _groups(self.fields, tables, self.widths)
        plain = len(groups) <= 1 and all(one == everywhere for one in tables) and not _special(self.fields)
        firsts = [0, *accumulate(field.length for field in self.fields)]
        if plain:
            sizes = [field.rows for field in self.fields]
            self.banks.append(Bank.plain(MultiTableEmbedding(sizes, num_numeric, widths, storage=storage), everywhere))
        else:
            for numbers, of, width in groups:
                self.banks.append(Bank(self.fields, numbers, firsts, of, self.widths, width, storage))
            if num_numeric:
                self.numeric = NumericVectors(tables[len(self.fields) :], self.widths)
        self._plain = plain
        self._orders = [] if plain else [self._order(table) for table in everywhere]
        # On the CPU, where the fields of each bank, and last the numeric ones, stand in each table.
        self._places = [] if plain else [self._places_of(bank.numbers) for bank in self.each_bank()]
        self._numeric_places = [places[places >= 0] for places in self._places_of(range(len(self.fields), num_fields))]

    def check_ids(self, ids_BC: Tensor) -> None:
        """Raises: DataError or ValueError for ids that the tables cannot look up."""
        for bank in self.each_bank():
            bank.tables.check_ids(ids_BC if self._plain else bank.ids_of(ids_BC))

    def in_range(self, ids_BC: Tensor) -> tuple[Tensor, Tensor]:
        """The ids with 0 for those outside their vocabulary, and [row, column] of the first such one, -1 for none.

        For a device, where `check_ids` would wait.
        """
        outside_BC = (ids_BC < 0) | (ids_BC >= self.sizes_C)
        num_ids, columns = ids_BC.numel(), max(1, ids_BC.shape[1])
        places_BC = torch.arange(num_ids, device=ids_BC.device).reshape(ids_BC.shape)
        found_P = torch.where(outside_BC, places_BC, num_ids).reshape(-1)
        first = torch.cat([found_P, found_P.new_full((1,), num_ids)]).amin()
        position = torch.stack([first // columns, first % columns])
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
            weight = found[1].tables.weight
            weight[found[2]] = vectors_VW.repeat(1, weight.shape[1] // vectors_VW.shape[1]).to(weight.dtype)

    @torch.no_grad()
    def spread_fields(self, std: float) -> None:
        """Adds to all rows of a vocabulary one vector of normal numbers: a field's tokens start close together.

        Products of embeddings have gradients at once then; from rows near zero they have none, and units die early.
        """
        for bank in self.each_bank():
            if isinstance(bank.tables, MultiTableEmbedding):
                weight = bank.tables.weight
                for place in range(len(bank.vocabularies)):
                    vector_S = torch.randn(weight.shape[1]) * std
                    weight[bank.tables.field_rows(place)] += vector_S.to(weight)

    def shrink(self, counts: Sequence[npt.NDArray[np.int64] | None], k: float) -> None:
        """From here on rare tokens are read as partly the unseen one of their field; see `dmoe.nn.tables.shrinkage`.

        `counts`: for each field with a vocabulary, how often train holds its ids; None for one to leave as it is.
        """
        for bank in self.each_bank():
            if isinstance(bank.tables, MultiTableEmbedding):
                bank.shrinkage = Shrinkage(bank.tables, [counts[number] for number in bank.vocabularies], k)

    def folded(self, weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """A state of the model with rows that need no shrinkage: the same outputs without what `shrink` began.

        `prefix`: the name of this module in the state.
        """
        found = dict(weights)
        for name, bank in zip(self.table_names(), self.each_bank(), strict=True):
            if bank.shrinkage is not None:
                tables = cast(MultiTableEmbedding, bank.tables)
                found[prefix + name] = bank.shrinkage.folded(tables, weights[prefix + name])
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


class Bank(nn.Module):
    """Fields that the same tables hold at the same width: one lookup, then pooling, then projection.

    Shape: ``ids_BC`` of all fields to one tensor (B, F, D_t) for each table of `of`.
    """

    columns_P: Tensor
    shrinkage: Shrinkage | None

    def __init__(
        self,
        fields: Sequence[TokenField],
        numbers: Sequence[int],
        firsts: Sequence[int],
        of: Sequence[int],
        widths: Sequence[int],
        width: int | None,
        storage: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.shrinkage = None
        self.numbers, self.of = tuple(numbers), tuple(of)
        own = [fields[number] for number in numbers]
        self.vocabularies = tuple(number for number in numbers if fields[number].shares is None)
        columns = [column for number in numbers for column in range(firsts[number], firsts[number + 1])]
        self._every_column = columns == list(range(firsts[-1]))
        self.register_buffer("columns_P", torch.tensor(columns), persistent=False)
        owners = [fields[number].shares if fields[number].shares is not None else number for number in numbers]
        places = [self.vocabularies.index(cast(int, owner)) for owner in owners]
        vocabulary_of_column = [place for place, field in zip(places, own, strict=True) for _ in range(field.length)]
        sizes = [fields[number].rows for number in self.vocabularies]
        self.tables: MultiTableEmbedding | FrozenTable
        if own[0].frozen:
            assert width is not None  # checked with the fields
            self.tables = FrozenTable(sizes, width, vocabulary_of_column, len(of))
        else:
            self.tables = MultiTableEmbedding(
                sizes,
                0,
                [widths[table] if width is None else width for table in of],
                storage=storage,
                vocabulary_of_column=vocabulary_of_column,
            )
        self._lengths = [field.length for field in own]
        self._targets = [
            numbers.index(cast(int, field.shares)) if field.multi_valued and field.pooling == "target" else -1
            for field in own
        ]
        self._pooled = any(field.multi_valued for field in own)
        self.poolings = nn.ModuleList()
        if self._pooled:
            for table in of:
                raw = widths[table] if width is None else width
                pools = [POOLINGS[field.pooling](raw) if field.multi_valued else nn.Identity() for field in own]
                self.poolings.append(nn.ModuleList(pools))
        self.projections = nn.ParameterList()
        if width is not None:
            for table in of:
                projection_FWD = torch.empty(len(own), width, widths[table])
                for matrix_WD in projection_FWD:
                    nn.init.xavier_normal_(matrix_WD)
                self.projections.append(projection_FWD)

    @classmethod
    def plain(cls, tables: MultiTableEmbedding, of: Sequence[int]) -> "Bank":
        """Plain fields, all columns."""
        bank = cls.__new__(cls)
        nn.Module.__init__(bank)
        bank.tables, bank.of, bank.shrinkage = tables, tuple(of), None
        bank.numbers = bank.vocabularies = tuple(range(len(tables.vocabulary_sizes)))
        return bank

    @property
    def direct(self) -> bool:
        """Whether what is looked up is what comes out."""
        plain = isinstance(self.tables, MultiTableEmbedding) and not self._pooled and not len(self.projections)
        return plain and self.shrinkage is None

    def ids_of(self, ids_BC: Tensor) -> Tensor:
        """The columns (B, P) of its own fields."""
        return ids_BC if self._every_column else ids_BC.index_select(1, self.columns_P)

    def read_ids(self, ids_BP: Tensor) -> Tensor:
        """The ids that are looked up for those of a batch."""
        return ids_BP if self.shrinkage is None else self.shrinkage.read_ids(ids_BP)

    def look_up(
        self, ids_BP: Tensor, numeric_BN: Tensor | None = None, rows: TableRows | None = None
    ) -> tuple[Tensor, ...]:
        """What its tables hold for its own columns, shrunk if they are, before pooling and projection."""
        if self.shrinkage is not None:
            return cast(tuple[Tensor, ...], self.shrinkage(self.tables, ids_BP, numeric_BN, rows))
        if isinstance(self.tables, MultiTableEmbedding):
            return cast(tuple[Tensor, ...], self.tables(ids_BP, numeric_BN, rows))
        found = self.tables(ids_BP) if numeric_BN is None else self.tables(ids_BP, numeric_BN)
        return cast(tuple[Tensor, ...], found)

    def forward(self, ids_BC: Tensor, rows: TableRows | None = None) -> list[Tensor]:
        ids_BP = self.ids_of(ids_BC)
        outputs = list(self.look_up(ids_BP, rows=rows))
        if self._pooled:
            present_BP = ids_BP != 0
            outputs = [self._pool(place, found, present_BP) for place, found in enumerate(outputs)]
        if len(self.projections):
            # Field by field: one product of (B, W) with (W, D) each.
            outputs = [
                torch.bmm(found_BFW.transpose(0, 1), projection_FWD).transpose(0, 1)
                for found_BFW, projection_FWD in zip(outputs, self.projections, strict=True)
            ]
        return outputs

    def _pool(self, place: int, values_BPD: Tensor, present_BP: Tensor) -> Tensor:
        """(B, P, D) of all columns to (B, F, D), one a field."""
        values = torch.split(values_BPD, self._lengths, dim=1)
        present = torch.split(present_BP, self._lengths, dim=1)
        poolings = cast(nn.ModuleList, self.poolings[place])
        fields = []
        for field, (values_BLD, present_BL) in enumerate(zip(values, present, strict=True)):
            if isinstance(poolings[field], nn.Identity):
                fields.append(values_BLD)
                continue
            target = self._targets[field]
            target_BD = values[target].squeeze(1) if target >= 0 else None
            pooling = cast(Pooling, poolings[field])
            fields.append(pooling(values_BLD, present_BL, target_BD).unsqueeze(1))
        return torch.cat(fields, dim=1)


class FrozenTable(nn.Module):
    """Given vectors, the same for all tables; nothing of them is trained.

    Shape: ``ids_BP`` to the same tensor (B, P, W) for each of `copies` tables.
    """

    weight: Tensor
    offsets_C: Tensor

    def __init__(self, sizes: Sequence[int], width: int, vocabulary_of_column: Sequence[int], copies: int) -> None:
        super().__init__()
        offsets = [0, *accumulate(sizes)]
        self._offsets, self.copies = offsets, copies
        offsets_C = torch.tensor([offsets[vocabulary] for vocabulary in vocabulary_of_column])
        self.register_buffer("offsets_C", offsets_C, persistent=False)
        self.register_buffer("weight", torch.zeros(offsets[-1], width))
        self._column_sizes = np.array([sizes[vocabulary] for vocabulary in vocabulary_of_column], dtype=np.int64)

    def check_ids(self, ids_BP: Tensor) -> None:
        """Raises: DataError or ValueError for ids that it cannot look up."""
        check_ids(ids_BP, self._column_sizes)

    def field_rows(self, vocabulary: int) -> slice:
        return slice(self._offsets[vocabulary], self._offsets[vocabulary + 1])

    def forward(self, ids_BP: Tensor) -> tuple[Tensor, ...]:
        return (nn.functional.embedding(ids_BP + self.offsets_C, self.weight),) * self.copies


class NumericVectors(nn.Module):
    """Value × a learned vector, for numeric fields that not every table holds.

    Shape: ``numeric_BN`` (B, N) to pairs of a table and its (B, F, D_t).
    """

    def __init__(self, readers: Sequence[Sequence[int]], widths: Sequence[int]) -> None:
        super().__init__()
        self._held = [
            (table, held)
            for table in range(len(widths))
            if (held := [field for field, tables in enumerate(readers) if table in tables])
        ]
        self.vectors = nn.ParameterList()
        for table, held in self._held:
            self.register_buffer(f"held_{table}", torch.tensor(held), persistent=False)
            std = (2 / (1 + widths[table])) ** 0.5  # Xavier of a Linear(1, D)
            self.vectors.append(torch.empty(len(held), widths[table]).normal_(std=std))

    def forward(self, numeric_BN: Tensor) -> list[tuple[int, Tensor]]:
        return [
            (
                table,
                numeric_BN.index_select(1, getattr(self, f"held_{table}")).to(vectors_ND.dtype).unsqueeze(-1)
                * vectors_ND,
            )
            for (table, _), vectors_ND in zip(self._held, self.vectors, strict=True)
        ]


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
