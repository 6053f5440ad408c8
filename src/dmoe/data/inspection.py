"""What is in a raw log: its columns, how telling each is, and a data.yaml to start from.

N rows that were read, V distinct texts of a column.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dmoe.data.coded import Column, as_text, pc
from dmoe.data.config import DELIMITERS, DataConfig
from dmoe.data.lines import is_parquet, read_line_chunks
from dmoe.data.parse import guess_delimiter, split_line
from dmoe.data.sources import Source, expand_inputs
from dmoe.data.telling import mutual_information
from dmoe.data.values import Fault, parse_label, parse_number, time_parser
from dmoe.errors import DataError
from dmoe.validation import validate

LABEL_NAMES = ("label", "click", "clicked", "is_click", "y", "target", "conversion")
MISSING_TEXTS = ("", "NA", "N/A", "null", "NULL", "None", "nan", "NaN", "\\N")
BLOCKS = 20
_NUMBER_BUCKETS = 50
_FEW_VALUES = 20
_TIME_FORMATS = ("yymmddhh", "iso", "unix")
_SEPARATORS = ("|", "^", ";", " ")
_MOST_LENGTH = 50


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """`kind`: categorical, multi-valued, numeric, time, row id or constant. `information`: bits about the label.

    `format` is that of a time, or the separator of a multi-valued column, of which `length` is the most values of a
    row; `top` holds the most frequent texts with their rows.
    """

    name: str
    kind: str
    distinct: int
    missing: float
    information: float
    top: list[tuple[str, int]]
    format: str | None = None
    length: int = 1


@dataclass(frozen=True, slots=True)
class Inspection:
    """`rates`: start of a day or first row of a block, its rows and its label rate. `config`: the data.yaml."""

    rows: int
    rejected: int
    whole: bool
    label: str
    rate: float
    columns: list[ColumnFacts]
    rates: list[tuple[str, int, float]]
    config: dict[str, Any]

    def yaml(self) -> str:
        return yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True, width=110)


def inspect_log(inputs: Sequence[str], *, label: str | None, max_rows: int) -> Inspection:
    """The first `max_rows` rows of raw logs of one format.

    Raises: DataError if a file cannot be read or has no column of 0 and 1.
    """
    paths = expand_inputs(inputs)
    form, names = _format(paths[0])
    if label is not None and label not in names:
        raise DataError(f"{paths[0]}: no column '{label}' to be the label; it has {', '.join(names[:8])}")
    # Which columns are fields is not known yet: all are read as texts.
    fields = {"categorical": names[1:]}
    reading = validate(DataConfig, {"label": names[0], "fields": fields, "format": form}, str(paths[0]))
    table, rejected, whole = _read(paths, reading, max_rows)
    missing = _missing_texts(table)
    label = label or _find_label(table, names, str(paths[0]))
    labels_N = _labels(table[label], label, str(paths[0]))
    rejected += int((labels_N < 0).sum())
    table, labels_N = table.filter(pa.array(labels_N >= 0)), labels_N[labels_N >= 0]
    columns = [_facts(name, table[name], labels_N, missing) for name in names if name != label]
    time = next((column for column in columns if column.kind == "time"), None)
    return Inspection(
        len(labels_N),
        rejected,
        whole,
        label,
        float(labels_N.mean()),
        columns,
        _rates(labels_N, None if time is None else (time, table[time.name])),
        _suggest(columns, label, labels_N, form, missing),
    )


def _format(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The `format` of a data.yaml for this file, and its columns: named c0, c1, … if it has no header."""
    if is_parquet(path):
        try:
            names = list(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: is not a whole Parquet file ({str(error).splitlines()[0]})") from None
        if len(names) < 2:
            raise DataError(f"{path}: one column only; expected a label and fields")
        return {"kind": "parquet"}, names
    first = next(read_line_chunks(path)).data.lstrip(b"\r\n").split(b"\n", 1)[0].removesuffix(b"\r")
    line = first.decode("utf-8", errors="replace")
    delimiter = guess_delimiter(line, '"')
    values = split_line(line, delimiter, '"') or []
    if len(values) < 2:
        shown = ", ".join(repr(one) for one in DELIMITERS)
        raise DataError(f"{path}:1: one column only; expected a header or row with one of {shown} between values")
    form: dict[str, Any] = {"kind": "csv", "delimiter": delimiter}
    if len(set(values)) == len(values) and all(value and isinstance(parse_number(value), Fault) for value in values):
        return form, values
    names = [f"c{index}" for index in range(len(values))]
    return {**form, "header": False, "columns": names}, names


def _read(paths: Sequence[Path], reading: DataConfig, max_rows: int) -> tuple[pa.Table, int, bool]:
    tables: list[pa.Table] = []
    rows, rejected, cut = 0, 0, False
    pieces: Iterator[Any] = chain.from_iterable(
        Source(path, reading, scoring=True, labels=True).pieces() for path in paths
    )
    for piece in pieces:
        raw = piece.read()
        texts = {name: _as_text(column, name) for name, column in raw.columns.items()}
        table = pa.table(texts)
        tables.append(table.slice(0, max_rows - rows))
        cut = tables[-1].num_rows < table.num_rows
        rows += tables[-1].num_rows
        rejected += len(raw.rejects)
        if rows == max_rows:
            break
    if not rows:
        raise DataError(f"{paths[0]}: holds no row that can be read")
    return pa.concat_tables(tables), rejected, not cut and next(pieces, None) is None


def _as_text(column: Column, name: str) -> Column:
    """Texts; lists as their values with the first separator between them."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        values = as_text(pc.list_flatten(column), name)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        offsets: Column = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        lists: Column = pa.ListArray.from_arrays(offsets, pc.fill_null(values, ""))
        return pc.binary_join(lists, _SEPARATORS[0])
    return as_text(column, name)


def _missing_texts(table: pa.Table) -> list[str]:
    """The usual words for a missing value that occur, the empty text always."""
    found = {""}
    for column in table.columns:
        found |= {text for text in MISSING_TEXTS if text in column.unique().to_pylist()}
    return [text for text in MISSING_TEXTS if text in found]


def _find_label(table: pa.Table, names: list[str], where: str) -> str:
    """A column of 0 and 1: by its name, or else the first."""
    fits = [name for name in names if _is_label(table[name])]
    if not fits:
        raise DataError(f"{where}: no column holds 0 and 1 only; name the label by --label")
    named = [name for name in fits if name.lower() in LABEL_NAMES]
    return (named or fits)[0]


def _is_label(column: Column) -> bool:
    values = column.unique().to_pylist()
    return len(values) <= 4 and {parse_label(str(value)) for value in values if value is not None} == {0, 1}


def _labels(column: Column, name: str, where: str) -> npt.NDArray[np.int64]:
    """0 and 1, and -1 where it is neither."""
    encoded = column.combine_chunks().dictionary_encode()
    parsed = [parse_label(str(text)) for text in encoded.dictionary.to_pylist()]
    by_code = np.array([-1 if isinstance(label, Fault) else label for label in parsed] + [-1], dtype=np.int64)
    labels_N: npt.NDArray[np.int64] = by_code[encoded.indices.fill_null(len(parsed)).to_numpy(zero_copy_only=False)]
    if not (labels_N >= 0).any():
        raise DataError(f"{where}: label '{name}' holds neither 0 nor 1; name another by --label")
    return labels_N


def _facts(name: str, column: Column, labels_N: npt.NDArray[np.int64], missing: Sequence[str]) -> ColumnFacts:
    encoded = column.combine_chunks().dictionary_encode()
    texts: list[str] = encoded.dictionary.to_pylist()
    codes_N = encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    counts_V = np.bincount(codes_N, minlength=len(texts) + 1)
    positives_V = np.bincount(codes_N, weights=labels_N, minlength=len(texts) + 1).astype(np.int64)
    present_V = np.array([text not in missing for text in texts] + [False])
    rows = int(counts_V[present_V].sum())
    order = np.argsort(-counts_V * present_V, kind="stable")[: min(5, int(present_V.sum()))]
    top = [(texts[code], int(counts_V[code])) for code in order]
    given = [text for text, there in zip(texts, present_V, strict=False) if there]
    kind, form = _kind(given, top, rows)
    separator = _separator(given) if kind in ("categorical", "row id") else None
    length = 1
    if separator is not None:
        kind, form = "multi-valued", separator
        length = min(max(text.count(separator) + 1 for text in given), _MOST_LENGTH)
    if kind == "numeric":
        # Missing values are one more bucket.
        groups_V = np.full(len(texts) + 1, _NUMBER_BUCKETS)
        groups_V[present_V] = _number_groups([texts[code] for code in np.flatnonzero(present_V)], counts_V[present_V])
    else:
        groups_V = np.where(present_V, np.arange(len(texts) + 1), len(texts))
    information = mutual_information(
        np.bincount(groups_V, weights=counts_V).astype(np.int64),
        np.bincount(groups_V, weights=positives_V).astype(np.int64),
    )
    return ColumnFacts(name, kind, int(present_V.sum()), 1 - rows / len(codes_N), information, top, form, length)


def _number_groups(texts: Sequence[str], counts_V: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers in groups of about equal rows, from 0 to `_NUMBER_BUCKETS` - 1."""
    order = np.argsort([float(text) for text in texts], kind="stable")
    below = np.cumsum(counts_V[order]) - counts_V[order]
    groups = np.empty(len(texts), dtype=np.int64)
    groups[order] = below * _NUMBER_BUCKETS // counts_V.sum()
    return groups


def _kind(texts: Sequence[str], top: Sequence[tuple[str, int]], rows: int) -> tuple[str, str | None]:
    """The kind of a column of these distinct values, and the format of a time."""
    if len(texts) <= 1:
        return "constant", None
    for form in _TIME_FORMATS:
        parse: Callable[[str], object] = time_parser(form)
        if all(_looks_like(form, text) and parse(text) is not None for text in texts):
            return "time", form
    if len(texts) >= 0.999 * rows and rows > 100 and not any("." in text for text in texts):
        return "row id", None
    if any(isinstance(parse_number(text), Fault) for text in texts) or len(texts) <= _FEW_VALUES:
        return "categorical", None
    # Integers may be codes or counts: counts are often 0, 1 or 2.
    counts = any(float(text) in (0, 1, 2) for text, _ in top[:3])
    return ("numeric" if counts or any("." in text for text in texts) else "categorical"), None


def _separator(texts: Sequence[str]) -> str | None:
    """What stands between the values of lists: in many texts, whose parts come again in other texts."""
    for separator in _SEPARATORS:
        lists = [text.split(separator) for text in texts if separator in text]
        parts = {part for one in lists for part in one}
        if len(lists) >= max(0.2 * len(texts), _FEW_VALUES) and 2 * len(parts) <= len(lists):
            return separator
    return None


def _looks_like(form: str, text: str) -> bool:
    """Narrower than what the format reads: a time of this century, in the digits that times have."""
    if form == "unix":
        return len(text.split(".")[0]) == 10 and text[0] in "12"
    return len(text) == 8 if form == "yymmddhh" else len(text) >= 10


def _rates(labels_N: npt.NDArray[np.int64], time: tuple[ColumnFacts, Column] | None) -> list[tuple[str, int, float]]:
    """Rows and label rate by day, or else by block of rows."""
    if time is None:
        blocks = np.array_split(np.arange(len(labels_N)), min(BLOCKS, len(labels_N)))
        return [(str(block[0] + 1), len(block), float(labels_N[block].mean())) for block in blocks]
    facts, column = time
    encoded = column.combine_chunks().dictionary_encode()
    parse = time_parser(str(facts.format))
    parsed = [parse(text) for text in encoded.dictionary.to_pylist()]
    days = ["" if one is None else f"{one:%Y-%m-%d}" for one in parsed] + [""]
    names, by_code = np.unique(days, return_inverse=True)
    day_N = by_code[encoded.indices.fill_null(len(parsed)).to_numpy(zero_copy_only=False)]
    counts, positives = np.bincount(day_N), np.bincount(day_N, weights=labels_N)
    return [
        (str(name), int(count), float(clicks / count))
        for name, count, clicks in zip(names, counts, positives, strict=True)
        if name and count
    ]


def _suggest(
    columns: Sequence[ColumnFacts],
    label: str,
    labels_N: npt.NDArray[np.int64],
    form: dict[str, Any],
    missing: Sequence[str],
) -> dict[str, Any]:
    """A data.yaml that prepares this log."""
    categorical = [column.name for column in columns if column.kind == "categorical"]
    numeric = [column.name for column in columns if column.kind == "numeric"]
    several = {
        column.name: {"separator": column.format, "max_length": column.length}
        for column in columns
        if column.kind == "multi-valued"
    }
    derive: dict[str, Any] = {}
    taken = {column.name for column in columns}
    for column in columns:
        if column.kind == "time":
            for take in ("hour", "weekday", "weekend"):
                name = next(one for one in (take, f"{column.name}_{take}") if one not in taken - {column.name})
                taken.add(name)
                derive[name] = {"column": column.name, "take": take, "format": column.format}
    if not (categorical or numeric or several or derive):
        raise DataError("no column can be a field: all are constant or the number of the row")
    few = min(int(labels_N.sum()), int(len(labels_N) - labels_N.sum())) < 1000
    time = next((column for column in columns if column.kind == "time" and not column.missing), None)
    split: dict[str, Any] = {"kind": "stratified"}
    if time is not None and not few:
        split = {"kind": "time", "column": time.name, "compare": "text" if time.format == "iso" else "number"}
    fields: dict[str, Any] = {"min_count": 1 if len(labels_N) < 10_000 else 2}
    fields["categorical"] = [*categorical, *derive]
    if numeric:
        fields["numeric"] = {name: {"transform": "log", "standardise": True} for name in numeric}
    if several:
        fields["multi_valued"] = several
    values: dict[str, Any] = {"label": label, "split": split, "fields": fields}
    if derive:
        values["derive"] = derive
    values["format"] = {**form, "missing": list(missing)}
    validate(DataConfig, values, "suggested data.yaml")
    return values
