"""Input files as pieces of work: each piece, when read, gives the raw rows of one chunk."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.config.data import DataConfig
from dmoe.config.raw_format import DELIMITERS
from dmoe.errors import DataError
from dmoe.sources.delimited import Layout, RawRows, is_utf8, parse_lines
from dmoe.sources.inputs import folder_columns
from dmoe.sources.lines import LineChunk, read_line_chunks
from dmoe.sources.quoting import IS_JSON, Quoting, Records, guess_delimiter, looks_like_json, split_line
from dmoe.sources.streams import is_parquet
from dmoe.sources.tables import marked_carriers
from dmoe.values.coded_columns import Column

PARQUET_ROWS = 1 << 17


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of a file. `end`: the bytes of the file, as it is stored, read when the chunk was taken."""

    read: Callable[[], RawRows]
    end: int


@dataclass(frozen=True)
class LogFile:
    """One input file under a data configuration.

    For `scoring` the label column is read only with `labels`, and only if the file has it; without `labels` a file
    may hold no rows. `keep` names further columns to read.
    """

    path: Path
    config: DataConfig
    scoring: bool = False
    labels: bool = False
    keep: tuple[str, ...] = ()

    def pieces(self) -> Iterator[Piece]:
        """The file's chunks in order; without rows none, or when scoring one of no rows.

        Raises: DataError if the file cannot be read or lacks a column.
        """
        kind = self.config.format.kind
        if kind == "parquet" or (kind == "auto" and is_parquet(self.path)):
            return self._parquet_pieces()
        if is_parquet(self.path):
            raise DataError(f"{self.path}: is a Parquet file, but format.kind is 'csv'")
        if self.path.suffix == ".parquet" and not self.path.stat().st_size:
            raise DataError(f"{self.path}: is not a whole Parquet file (it is empty)")
        return self._text_pieces()

    def _wanted(self, names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str | None]]:
        """The columns to read of the file, and those that its folders say. What both have is the file's."""
        beside = {name: text for name, text in folder_columns(self.path).items() if name not in names}
        wanted = needed_columns(
            self.config,
            [*names, *beside],
            str(self.path),
            scoring=self.scoring,
            labels=self.labels,
            keep=self.keep,
        )
        return tuple(name for name in wanted if name not in beside), {
            name: beside[name] for name in wanted if name in beside
        }

    @property
    def _shows_columns(self) -> bool:
        """Whether a file without rows has a piece of none: what is kept of scored rows has types all the same."""
        return self.scoring and not self.labels

    def _text_pieces(self) -> Iterator[Piece]:
        chunks = read_line_chunks(self.path)
        first = next((chunk for chunk in chunks if chunk.data.strip(b"\r\n")), None)
        if first is None:
            return
        layout, beside, skipped = self._layout(first)
        if layout.quoting.line_breaks:
            # Which lines belong together is known by the number of columns only.
            records = Records(layout.quoting, len(layout.names))
            chunks = read_line_chunks(self.path, records=records)
            first = next(chunk for chunk in chunks if chunk.data.strip(b"\r\n"))
        if skipped:
            first = _after_lines(first, skipped)
        rows = False
        for chunk in chain([first], chunks):
            if chunk.data:
                rows = rows or bool(chunk.data.strip(b"\r\n"))
                yield Piece(partial(_text_rows, chunk, layout, str(self.path), beside), chunk.end)
        if not rows and self._shows_columns:
            empty = LineChunk(first.first_line, b"", first.end)
            yield Piece(partial(_text_rows, empty, layout, str(self.path), beside), 0)

    def _layout(self, first: LineChunk) -> tuple[Layout, dict[str, str | None], int]:
        """How the file's columns lie, those of its folders, and how many lines the header takes (with blank lines
        before it)."""
        form = self.config.format
        lead = len(first.data) - len(first.data.lstrip(b"\r\n"))
        number = first.data.count(b"\n", 0, lead)
        line_number = first.first_line + number
        raw = first.data[lead:].split(b"\n", 1)[0].removesuffix(b"\r")
        if b"\r" in raw and (form.columns is None or b"\n" not in first.data):
            raise DataError(f"{self.path}:{line_number}: lines end in a bare carriage return; use line feeds")
        if form.columns is None and not is_utf8(raw):
            raise DataError(f"{self.path}:{line_number}: the header is not UTF-8")
        line = raw.decode("utf-8", errors="replace")
        delimiter = form.delimiter
        if delimiter == "auto":
            delimiter = guess_delimiter(line, form.quote, {d: self._fits(line, d) for d in DELIMITERS})
        quoting = Quoting(delimiter, form.quote, form.escape is not None, form.line_breaks)
        values = split_line(line, delimiter, form.quote, escape=quoting.escape)
        if form.columns is not None:
            names = next((one for one in self._layouts(form.columns) if len(one) == len(values or ())), form.columns)
            wanted, beside = self._wanted(names)
            return Layout(names, quoting, wanted), beside, 0
        if looks_like_json(line):
            raise DataError(f"{self.path}:{line_number}: {IS_JSON}")
        if values is None:
            raise DataError(f"{self.path}:{line_number}: stray quote in the header")
        wanted, beside = self._wanted(values)
        return Layout(tuple(values), quoting, wanted, raw), beside, number + 1

    def _layouts(self, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The columns that a file without a header may have: rows to be scored may lack the labels, or these and the
        weight."""
        if not self.scoring:
            return [columns]
        labels, weight = self.config.label_columns(), self.config.weight
        unknown = [labels] if weight is None else [labels, [*labels, weight.column]]
        return [columns, *(tuple(name for name in columns if name not in one) for one in unknown)]

    def _fits(self, line: str, delimiter: str) -> bool:
        values = split_line(line, delimiter, self.config.format.quote) or []
        columns = self.config.format.columns
        if columns is not None:
            return any(len(values) == len(names) for names in self._layouts(columns))
        needed = self.config.field_columns() if self.scoring else self.config.columns()
        return set(needed) <= {*values, *folder_columns(self.path)}

    def _parquet_pieces(self) -> Iterator[Piece]:
        try:
            with pq.ParquetFile(self.path) as file:
                wanted, beside = self._wanted(file.schema_arrow.names)
                line, size, rows = 1, self.path.stat().st_size, file.metadata.num_rows
                if not rows and self._shows_columns:
                    table = file.schema_arrow.empty_table().select(list(wanted))
                    yield Piece(partial(_typed_rows, table, wanted, str(self.path), 1, beside), 0)
                for batch in file.iter_batches(PARQUET_ROWS, columns=list(wanted)) if rows else ():
                    table = pa.Table.from_batches([batch])
                    end = size * (line - 1 + table.num_rows) // rows
                    yield Piece(partial(_typed_rows, table, wanted, str(self.path), line, beside), end)
                    line += table.num_rows
        except (pa.ArrowException, OSError) as error:
            text = str(error).splitlines()[0]
            raise DataError(f"{self.path}: is not a whole Parquet file ({text})") from None


def _text_rows(chunk: LineChunk, layout: Layout, file: str, beside: Mapping[str, str | None]) -> RawRows:
    return _with_beside(parse_lines(chunk, layout, file), beside)


def _typed_rows(
    table: pa.Table, wanted: Sequence[str], file: str, line: int, beside: Mapping[str, str | None]
) -> RawRows:
    return _with_beside(table_rows(table, wanted, file, line), beside)


def _with_beside(rows: RawRows, beside: Mapping[str, str | None]) -> RawRows:
    """The rows with the columns that their file's folders say."""
    if not beside:
        return rows
    count = len(rows.lines_N)
    columns = {name: pa.repeat(pa.scalar(text, pa.string()), count) for name, text in beside.items()}
    return replace(rows, columns={**rows.columns, **columns})


def needed_columns(
    config: DataConfig,
    names: Sequence[str],
    where: str,
    *,
    scoring: bool = False,
    labels: bool = False,
    keep: Sequence[str] = (),
) -> tuple[str, ...]:
    """The columns to read of those that there are; `where` names their file or table.

    Raises: DataError if one is missing or appears twice.
    """
    needed = config.columns()
    if scoring:
        needed = config.field_columns()
        if labels:
            weight = [] if config.weight is None else [config.weight.column]
            needed = [*(column for column in (*config.label_columns(), *weight) if column in names), *needed]
    needed = list(dict.fromkeys([*needed, *keep]))
    for column in needed:
        if column not in names:
            shown = [name if len(name) <= 40 else f"{name[:39]}…" for name in names[:8]]
            has = f"it has {', '.join(shown)}{', …' if len(names) > 8 else ''}"
            close = difflib.get_close_matches(column, names, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            if len(names) == 1:
                hint = "; is format.delimiter right for this file?"
            raise DataError(f"{where}: no column '{column}'{hint} ({has})")
        if list(names).count(column) > 1:
            raise DataError(f"{where}: column '{column}' appears twice")
    return tuple(needed)


def table_rows(table: pa.Table, wanted: Sequence[str], file: str, first_line: int = 1) -> RawRows:
    """The rows of a typed table; `first_line` is the number of its first row."""
    lines = np.arange(first_line, first_line + table.num_rows)
    columns = {name: _typed(table.column(name).combine_chunks()) for name in wanted}
    return RawRows(file, lines, columns, carriers=marked_carriers(table.schema))


def _typed(column: Column) -> Column:
    """A column of nothing but missing values may come without a type."""
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column


def _after_lines(chunk: LineChunk, count: int) -> LineChunk:
    position = 0
    for _ in range(count):
        found = chunk.data.find(b"\n", position)
        position = len(chunk.data) if found < 0 else found + 1
    inside = tuple(at - position for at in chunk.inside)
    return LineChunk(chunk.first_line + count, chunk.data[position:], chunk.end, inside)
