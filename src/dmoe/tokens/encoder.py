"""Raw rows as a trained model reads them: exactly the ids and numbers that preparing gave.

B rows of a batch, C id columns and N numeric fields.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmoe.config.stored import stored_config
from dmoe.errors import ConfigError, DataError
from dmoe.machine.limits import usable_threads
from dmoe.machine.ordered_pool import OrderedPool
from dmoe.schema import MISSING_ID, OOV_ID, UNKNOWN, Schema
from dmoe.sources.delimited import RawRows
from dmoe.sources.inputs import expand_inputs
from dmoe.sources.kept_columns import Kept, joined, set_apart
from dmoe.sources.pieces import LogFile, Piece, needed_columns, table_rows
from dmoe.sources.tables import as_arrow, column_names
from dmoe.tokens.fields import FieldRows, convert, raw_valued
from dmoe.tokens.lookup import open_tokens
from dmoe.tokens.numbers import encode_numbers
from dmoe.tokens.quantiles import coded_buckets
from dmoe.tokens.unseen import ValueCounts, missing_rows
from dmoe.values.coded_columns import MISSING, CodedColumn


@dataclass(frozen=True, slots=True)
class RawBatch:
    """`ids_BC` int32, `numeric_BN` float32; `labels_BT` float32 of 0 and 1, 0 where unknown, or None if no label was
    read; `known_BT` bool, None where all are known; `weights_B` float32, read with labels where the rows have them;
    `kept` has the raw columns that were asked for."""

    ids_BC: Tensor
    numeric_BN: Tensor
    labels_BT: Tensor | None = None
    known_BT: Tensor | None = None
    weights_B: Tensor | None = None
    kept: Kept | None = None

    def __len__(self) -> int:
        return int(self.ids_BC.shape[0])

    @property
    def labels_B(self) -> Tensor | None:
        """Those of the main label."""
        return None if self.labels_BT is None else self.labels_BT[:, 0]


class RawEncoder:
    """Encodes raw rows with the schema and vocabularies of a data set or run folder.

    Every row gives one encoded row, in order: a row that cannot be read is an error, never left out. Columns
    that are no field are ignored; values that training did not see get the out-of-vocabulary id.

    Raises: DataError if the folder is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.schema = Schema.read(folder)
        self._config = stored_config(self.schema, folder)
        merged = [self._config.missing_is_oov(field.name) for field in self.schema.categorical]
        lengths = [field.length for field in self.schema.categorical]
        self._merged_C = np.repeat(np.array(merged, dtype=bool), lengths)
        self._forms = {name: self.schema.field(name).values for name in raw_valued(self._config)}
        tables = {field.vocabulary_name: field for field in self.schema.categorical}
        opened = {name: open_tokens(folder, field) for name, field in tables.items()}
        self._tokens = {field.name: opened[field.vocabulary_name] for field in self.schema.categorical}

    def encode_files(
        self,
        paths: Iterable[Path | str],
        *,
        batch_size: int,
        labels: bool = False,
        keep: Sequence[str] = (),
        counts: ValueCounts | None = None,
    ) -> Iterator[RawBatch]:
        """The rows of raw files or glob patterns in the order given, in batches of `batch_size` rows.

        Files have the format that the data was prepared from (header, delimiter, missing texts) or are
        Parquet; they may lack the label column. With `labels` the columns of labels and weight are read where there
        are any. Files without rows give one batch of none.

        Args:
            keep: raw columns to hand on with the batches.
            counts: what the rows are added to.
        Raises: DataError naming file and line of the first row that cannot be encoded.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        files = expand_inputs([str(path) for path in paths])
        held: list[RawBatch] = []
        num_held = 0
        given = False
        with OrderedPool(usable_threads()) as pool:
            for path in files:
                source = LogFile(path, self._config, scoring=True, labels=labels, keep=tuple(keep))
                encode = partial(self._encode_piece, labels=labels, keep=keep, counts=counts)
                for batch in pool.map(encode, source.pieces()):
                    held.append(batch)
                    num_held += len(batch)
                    if num_held >= batch_size:
                        *whole, rest = _cut(held, batch_size)
                        yield from whole
                        held, num_held, given = [rest], len(rest), True
        if num_held or (held and not given):
            yield from _cut(held, batch_size)[:1]

    def encode_table(self, table: Any, *, labels: bool = False, counts: ValueCounts | None = None) -> RawBatch:
        """The rows of a pandas, polars or pyarrow table as one batch, which are added to `counts`.

        Raises: DataError if it is no table, lacks a column, or a row (counted from 1) cannot be encoded.
        """
        wanted = needed_columns(self._config, column_names(table), "table", scoring=True, labels=labels)
        arrow = as_arrow(table, wanted)
        return self._encode(table_rows(arrow, wanted, "table"), counts)

    def _encode_piece(self, piece: Piece, *, labels: bool, keep: Sequence[str], counts: ValueCounts | None) -> RawBatch:
        raw, kept = set_apart(piece.read(), self._config, keep, labels=labels)
        return replace(self._encode(raw, counts), kept=kept)

    def _encode(self, raw: RawRows, counts: ValueCounts | None) -> RawBatch:
        rows = convert(raw, self._config, scoring=True, forms=self._forms)
        if rows.rejects:
            raise DataError(str(rows.rejects[0]))
        ids_BC = np.empty((len(rows), self.schema.num_ids), dtype=np.int32)
        for field, columns in zip(self.schema.categorical, self.schema.id_columns, strict=True):
            column = rows.categorical.get(field.name)
            if field.edges is not None:
                column = coded_buckets(rows.numeric[field.name], field.edges)
            assert column is not None  # one of the two, by the field's transform
            ids_BC[:, columns] = self._ids(field.name, column).reshape(len(rows), field.length)
        if counts is not None:
            counts.add(counts.tallied(ids_BC, missing_rows(rows.numeric[field.name] for field in self.schema.numeric)))
        if self._merged_C.any():
            ids_BC[(ids_BC == MISSING_ID) & self._merged_C] = OOV_ID
        numeric_BN = np.empty((len(rows), len(self.schema.numeric)), dtype=np.float32)
        for index, numeric in enumerate(self.schema.numeric):
            numeric_BN[:, index] = encode_numbers(rows.numeric[numeric.name], numeric)
        return RawBatch(torch.from_numpy(ids_BC), torch.from_numpy(numeric_BN), *_labels(rows), _weights(rows))

    def _ids(self, name: str, column: CodedColumn) -> npt.NDArray[np.int32]:
        by_code = self._tokens[name].ids(column.values.to_pylist()).astype(np.int32)
        assert MISSING == -1  # the code of what is appended here
        return np.append(by_code, np.int32(MISSING_ID))[column.codes_N]


def _labels(rows: FieldRows) -> tuple[Tensor | None, Tensor | None]:
    """The labels and which are known, as `RawBatch` has them."""
    if rows.labels is None:
        return None, None
    known_BT = rows.labels.labels_NT != UNKNOWN
    labels_BT = torch.from_numpy(np.where(known_BT, rows.labels.labels_NT, 0).astype(np.float32))
    return labels_BT, None if known_BT.all() else torch.from_numpy(known_BT)


def _weights(rows: FieldRows) -> Tensor | None:
    return None if rows.weights_N is None else torch.from_numpy(rows.weights_N)


def _cut(batches: list[RawBatch], size: int) -> list[RawBatch]:
    """The rows in batches of `size`, and a last one of fewer, perhaps none."""
    if len({batch.labels_BT is None for batch in batches if len(batch)}) > 1:
        raise DataError("some input files have the label column and others lack it; score them apart")
    if len({batch.weights_B is None for batch in batches if len(batch)}) > 1:
        raise DataError("some input files have the weight column and others lack it; score them apart")
    ids_BC = torch.cat([batch.ids_BC for batch in batches])
    numeric_BN = torch.cat([batch.numeric_BN for batch in batches])
    labelled = [batch for batch in batches if batch.labels_BT is not None]
    labels_BT = _joined([batch.labels_BT for batch in labelled])
    known_BT = None
    if any(batch.known_BT is not None for batch in labelled):
        known_BT = _joined(
            [
                torch.ones(batch.labels_BT.shape, dtype=torch.bool) if batch.known_BT is None else batch.known_BT
                for batch in labelled
                if batch.labels_BT is not None
            ]
        )
    weights_B = _joined([batch.weights_B for batch in batches])
    kept = joined([batch.kept for batch in batches if batch.kept is not None])
    return [
        RawBatch(
            ids_BC[start : start + size],
            numeric_BN[start : start + size],
            None if labels_BT is None else labels_BT[start : start + size],
            None if known_BT is None else known_BT[start : start + size],
            None if weights_B is None else weights_B[start : start + size],
            None if kept is None else kept.slice(start, size),
        )
        for start in range(0, len(ids_BC) + 1, size)
    ]


def _joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [one for one in tensors if one is not None]
    return torch.cat(there) if there else None
