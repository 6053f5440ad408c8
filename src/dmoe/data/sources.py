"""Input files as pieces of work: each piece, when read, gives the raw rows of one chunk."""

import difflib
import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.data.config import DELIMITERS, SPLITS, DataConfig
from dmoe.data.lines import LineChunk, is_parquet, read_line_chunks
from dmoe.data.parse import Layout, RawRows, guess_delimiter, is_utf8, parse_lines, split_line
from dmoe.errors import ConfigError, DataError

PARQUET_ROWS = 1 << 17


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of a file. `end`: the bytes of the file, as it is stored, read when the chunk was taken."""

    read: Callable[[], RawRows]
    end: int


def expand_inputs(inputs: Sequence[str]) -> list[Path]:
    """Paths and glob patterns as paths, patterns sorted by name.

    Raises: DataError if a pattern or path matches nothing, or a file comes twice.
    """
    paths: list[Path] = []
    for text in inputs:
        # A file whose name holds brackets is itself, not a pattern.
        if Path(text).exists() or not glob.has_magic(text):
            paths.append(Path(text))
            continue
        matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 (patterns may be absolute)
        if not matches:
            raise DataError(f"{text}: no file matches this pattern")
        paths += map(Path, matches)
    if not paths:
        raise DataError("no input file given; name at least one by --input")
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file")
        if path.resolve() in seen:
            raise DataError(f"{path}: given twice; its rows would count twice")
        seen.add(path.resolve())
    return paths


def split_inputs(
    config: DataConfig, inputs: Sequence[str], *, needs_train: bool = True
) -> list[tuple[Path, str | None]]:
    """Each input file, with its split if the splits are given, in the order train, valid, test.

    Raises: ConfigError if inputs say no split where they must; DataError as `expand_inputs`.
    """
    if config.split.kind != "given":
        return [(path, None) for path in expand_inputs(inputs)]
    by_split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for text in inputs:
        name, equals, path = text.partition("=")
        if not equals or name not in SPLITS:
            raise ConfigError(f"--input {text}: split kind 'given' needs train=FILE, valid=FILE or test=FILE")
        by_split[name].append(path)
    if needs_train and not by_split["train"]:
        raise ConfigError("split kind 'given' needs at least one --input train=FILE")
    expand_inputs([path for paths in by_split.values() for path in paths])
    return [(path, name) for name in SPLITS if by_split[name] for path in expand_inputs(by_split[name])]


@dataclass(frozen=True)
class Source:
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
        """The file's chunks in order.

        Raises: DataError if the file cannot be read, lacks a column, or holds no row where it must.
        """
        kind = self.config.format.kind
        if kind == "parquet" or (kind == "auto" and is_parquet(self.path)):
            return self._parquet_pieces()
        if is_parquet(self.path):
            raise DataError(f"{self.path}: is a Parquet file, but format.kind is 'csv'")
        return self._text_pieces()

    def _wanted(self, names: Sequence[str]) -> tuple[str, ...]:
        return needed_columns(
            self.config, names, str(self.path), scoring=self.scoring, labels=self.labels, keep=self.keep
        )

    @property
    def _may_be_empty(self) -> bool:
        return self.scoring and not self.labels

    def _text_pieces(self) -> Iterator[Piece]:
        chunks = read_line_chunks(self.path)
        first = next(chunks)
        layout, skipped = self._layout(first)
        if skipped:
            first = LineChunk(first.first_line + skipped, _after_line(first.data, skipped), first.end)
        rows = False
        for chunk in chain([first], chunks):
            if chunk.data:
                rows = rows or bool(chunk.data.strip(b"\r\n"))
                yield Piece(partial(parse_lines, chunk, layout, str(self.path)), chunk.end)
        if not rows and self._may_be_empty:
            yield Piece(partial(parse_lines, LineChunk(first.first_line, b"", first.end), layout, str(self.path)), 0)
        elif not rows:
            raise DataError(f"{self.path}: holds a header but no rows" if skipped else f"{self.path}: is empty")

    def _layout(self, first: LineChunk) -> tuple[Layout, int]:
        """How the file's columns lie, and how many lines its header takes (with blank lines before it)."""
        form = self.config.format
        lead = len(first.data) - len(first.data.lstrip(b"\r\n"))
        if lead == len(first.data):
            raise DataError(f"{self.path}: is empty")
        number = first.data.count(b"\n", 0, lead)
        raw = first.data[lead:].split(b"\n", 1)[0].removesuffix(b"\r")
        if b"\r" in raw and (form.columns is None or b"\n" not in first.data):
            raise DataError(f"{self.path}:{number + 1}: lines end in a bare carriage return; use line feeds")
        if form.columns is None and not is_utf8(raw):
            raise DataError(f"{self.path}:{number + 1}: the header is not UTF-8")
        line = raw.decode("utf-8", errors="replace")
        delimiter = form.delimiter
        if delimiter == "auto":
            delimiter = guess_delimiter(line, form.quote, {d: self._fits(line, d) for d in DELIMITERS})
        values = split_line(line, delimiter, form.quote)
        if form.columns is not None:
            names = form.columns
            if self.scoring and values is not None and len(values) == len(names) - 1:
                names = tuple(name for name in names if name != self.config.label)
            return Layout(names, delimiter, form.quote, self._wanted(names)), 0
        if values is None:
            raise DataError(f"{self.path}:{number + 1}: stray quote in the header")
        return Layout(tuple(values), delimiter, form.quote, self._wanted(values)), number + 1

    def _fits(self, line: str, delimiter: str) -> bool:
        values = split_line(line, delimiter, self.config.format.quote) or []
        columns = self.config.format.columns
        if columns is not None:
            return len(values) == len(columns) or (self.scoring and len(values) == len(columns) - 1)
        needed = self.config.field_columns() if self.scoring else self.config.columns()
        return set(needed) <= set(values)

    def _parquet_pieces(self) -> Iterator[Piece]:
        try:
            with pq.ParquetFile(self.path) as file:
                wanted = self._wanted(file.schema_arrow.names)
                if file.metadata.num_rows == 0:
                    if not self._may_be_empty:
                        raise DataError(f"{self.path}: holds no rows")
                    empty = file.schema_arrow.empty_table().select(list(wanted))
                    yield Piece(partial(table_rows, empty, wanted, str(self.path)), 0)
                line, size = 1, self.path.stat().st_size
                for batch in file.iter_batches(PARQUET_ROWS, columns=list(wanted)):
                    table = pa.Table.from_batches([batch])
                    end = size * (line - 1 + table.num_rows) // file.metadata.num_rows
                    yield Piece(partial(table_rows, table, wanted, str(self.path), line), end)
                    line += table.num_rows
        except (pa.ArrowException, OSError) as error:
            text = str(error).splitlines()[0]
            raise DataError(f"{self.path}: is not a whole Parquet file ({text})") from None


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
        if labels and config.label in names:
            needed = [config.label, *needed]
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
    columns = {name: table.column(name).combine_chunks() for name in wanted}
    return RawRows(file, lines, columns)


def _after_line(data: bytes, count: int) -> bytes:
    position = 0
    for _ in range(count):
        found = data.find(b"\n", position)
        position = len(data) if found < 0 else found + 1
    return data[position:]
