"""What is in a raw log: its columns, how telling each is, and a data.yaml to start from.

N rows that were read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.config.data import DataConfig
from dmoe.config.raw_format import DELIMITERS
from dmoe.errors import DataError
from dmoe.inspection.columns import TextColumn, read_rows
from dmoe.inspection.kinds import ColumnFacts, Found, Reader, left_out
from dmoe.inspection.label_contents import LabelPair, pairs_of
from dmoe.inspection.leaks import (
    SampleColumn,
    Suspicion,
    label_suspicions,
    order_suspicions,
    telling_suspicions,
    unseen_suspicion,
)
from dmoe.inspection.log_labels import LogLabel, also_labels, find_labels, nested
from dmoe.inspection.suggest import Suggestion, suggest
from dmoe.inspection.trial import ReadingTrial
from dmoe.schema import UNKNOWN
from dmoe.sources.inputs import expand_inputs, folder_columns
from dmoe.sources.lines import read_line_chunks
from dmoe.sources.quoting import IS_JSON, guess_delimiter, looks_like_json, split_line
from dmoe.sources.streams import is_parquet
from dmoe.tokens.scalars import Fault, parse_number
from dmoe.validation import validate

BLOCKS = 20
# Readings are tried on so many rows.
TRIAL_ROWS = 300_000
QUOTING_ROWS = 50_000
# Kinds of suspicion that are certain.
_NO_FIELDS = ("is the label", "differs in each row", "rises with the row")
_QUOTINGS: tuple[dict[str, Any], ...] = (
    {"line_breaks": True},
    {"escape": "backslash"},
    {"escape": "backslash", "line_breaks": True},
    {"quote": None},
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """`label` and `rate` are those of the main one of the `labels`; `pairs`: how often two of them go together.

    `rates`: start of a day or first row of a block, its rows and its label rate. `config`: the data.yaml.
    `other_labels`: the columns that the label might be as well, where it was chosen for its place only.
    `rare_labels`: those of which a held-out split may lack a class; in `config` only if they were asked for.
    """

    rows: int
    rejected: int
    whole: bool
    label: str
    rate: float
    labels: list[dict[str, Any]]
    pairs: list[LabelPair]
    columns: list[ColumnFacts]
    rates: list[tuple[str, int, float]]
    config: dict[str, Any]
    comments: dict[str, str] = field(default_factory=dict)
    warnings: list[Suspicion] = field(default_factory=list)
    other_labels: list[str] = field(default_factory=list)
    rare_labels: list[str] = field(default_factory=list)

    def yaml(self) -> str:
        """The data.yaml, with what else its columns may be as comments."""
        return Suggestion(self.config, self.comments).text()


def inspect_log(
    inputs: Sequence[str],
    *,
    label: str | Sequence[str] | None = None,
    positive: Sequence[str] = (),
    max_rows: int,
) -> Inspection:
    """The first `max_rows` rows of raw logs of one format; `label` names its label, or several, the main one first.

    Args:
        positive: the values of the main label that are a click; by default 1, true, yes and the like.
    Raises: DataError if a file cannot be read or has no column of 0 and 1.
    """
    paths = expand_inputs(inputs)
    first = next((path for path in paths if path.stat().st_size), paths[0])
    form, names = _format(first)
    names += [name for name in folder_columns(first) if name not in names]
    asked = [label] if isinstance(label, str) else list(label or ())
    for name in asked:
        if name not in names:
            raise DataError(f"{first}: no column '{name}' to be the label; it has {', '.join(names[:8])}")
    # Which columns are fields is not known yet: all are read as texts.
    fields = {"categorical": {f"column {index}": {"column": name} for index, name in enumerate(names[1:])}}
    reading = validate(DataConfig, {"label": names[0], "fields": fields, "format": form}, str(first))
    form, reading = _quoting(paths, form, reading, names)
    found = read_rows(paths, reading, names, max_rows)
    labels, others = find_labels(found, asked, str(first), positive)
    keep_N = labels[0].labels_N != UNKNOWN
    taken = {one.column for one in labels}
    columns = {
        name: one if keep_N.all() else one.kept(keep_N) for name, one in found.columns.items() if name not in taken
    }
    labels = [one.kept(keep_N) for one in labels]
    pairs = pairs_of({one.name: one.labels_N for one in labels})
    labels_N = labels[0].labels_N
    judge = ReadingTrial.of_rows(labels_N[:TRIAL_ROWS])
    reader = Reader(labels_N, judge)
    seen = [
        left_out(name, found.left_out[name]) if name in found.left_out else reader.read(columns[name])
        for name in names
        if name not in taken
    ]
    warnings = [found for one in labels for found in _suspicions(seen, columns, one, several=len(labels) > 1)]
    seen = _without(seen, warnings)
    suggestion = suggest(columns, seen, labels, form, asked=bool(asked))
    said = suggestion.config.get("labels", {})
    notes = {f"label {name}": note for name, note in nested(labels, pairs).items() if name in said}
    suggestion.comments.update(notes)
    for name in also_labels(found, labels):
        suggestion.comments[name] = "may be a label; what is known only after the row was shown is no field"
    if others:
        suggestion.comments["label"] = f"the first column of two values; others: {', '.join(others)}"
    return Inspection(
        len(labels_N),
        found.rejected + int((~keep_N).sum()),
        found.whole,
        labels[0].name,
        float(labels_N.mean()),
        [one.facts() for one in labels],
        pairs,
        [one.facts for one in seen],
        _rates(labels_N, next((one for one in seen if one.times is not None), None), columns),
        suggestion.config,
        suggestion.comments,
        warnings,
        others,
        list(suggestion.rare),
    )


def _quoting(
    paths: Sequence[Path], form: dict[str, Any], reading: DataConfig, names: Sequence[str]
) -> tuple[dict[str, Any], DataConfig]:
    """The format with what it must say of quoted values: the plainest way that rejects least of the first rows."""
    if form["kind"] != "csv":
        return form, reading

    def rejected(said: dict[str, Any]) -> tuple[float, dict[str, Any], DataConfig]:
        tried = validate(
            DataConfig, {**reading.model_dump(exclude_unset=True), "format": {**form, **said}}, str(paths[0])
        )
        try:
            found = read_rows(paths, tried, names, QUOTING_ROWS)
        except DataError:
            return 1.0, {**form, **said}, tried
        return found.rejected / (found.rows + found.rejected), {**form, **said}, tried

    least = rejected({})
    if least[0] > 0:
        least = min([least, *map(rejected, _QUOTINGS)], key=lambda one: one[0])
    return least[1:]


def _suspicions(
    seen: Sequence[Found], columns: dict[str, TextColumn], label: LogLabel, *, several: bool
) -> Iterator[Suspicion]:
    """What is suspicious about the fields that are suggested, and about a label along the rows where it is known."""
    name = label.name if several else None
    rows_N = np.flatnonzero(label.labels_N != UNKNOWN)
    yield from (one.of_label(name) for one in label_suspicions([("the log", label.labels_N[rows_N])]))
    rows_N = rows_N[:TRIAL_ROWS]
    judge = ReadingTrial.of_rows(label.labels_N[rows_N])
    for one in seen:
        facts = one.facts
        if facts.kind not in ("categorical", "numeric"):
            continue
        column = columns[facts.name]
        size = len(column.texts)
        codes_N = column.codes_N[rows_N].astype(np.int64)
        codes_N[codes_N < 0] = size
        numbers_N = None if one.numbers_V is None else np.append(one.numbers_V, np.nan)[codes_N]
        words = partial(_quoted, column)
        sample = SampleColumn(facts.name, codes_N, size + 1, size, words, numbers_N, is_number=facts.kind == "numeric")
        if not label.main:
            yield from (found.of_label(name) for found in telling_suspicions(sample, judge))
            continue
        order, told = order_suspicions(sample, judge.fit_N), telling_suspicions(sample, judge)
        later = int((~judge.fit_N).sum())
        new = unseen_suspicion(facts.name, "later rows", facts.unseen.get(1, 0.0), later, 0.0, in_order=True)
        yield from [*order, *(found.of_label(name) for found in told)] or ([new] if new is not None else [])


def _without(seen: Sequence[Found], warnings: Sequence[Suspicion]) -> list[Found]:
    """The columns, of which those that can only mislead are no field: the label itself, and what numbers the rows."""
    why = {one.field: one.text for one in warnings if one.kind in _NO_FIELDS}

    def left(facts: ColumnFacts) -> ColumnFacts:
        notes = [note for note in (facts.note, why.get(facts.name)) if note is not None]
        return replace(facts, kind="left out", note="; ".join(notes)) if facts.name in why else facts

    return [replace(one, facts=left(one.facts)) for one in seen]


def _quoted(column: TextColumn, code: int) -> str:
    return repr(column.texts[code].as_py()) if code < len(column.texts) else "a missing one"


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
    start = next((chunk.data.lstrip(b"\r\n") for chunk in read_line_chunks(path)), b"")
    if not start:
        raise DataError(f"{path}: is empty")
    first = start.split(b"\n", 1)[0].removesuffix(b"\r")
    line = first.decode("utf-8", errors="replace")
    if looks_like_json(line):
        raise DataError(f"{path}:1: {IS_JSON}")
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


def _rates(
    labels_N: npt.NDArray[np.int64], time: Found | None, columns: dict[str, TextColumn]
) -> list[tuple[str, int, float]]:
    """Rows and label rate by day, or else by block of rows."""
    if time is None or time.times is None:
        blocks = np.array_split(np.arange(len(labels_N)), min(BLOCKS, len(labels_N)))
        return [(str(block[0] + 1), len(block), float(labels_N[block].mean())) for block in blocks]
    names, by_code = np.unique([*time.times.days_V, ""], return_inverse=True)
    # np.unique sorts: the code of the last one, of missing times, is found by -1.
    day_N = by_code[columns[time.facts.name].codes_N]
    counts = np.bincount(day_N, minlength=len(names))
    positives = np.bincount(day_N, weights=labels_N, minlength=len(names))
    return [
        (str(name), int(count), float(clicks / count))
        for name, count, clicks in zip(names, counts, positives, strict=True)
        if name and count
    ]
