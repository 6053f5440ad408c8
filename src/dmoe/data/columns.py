"""Raw columns as coded columns: the one way from raw rows to fields, for preparing and for predicting.

Categorical columns become codes into the distinct values of their chunk, so that everything said about a value
(is it missing, which weekday, which bucket) is worked out once per distinct value.
N rows, V distinct values of one field in the chunk.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.data.coded import MISSING, Coded, Column, Numbers, as_text, codes_of, pc, take, without
from dmoe.data.config import DataConfig
from dmoe.data.lists import split_values
from dmoe.data.parse import RawRows
from dmoe.data.rejects import BAD_LABEL, NO_TIME, NOT_A_NUMBER, OUT_OF_RANGE, Reject, shorten
from dmoe.data.values import FLOAT32_MAX, Fault, deriver, hasher, parse_label, parse_number, token_maker


@dataclass(frozen=True, slots=True)
class Rows:
    """N accepted rows. `numeric` is NaN where missing; `labels_N` is None if the label column is absent;
    `times_N` (float64 or text) is the order of a time split, else None."""

    lines_N: npt.NDArray[np.int64]
    labels_N: npt.NDArray[np.uint8] | None
    times_N: Column | None
    categorical: Mapping[str, Coded]
    numeric: Mapping[str, Numbers]
    rejects: list[Reject]
    blank_lines: int

    def __len__(self) -> int:
        return len(self.lines_N)


def categorical_names(config: DataConfig) -> list[str]:
    """The fields with a vocabulary in schema order: those made of numbers first."""
    made = [name for name, options in config.fields.numeric.items() if options.makes_tokens]
    return [*made, *config.fields.categorical, *config.fields.multi_valued, *config.fields.pretrained]


def numeric_names(config: DataConfig) -> list[str]:
    return [name for name, options in config.fields.numeric.items() if not options.makes_tokens]


def quantile_names(config: DataConfig) -> list[str]:
    """The categorical fields whose tokens are known only with the training rows: `convert` gives numbers."""
    return [name for name, options in config.fields.numeric.items() if options.transform == "quantile"]


@dataclass
class _Faults:
    """The first fault of each row, in the order in which columns are looked at."""

    raw: RawRows
    found: dict[int, Reject] = field(default_factory=dict)

    def add(self, rows: npt.NDArray[np.intp], column: str, reason: str, text: Callable[[int], str]) -> None:
        for row in rows.tolist():
            if row not in self.found:
                line = int(self.raw.lines_N[row])
                self.found[row] = Reject(self.raw.file, line, column, reason, shorten(text(row)))


def convert(raw: RawRows, config: DataConfig, *, scoring: bool = False) -> Rows:
    """The rows of a chunk as fields; rows with a value that cannot be used become rejects.

    For `scoring`, labels are read only if `raw` has them, and the time of the split is not.

    Raises: DataError if a typed column holds lists, structures or other values that are no scalars.
    """
    faults = _Faults(raw)
    missing = config.format.missing
    labels = times = None
    if not scoring or config.label in raw.columns:
        labels = _labels(raw.columns[config.label], config.label, faults)
    if not scoring and config.split.kind == "time":
        times = _times(config, raw, faults)
    coded: dict[str, Coded] = {}
    numeric: dict[str, Numbers] = {}
    derivers = {name: deriver(derivation) for name, derivation in config.derive.items()}
    texts = _Texts(raw)
    for name, options in config.fields.numeric.items():
        source = config.source_column(name)
        if options.makes_tokens and options.transform != "quantile":
            column = texts.coded(source)
            if name in derivers:
                column = _map_values(column, missing, derivers[name], source, faults)
            column = _map_values(column, missing, token_maker(options), source, faults)
            coded[name] = without(column, options.missing_values)
        elif name in derivers:
            column = _map_values(texts.coded(source), missing, derivers[name], source, faults)
            numeric[name] = _decoded_numbers(column)
        else:
            numeric[name] = _numbers(raw.columns[source], missing, source, faults)
    for name, categorical in config.fields.categorical.items():
        source = config.source_column(name)
        column = texts.coded(source)
        if name in derivers:
            column = _map_values(column, missing, derivers[name], source, faults)
            coded[name] = without(column, categorical.missing_values)
        else:
            coded[name] = without(column, (*missing, *categorical.missing_values))
        if categorical.hash_buckets is not None:
            coded[name] = _map_values(coded[name], (), hasher(categorical.hash_buckets), source, faults)
    for name, several in config.fields.multi_valued.items():
        source = config.source_column(name)
        coded[name] = split_values(raw.columns[source], several, missing, source)
    for name, given in config.fields.pretrained.items():
        coded[name] = without(texts.coded(config.source_column(name)), (*missing, *given.missing_values))
    return _without_faults(Rows(raw.lines_N, labels, times, coded, numeric, [], raw.blank_lines), raw, faults)


def _without_faults(rows: Rows, raw: RawRows, faults: _Faults) -> Rows:
    rejects = sorted([*raw.rejects, *faults.found.values()], key=lambda reject: reject.line)
    if not faults.found:
        return Rows(
            rows.lines_N, rows.labels_N, rows.times_N, rows.categorical, rows.numeric, rejects, rows.blank_lines
        )
    keep = np.ones(len(rows), dtype=bool)
    keep[list(faults.found)] = False
    return Rows(
        rows.lines_N[keep],
        None if rows.labels_N is None else rows.labels_N[keep],
        None if rows.times_N is None else rows.times_N.filter(pa.array(keep)),
        {name: Coded(column.codes_N[keep], column.values) for name, column in rows.categorical.items()},
        {name: numbers[keep] for name, numbers in rows.numeric.items()},
        rejects,
        rows.blank_lines,
    )


class _Texts:
    """Raw columns as codes into texts; a column that several fields read is coded once."""

    def __init__(self, raw: RawRows) -> None:
        self._raw = raw
        self._coded: dict[str, Coded] = {}

    def coded(self, name: str) -> Coded:
        if name not in self._coded:
            encoded = as_text(self._raw.columns[name], name).dictionary_encode()
            self._coded[name] = Coded(codes_of(encoded), encoded.dictionary)
        return self._coded[name]


def _map_values(
    column: Coded,
    missing: tuple[str, ...],
    function: Callable[[str], str | Fault],
    source: str,
    faults: _Faults,
) -> Coded:
    """The column with each distinct value replaced; faults of a value are faults of its rows."""
    column = without(column, missing)
    recode = np.full(len(column.values), MISSING, dtype=np.int32)
    tokens: dict[str, int] = {}
    texts = column.values.to_pylist()
    used = np.unique(column.codes_N)
    for code in used[used >= 0].tolist():
        result = function(texts[code])
        if isinstance(result, Fault):
            rows = np.flatnonzero(column.codes_N == code)
            faults.add(rows, source, result.reason, lambda _, text=texts[code]: text)  # type: ignore[misc]
        else:
            recode[code] = tokens.setdefault(result, len(tokens))
    return Coded(take(recode, column.codes_N), pa.array(list(tokens), pa.string()))


def _decoded_numbers(column: Coded) -> Numbers:
    by_code = np.array([float(text) for text in column.values.to_pylist()] + [np.nan])
    return by_code[column.codes_N]


def _numbers(column: Column, missing: tuple[str, ...], name: str, faults: _Faults) -> Numbers:
    """A column as float64, NaN where missing."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind):
        if not pa.types.is_floating(kind):
            column = column.cast(pa.int8()) if pa.types.is_boolean(kind) else column
        numbers: Numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(np.abs(numbers) > FLOAT32_MAX)
        faults.add(bad, name, OUT_OF_RANGE, lambda row: str(numbers[row]))
        return numbers
    text = as_text(column, name)
    if missing:
        absent = pc.is_in(text, value_set=pa.array(missing, pa.string()))
        text = pc.if_else(absent, pa.scalar(None, pa.string()), text)
    try:
        numbers = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return _checked_numbers(text, name, faults)
    present = text.is_valid().to_numpy(zero_copy_only=False)
    # The cast knows "nan" and "inf", and turns a number too large into inf: none of them is a number here.
    if (present & ~(np.abs(numbers) <= FLOAT32_MAX)).any():
        return _checked_numbers(text, name, faults)
    return numbers


