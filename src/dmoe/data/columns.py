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
from dmoe.data.config import DataConfig, NumberFormat
from dmoe.data.labels import read_labels
from dmoe.data.lists import split_values
from dmoe.data.number_format import PLAIN, is_text, number_reader, plain_at_once, plain_maker, without_numbers
from dmoe.data.parse import RawRows
from dmoe.data.rejects import NO_TIME, OUT_OF_RANGE, Reject, shorten
from dmoe.data.times import deriver, read_moments
from dmoe.data.values import FLOAT32_MAX, Fault, hasher, missing_numbers, token_maker
from dmoe.errors import DataError


@dataclass(frozen=True, slots=True)
class Rows:
    """N accepted rows. `numeric` is NaN where missing; `labels_N` is None if the label column is absent;
    `times_N` (numbers or moments) is the order of a time split, else None."""

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
    if not scoring or config.label.column in raw.columns:
        labels = _labels(config, raw, faults)
    if not scoring and config.split.kind == "time":
        times = _times(config, raw, faults)
    coded: dict[str, Coded] = {}
    numeric: dict[str, Numbers] = {}
    derivers = {
        name: deriver(derivation, raw.columns[derivation.column].type) for name, derivation in config.derive.items()
    }
    texts = _Texts(raw)
    for name, options in config.fields.numeric.items():
        source = config.source_column(name)
        if options.makes_tokens and options.transform != "quantile":
            column = texts.coded(source)
            if name in derivers:
                column = _map_values(column, missing, derivers[name], source, faults)
            elif is_text(raw.columns[source]) and (plain := plain_maker(config.number_format(name))):
                column = _map_values(column, missing, plain, source, faults)
            column = _map_values(column, missing, token_maker(options, missing), source, faults)
            coded[name] = without(column, options.missing_values)
        elif name in derivers:
            column = _map_values(texts.coded(source), missing, derivers[name], source, faults)
            numeric[name] = _decoded_numbers(column)
        else:
            gone = (*missing, *options.missing_values)
            numeric[name] = _numbers(raw.columns[source], gone, source, faults, config.number_format(name))
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
    function: Callable[[str], str | Fault | None],
    source: str,
    faults: _Faults,
) -> Coded:
    """The column with each distinct value replaced, by None with a missing one; faults of a value are faults of its
    rows."""
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
        elif result is not None:
            recode[code] = tokens.setdefault(result, len(tokens))
    return Coded(take(recode, column.codes_N), pa.array(list(tokens), pa.string()))


def _decoded_numbers(column: Coded) -> Numbers:
    by_code = np.array([float(text) for text in column.values.to_pylist()] + [np.nan])
    return by_code[column.codes_N]


def _numbers(
    column: Column, missing: tuple[str, ...], name: str, faults: _Faults, form: NumberFormat = PLAIN
) -> Numbers:
    """A column as float64, NaN where missing: by the text or by the value. `form` is that of texts."""
    numbers = _typed_numbers(column, missing, name, faults)
    if numbers is None:
        text = as_text(column, name)
        numbers = _text_numbers(text, missing, name, faults, form if is_text(column) else PLAIN)
    return without_numbers(numbers, missing)


def _typed_numbers(column: Column, missing: tuple[str, ...], name: str, faults: _Faults) -> Numbers | None:
    """The numbers of a numeric column, None of any other."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind):
        if not pa.types.is_floating(kind):
            column = column.cast(pa.int8()) if pa.types.is_boolean(kind) else column
        numbers: Numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        gone = np.isin(numbers, list(missing_numbers(missing)))
        bad = np.flatnonzero((np.abs(numbers) > FLOAT32_MAX) & ~gone)
        faults.add(bad, name, OUT_OF_RANGE, lambda row: str(numbers[row]))
        return numbers
    return None


def _text_numbers(text: Column, missing: tuple[str, ...], name: str, faults: _Faults, form: NumberFormat) -> Numbers:
    if missing:
        absent = pc.is_in(text, value_set=pa.array(missing, pa.string()))
        text = pc.if_else(absent, pa.scalar(None, pa.string()), text)
    if form != PLAIN:
        plain = plain_at_once(text, form)
        if plain is None:
            return _checked_numbers(text, name, faults, form)
        text = plain
    try:
        numbers: Numbers = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return _checked_numbers(text, name, faults, PLAIN)
    present = text.is_valid().to_numpy(zero_copy_only=False)
    # The cast knows "nan" and "inf", and turns a number too large into inf: none of them is a number here.
    if (present & ~(np.abs(numbers) <= FLOAT32_MAX)).any():
        return _checked_numbers(text, name, faults, PLAIN)
    return numbers


def _checked_numbers(text: Column, name: str, faults: _Faults, form: NumberFormat) -> Numbers:
    """As `_numbers`, value by distinct value, with faults."""
    read = number_reader(form)
    encoded = text.dictionary_encode()
    codes = codes_of(encoded)
    by_code: Numbers = np.full(len(encoded.dictionary) + 1, np.nan)
    bad: dict[str, list[int]] = {}
    texts = encoded.dictionary.to_pylist()
    for code, value in enumerate(texts):
        number = read(value)
        if isinstance(number, Fault):
            bad.setdefault(number.reason, []).append(code)
        else:
            by_code[code] = number
    for reason, which in bad.items():
        faults.add(np.flatnonzero(np.isin(codes, which)), name, reason, lambda row: str(texts[codes[row]]))
    numbers: Numbers = by_code[codes]
    return numbers


def _labels(config: DataConfig, raw: RawRows, faults: _Faults) -> npt.NDArray[np.uint8]:
    name = config.label.column
    found = read_labels(raw.columns[name], config.label, config.format.missing, raw.file)
    for reason, rows in found.reasons.items():
        faults.add(rows, name, reason, found.text)
    return found.labels_N


def _times(config: DataConfig, raw: RawRows, faults: _Faults) -> Column:
    name, form = str(config.split.column), config.split.format
    column, missing = raw.columns[name], config.format.missing
    if form == "number":
        if pa.types.is_temporal(column.type):
            raise DataError(
                f"{raw.file}: column '{name}' holds {column.type} values, no numbers; say split: {{format: iso}}"
            )
        numbers = _numbers(column, missing, name, faults)
        faults.add(np.flatnonzero(np.isnan(numbers)), name, NO_TIME, lambda _: "")
        return pa.array(numbers)
    if not pa.types.is_temporal(column.type):
        column = as_text(column, name)
        gone = pc.fill_null(pc.is_in(column, value_set=pa.array(missing, pa.string())), False)
        column = pc.if_else(gone, pa.scalar(None, pa.string()), column)
    faults.add(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)), name, NO_TIME, lambda _: "")
    moments = read_moments(column, form, name, raw.file)
    for reason, rows in moments.reasons.items():
        faults.add(rows, name, reason, lambda row: str(column[row].as_py()))
    return moments.times_N
