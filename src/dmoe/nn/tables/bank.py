"""Fields that the same tables hold: one look-up for them all, then pooling, then projection.

Shape suffixes: B rows, C id columns, P id columns of one bank, N numeric fields, F fields of a bank, D width of a
table, W width of a field of its own, L values of a multi-valued field.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn

from dmoe.nn.tables.lookup import TableRows
from dmoe.nn.tables.pooling import POOLINGS, Pooling
from dmoe.nn.tables.shrinkage import Shrinkage
from dmoe.nn.tables.table import MultiTableEmbedding, room_for_rows
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
        process: tuple[int, int],
    ) -> None:
        super().__init__()
        self.shrinkage = None
        self.numbers, self.of = tuple(numbers), tuple(of)
        own = [fields[number] for number in numbers]
        self.vocabularies = tuple(number for number in numbers if fields[number].shares is None)
        columns = [column for number in numbers for column in range(firsts[number], firsts[number + 1])]
        self._every_column = columns == list(range(firsts[-1]))
        self.register_buffer("columns_P", torch.tensor(columns), persistent=False)
        self._columns_on_host_P = torch.tensor(columns)
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
                process=process,
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
        if self._every_column:
            return ids_BC
        # Ids are on the host also of a model elsewhere, where rows are found there.
        is_near = ids_BC.device.type == self.columns_P.device.type
        return ids_BC.index_select(1, self.columns_P if is_near else self._columns_on_host_P)

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
        weight = room_for_rows(offsets[-1], width, torch.get_default_dtype())
        self.register_buffer("weight", weight if weight.is_meta else weight.zero_())

    def set_rows(self, rows_VS: Tensor) -> None:
        """Takes these rows as they are, also from memory that must not be written to."""
        self.weight = rows_VS

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
