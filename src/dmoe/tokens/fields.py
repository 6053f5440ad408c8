"""Raw columns as coded columns: the one way from raw rows to fields, for preparing and for predicting.

Categorical columns become codes into the distinct values of their chunk, so that everything said about a value
(is it missing, which weekday, which bucket) is worked out once per distinct value.
N rows, V distinct values of one field in the chunk.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.config.data import DataConfig
from dmoe.config.fields import CategoricalOptions
from dmoe.config.raw_format import NumberFormat
from dmoe.errors import DataError
from dmoe.sources.delimited import RawRows
from dmoe.sources.rejects import NEGATIVE_WEIGHT, NO_TIME, NO_WEIGHT, OUT_OF_RANGE, Reject, shorten
from dmoe.tokens.labels import TaskLabels, read_tasks
from dmoe.tokens.lists import split_values
from dmoe.tokens.number_format import PLAIN, is_text, number_reader, plain_at_once, plain_maker, without_numbers
from dmoe.tokens.scalars import FLOAT32_MAX, Fault, hasher, missing_numbers, token_maker
from dmoe.tokens.times import deriver, read_moments
from dmoe.values.canonical import Carriers, Forms, MissingWordsWarning, ValueForm, forms_of
from dmoe.values.coded_columns import (
    MISSING,
    CodedColumn,
    Column,
    Numbers,
    as_text,
    codes_of,
    float64_of,
    missing_texts,
    pc,
    take,
    wall_clock,
    without,
)


@dataclass(frozen=True, slots=True)
class FieldRows:
    """N accepted rows. `numeric` is NaN where missing; `labels` is None if no label column was read; `weights_N`
    (float32) is None without a weight column; `times_N` (numbers or moments) is the order of a time split, else None.
    `carriers` says what types, beside text, the
    values of the fields with a vocabulary of raw values came in."""

    lines_N: npt.NDArray[np.int64]
    labels: TaskLabels | None
    weights_N: npt.NDArray[np.float32] | None
    times_N: Column | None
    categorical: Mapping[str, CodedColumn]
    numeric: Mapping[str, Numbers]
    rejects: list[Reject]
    blank_lines: int
    carriers: Mapping[str, Carriers] = field(default_factory=dict)

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


def raw_valued(config: DataConfig) -> list[str]:
    """The fields whose tokens are the raw values themselves, or their hashes: those with a `ValueForm`."""
    fields = config.fields
    plain = [name for name in fields.categorical if name not in config.derive]
    return [*plain, *fields.multi_valued, *fields.pretrained]


def value_forms(rows: FieldRows, config: DataConfig) -> dict[str, Forms]:
    """How the values of these rows are written, by field with a `ValueForm`."""
    forms = {}
    for name in raw_valued(config):
        column = rows.categorical[name]
        used = np.bincount(column.codes_N.reshape(-1) - MISSING, minlength=len(column.values) + 1)[1:] > 0
        values = column.values if used.all() else column.values.filter(pa.array(used))
        forms[name] = forms_of(values, rows.carriers[name] if len(values) else {})
    return forms


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


def convert(
    raw: RawRows, config: DataConfig, *, scoring: bool = False, forms: Mapping[str, ValueForm] | None = None
) -> FieldRows:
    """The rows of a chunk as fields; rows with a value that cannot be used become rejects.

    For `scoring`, labels and weights are read only if `raw` has them, and the time of the split is not. Raw values
    become tokens by `forms`, those of the fields that have one; without, as while preparing, they are as they came and
    not hashed: what they are is known only when all rows were seen.

    Raises: DataError if a typed column holds lists, structures or other values that are no scalars, or none that
    training could tell.
    """
    faults = _Faults(raw)
    missing = config.format.missing
    weights = times = None
    labels = read_tasks(raw.columns, config, raw.file, scoring=scoring)
    for column_name, reason, at_fault, text in labels.faults if labels is not None else ():
        faults.add(at_fault, column_name, reason, text)
    if config.weight is not None and (not scoring or config.weight.column in raw.columns):
        weights = _weights(config, raw, config.weight.column, faults)
    if not scoring and config.split.kind == "time":
        times = _times(config, raw, faults)
    coded: dict[str, CodedColumn] = {}
    numeric: dict[str, Numbers] = {}
    derivers = {
        name: deriver(derivation, raw.columns[derivation.column].type) for name, derivation in config.derive.items()
    }
    texts = _Texts(raw)
    for name, options in config.fields.numeric.items():
        source = config.source_column(name)
        if options.makes_tokens and options.transform != "quantile":
            if name in derivers:
                column = _map_values(texts.times(source), missing, derivers[name], source, faults)
            else:
                column = texts.coded(source)
                if is_text(raw.columns[source]) and (plain := plain_maker(config.number_format(name))):
                    column = _map_values(column, missing, plain, source, faults)
            column = _map_values(column, missing, token_maker(options, missing), source, faults)
            coded[name] = without(column, options.missing_values)
        elif name in derivers:
            column = _map_values(texts.times(source), missing, derivers[name], source, faults)
            numeric[name] = _decoded_numbers(column)
        else:
            gone = (*missing, *options.missing_values)
            numeric[name] = _numbers(raw.columns[source], gone, source, faults, config.number_format(name))
    for name, categorical in config.fields.categorical.items():
        source = config.source_column(name)
        if name in derivers:
            column = _map_values(texts.times(source), missing, derivers[name], source, faults)
            coded[name] = without(column, categorical.missing_values)
            if categorical.hash_buckets is not None:
                coded[name] = _map_values(coded[name], (), hasher(categorical.hash_buckets), source, faults)
        else:
            coded[name] = without(texts.coded(source, certain=True), (*missing, *categorical.missing_values))
    for name, several in config.fields.multi_valued.items():
        source = config.source_column(name)
        coded[name] = split_values(raw.columns[source], several, missing, source)
    for name, given in config.fields.pretrained.items():
        values = texts.coded(config.source_column(name), certain=True)
        coded[name] = without(values, (*missing, *given.missing_values))
    carriers = {name: raw.carriers_of(config.source_column(name)) for name in raw_valued(config)}
    for name, form in (forms or {}).items():
        source = config.source_column(name)
        if (coded[name].codes_N != MISSING).any():  # a column without a value has lost none, whatever its type
            form.check(source, carriers[name])
        _warn_of_words(form, source, raw.columns[source], coded[name])
        coded[name] = tokens(coded[name], token_of(form, config, name))
    rows = FieldRows(raw.lines_N, labels, weights, times, coded, numeric, [], raw.blank_lines, carriers)
    return _without_faults(rows, raw, faults)


def token_of(form: ValueForm, config: DataConfig, name: str) -> Callable[[str], str] | None:
    """The function from a raw value of a field to its token, None if that is the value as it came."""
    options = config.fields.options(name)
    buckets = options.hash_buckets if isinstance(options, CategoricalOptions) else None
    if buckets is None:
        return None if form.kind == "text" else form.token
    hashed = hasher(buckets)
    return lambda text: hashed(form.token(text))


def tokens(column: CodedColumn, token: Callable[[str], str] | None) -> CodedColumn:
    """The column with each value replaced by its token; several values may have one."""
    if token is None:
        return column
    return CodedColumn(column.codes_N, pa.array([token(value) for value in column.values.to_pylist()], pa.string()))


# A few missing values among rows without one of the words are nothing odd.
_TELLING_NULLS = 20


def _warn_of_words(form: ValueForm, source: str, raw: Column, column: CodedColumn) -> None:
    if not form.words or raw.null_count < _TELLING_NULLS:
        return
    if not pc.any(pc.is_in(column.values, value_set=pa.array(form.words, pa.string()))).as_py():
        words = ", ".join(f"'{word}'" for word in form.words)
        warnings.warn(
            f"column '{source}' was text with {words} among its values in training, which table readers take for "
            f"missing, and comes with {raw.null_count} missing values and without {words}; read the table with such "
            "words kept, as by pandas.read_csv(..., keep_default_na=False)",
            MissingWordsWarning,
            stacklevel=2,
        )


def _without_faults(rows: FieldRows, raw: RawRows, faults: _Faults) -> FieldRows:
    rejects = sorted([*raw.rejects, *faults.found.values()], key=lambda reject: reject.line)
    if not faults.found:
        return replace(rows, rejects=rejects)
    keep = np.ones(len(rows), dtype=bool)
    keep[list(faults.found)] = False
    return FieldRows(
        rows.lines_N[keep],
        None if rows.labels is None else rows.labels.kept(keep),
        None if rows.weights_N is None else rows.weights_N[keep],
        None if rows.times_N is None else rows.times_N.filter(pa.array(keep)),
        {name: CodedColumn(column.codes_N[keep], column.values) for name, column in rows.categorical.items()},
        {name: numbers[keep] for name, numbers in rows.numeric.items()},
        rejects,
        rows.blank_lines,
        rows.carriers,
    )


class _Texts:
    """Raw columns as codes into texts; a column that several fields read is coded once."""

    def __init__(self, raw: RawRows) -> None:
        self._raw = raw
        self._coded: dict[tuple[str, str], CodedColumn] = {}

    def coded(self, name: str, *, certain: bool = False) -> CodedColumn:
        """With `certain`, numbers that may not tell an id are refused."""
        return self._of(name, "certain" if certain else "any", self._raw.columns[name])

    def times(self, name: str) -> CodedColumn:
        """Times as the clock of their zone shows them, the form in which texts have them; numbers that may not tell
        a second are refused."""
        return self._of(name, "wall", wall_clock(self._raw.columns[name]))

    def _of(self, name: str, way: str, column: Column) -> CodedColumn:
        if pa.types.is_string(column.type):
            way = "text"
        if (name, way) not in self._coded:
            encoded = as_text(column, name, certain=way != "any").dictionary_encode()
            self._coded[name, way] = CodedColumn(codes_of(encoded), encoded.dictionary)
        return self._coded[name, way]


def _map_values(
    column: CodedColumn,
    missing: tuple[str, ...],
    function: Callable[[str], str | Fault | None],
    source: str,
    faults: _Faults,
) -> CodedColumn:
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
    return CodedColumn(take(recode, column.codes_N), pa.array(list(tokens), pa.string()))


def _decoded_numbers(column: CodedColumn) -> Numbers:
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
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind):
        if pa.types.is_floating(kind):
            column = float64_of(column)
        else:
            column = column.cast(pa.int8()) if pa.types.is_boolean(kind) else column
        numbers: Numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        gone = np.isin(numbers, list(missing_numbers(missing)))
        bad = np.flatnonzero((np.abs(numbers) > FLOAT32_MAX) & ~gone)
        faults.add(bad, name, OUT_OF_RANGE, lambda row: str(numbers[row]))
        return numbers
    return None


def _text_numbers(text: Column, missing: tuple[str, ...], name: str, faults: _Faults, form: NumberFormat) -> Numbers:
    if missing:
        text = pc.if_else(pa.array(missing_texts(missing).among(text)), pa.scalar(None, pa.string()), text)
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


def _weights(config: DataConfig, raw: RawRows, name: str, faults: _Faults) -> npt.NDArray[np.float32]:
    weights_N = _numbers(raw.columns[name], config.format.missing, name, faults, config.format.numbers)
    faults.add(np.flatnonzero(np.isnan(weights_N)), name, NO_WEIGHT, lambda _: "")
    faults.add(np.flatnonzero(weights_N < 0), name, NEGATIVE_WEIGHT, lambda row: f"{weights_N[row]:g}")
    return weights_N.astype(np.float32)


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