def _checked_numbers(text: Column, name: str, faults: _Faults) -> Numbers:
    """As `_numbers`, value by distinct value, with faults."""
    encoded = text.dictionary_encode()
    codes = codes_of(encoded)
    by_code: Numbers = np.full(len(encoded.dictionary) + 1, np.nan)
    bad: dict[str, list[int]] = {NOT_A_NUMBER: [], OUT_OF_RANGE: []}
    texts = encoded.dictionary.to_pylist()
    for code, value in enumerate(texts):
        number = parse_number(value)
        if isinstance(number, Fault):
            bad[number.reason].append(code)
        else:
            by_code[code] = number
    for reason, which in bad.items():
        if which:
            faults.add(np.flatnonzero(np.isin(codes, which)), name, reason, lambda row: str(texts[codes[row]]))
    numbers: Numbers = by_code[codes]
    return numbers


def _labels(column: Column, name: str, faults: _Faults) -> npt.NDArray[np.uint8]:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    encoded = as_text(column, name).dictionary_encode()
    codes = codes_of(encoded)
    texts = [*encoded.dictionary.to_pylist(), ""]
    by_code = np.zeros(len(texts), dtype=np.uint8)
    bad = np.zeros(len(texts), dtype=bool)
    for code, value in enumerate(texts):
        label = parse_label(value)
        if isinstance(label, Fault):
            bad[code] = True
        else:
            by_code[code] = label
    # The last of the texts stands for null, whose code is -1.
    faults.add(np.flatnonzero(bad[codes]), name, BAD_LABEL, lambda row: texts[codes[row]])
    labels: npt.NDArray[np.uint8] = by_code[codes]
    return labels


def _times(config: DataConfig, raw: RawRows, faults: _Faults) -> Column:
    name = str(config.split.column)
    column = raw.columns[name]
    if config.split.compare == "number":
        numbers = _numbers(column, config.format.missing, name, faults)
        faults.add(np.flatnonzero(np.isnan(numbers)), name, NO_TIME, lambda _: "")
        return pa.array(numbers)
    text = as_text(column, name)
    absent = pc.fill_null(pc.is_in(text, value_set=pa.array(config.format.missing, pa.string())), True)
    absent = pc.or_(absent, pc.is_null(text)).to_numpy(zero_copy_only=False)
    faults.add(np.flatnonzero(absent), name, NO_TIME, lambda _: "")
    return text
