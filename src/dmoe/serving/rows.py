"""Raw rows as they come in a request: columns of JSON values, or an Arrow stream, to the graph's inputs.

The JSON way parses value by value with the functions that preparing uses; it gives what `Featuriser` gives.
Messages name column and row, never a value. R rows.
"""

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from dmoe.errors import DataError, DmoeError
from dmoe.export.fields import Column, Features, FieldInput, list_ids, text_column, text_ids, token_makers
from dmoe.export.onnx_model import OnnxModel
from dmoe.serving.arrow import UNFOLDED, TooLarge, is_list, is_text, read_table
from dmoe.tokens.fields import raw_valued, tokens
from dmoe.tokens.lists import split_values
from dmoe.tokens.number_format import number_reader, plain_maker, without_numbers
from dmoe.tokens.scalars import FLOAT32_MAX, Fault
from dmoe.values.canonical import LostFormError, ValueForm
from dmoe.values.coded_columns import EXACT_BELOW
from dmoe.values.missing import MissingTexts
from dmoe.values.spelling import float_text

pc: Any = pyarrow.compute

_NONE = type(None)
_INTEGERS = {
    **{f"INT{bits}": range(-(1 << bits - 1), 1 << bits - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": range(1 << bits) for bits in (8, 16, 32, 64)},
}
_FLOATS = {"FP16": 16, "FP32": 32, "FP64": 64}
_NARROW = {"FP16": np.float16, "FP32": np.float32}
_CARRIERS = {
    **{number: {"number": number} for number in (*_INTEGERS, *_FLOATS)},
    "BOOL": {"boolean": "BOOL"},
}
# What a value costs while texts are split into several, beside the text.
_SPLIT_BYTES = 48
# What JSON values a datatype may hold. A text is never a number by accident, nor a truth value a number.
JSON_TYPES: dict[str, Collection[type]] = {
    "BYTES": {str, _NONE},
    "BOOL": {bool, _NONE},
    **{integer: {int, _NONE} for integer in _INTEGERS},
    **{real: {int, float, _NONE} for real in _FLOATS},
}


class RequestError(DmoeError):
    """The request is at fault; `status` is the HTTP status that says how."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Room:
    """The bytes of memory that what one request unfolds to may take, asked for before they are."""

    limit: int = 64 << 20
    reserve: Callable[[int], None] = lambda _: None
    used: int = 0

    def take(self, size: int) -> None:
        """Raises: RequestError (413) beyond `limit`; what `reserve` raises goes on."""
        self.used += size
        if self.used > self.limit:
            raise RequestError(413, f"{UNFOLDED.format(self.limit)}; send fewer rows or shorter values")
        self.reserve(size)


@dataclass(frozen=True, slots=True)
class JsonColumn:
    """One input tensor of a request: `data` holds `rows` values or null, of the types of its datatype."""

    name: str
    datatype: str
    data: Sequence[Any]


class RowReader:
    """Reads the rows of requests for one model."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        config = model.featuriser.config
        self._config = config
        self._missing = MissingTexts(config.format.missing)
        self._missing_of = {name: options.missing_values for name, options in config.fields.numeric.items()}
        self._missing_texts = config.format.missing
        self._forms = {name: model.schema.field(name).values for name in raw_valued(config)}
        self._absent = {
            name: MissingTexts((*config.format.missing, *config.fields.options(name).missing_values))
            for name in self._forms
        }
        self.columns = tuple(config.field_columns())
        self._fields = {column: [one for one in model.inputs if one.column == column] for column in self.columns}
        self.derived = frozenset(config.derive)
        self._makers = token_makers(model.schema, config)

    def from_json(self, columns: Sequence[JsonColumn], room: Room | None = None) -> Features:
        """Raises: RequestError (400) naming the column and row at fault; 413 beyond `room`."""
        room = room or Room()
        given = {column.name: column for column in columns}
        if len(given) < len(columns):
            raise RequestError(400, "an input appears twice")
        for name in given:
            if name not in self._fields:
                close = difflib.get_close_matches(name[:64], self.columns, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else "; GET the model for its inputs"
                raise RequestError(400, f"the model has no input '{name[:64]}'{hint}")
        features: Features = {}
        for name, fields in self._fields.items():
            if name not in given:
                raise RequestError(400, f"input '{name}' is missing; send null where there is no value")
            column = given[name]
            if not set(map(type, column.data)) <= set(JSON_TYPES[column.datatype]):
                row = next(i for i, value in enumerate(column.data) if type(value) not in JSON_TYPES[column.datatype])
                raise RequestError(400, f"input '{name}', row {row}: is no {column.datatype} value")
            _check_integers(column)
            for field in fields:
                if field.lists is not None and column.datatype == "BYTES":
                    ends = sum(text.count(field.lists.separator) for text in column.data if text is not None)
                    room.take((ends + len(column.data)) * _SPLIT_BYTES)
                features[field.name] = self._column(field, column).reshape(-1, field.width)
        self._check_range(features)
        return features

    def from_arrow(self, body: bytes, max_rows: int, room: Room | None = None) -> Features:
        """Raises: RequestError (400, or 413 for more than `max_rows` rows or what goes beyond `room`)."""
        room = room or Room()
        try:
            table, decoded = read_table(body, max_rows, room.limit)
            room.take(decoded)
            for field in (one for fields in self._fields.values() for one in fields):
                if field.lists is not None and field.column in table.column_names:
                    room.take(_split_values(table[field.column], field.lists.separator) * _SPLIT_BYTES)
            return self._model.featuriser(self._model.raw_rows(table, "body"))
        except LostFormError as error:
            raise RequestError(400, error.bare) from None
        except TooLarge as error:
            raise RequestError(413, str(error)) from None
        except DataError as error:
            raise RequestError(400, str(error)) from None
        except (pa.ArrowException, ValueError, OverflowError):
            raise RequestError(400, "the body holds a column that cannot be read as raw values") from None

    def _check_range(self, features: Features) -> None:
        try:
            self._model.featuriser.check_range(features)
        except DataError as error:
            raise RequestError(
                400, str(error).partition(":")[0] + " has a number too far from those of training"
            ) from None

    def _column(self, field: FieldInput, column: JsonColumn) -> Column:
        form = self._forms.get(field.name)
        if form is not None:
            return self._values(field, column, form)
        if field.name in self._makers:
            return self._made(field, column)
        return self._numbers(field, column)

    def _values(self, field: FieldInput, column: JsonColumn, form: ValueForm) -> Column:
        """Of a field whose tokens are the raw values."""
        texts = _texts(column)
        lost = form.lost_form(_CARRIERS.get(column.datatype, {}))
        absent = self._absent[field.name]
        if lost is not None and not all(text is None or text in absent for text in texts):
            raise RequestError(
                400,
                f"input '{column.name}' was text with {lost[1]} in training and comes as {lost[0]}, which has lost "
                "them; send it as BYTES",
            )
        if field.lists is None:
            return self._as_input(field, self._mapped(texts, self._makers[field.name], column.name, None))
        coded = split_values(pa.array(texts, pa.string()), field.lists, self._missing_texts, field.column)
        return list_ids(self._model.tables[field.name], tokens(coded, form.token))

    def _as_input(self, field: FieldInput, texts: Sequence[str | None]) -> Column:
        if field.kind == "id":
            return text_ids(self._model.tables[field.name], field, texts)
        return text_column(field, texts)

    def _numbers(self, field: FieldInput, column: JsonColumn) -> npt.NDArray[np.float64]:
        missing = (*self._missing_texts, *self._missing_of.get(field.name, ()))
        if column.datatype != "BYTES":
            numbers = np.array(column.data, dtype=np.float64)  # null becomes NaN
            numbers = without_numbers(numbers, missing)
            if (np.abs(numbers) > FLOAT32_MAX).any():
                row = int(np.flatnonzero(np.abs(numbers) > FLOAT32_MAX)[0])
                raise RequestError(400, f"input '{column.name}', row {row}: number out of range")
            if column.datatype in _NARROW:
                numbers = np.array([np.nan if text is None else float(text) for text in _number_texts(column)])
            return without_numbers(numbers, missing)
        texts = [None if text in missing else text for text in column.data]
        read = number_reader(self._config.number_format(field.name))
        return without_numbers(np.array(self._mapped(texts, read, column.name, np.nan)), missing)

    def _made(self, field: FieldInput, column: JsonColumn) -> Column:
        number = field.made == "number" and field.name not in self.derived
        raw = _number_texts(column) if number else _texts(column)
        plain = plain_maker(self._config.number_format(field.name)) if number else None
        if plain is not None and column.datatype == "BYTES":
            raw = self._mapped(raw, plain, column.name, None)
        texts = self._mapped(raw, self._makers[field.name], column.name, None)
        if field.kind != "number":
            return self._as_input(field, texts)
        return np.array([np.nan if text is None else float(text) for text in texts])

    def _mapped(
        self, texts: Sequence[str | None], function: Callable[[str], Any], name: str, missing: Any
    ) -> list[Any]:
        results = [missing if text is None or text in self._missing else function(text) for text in texts]
        for row, result in enumerate(results):
            if isinstance(result, Fault):
                raise RequestError(400, f"input '{name}', row {row}: {result.reason}")
        return results


def _number_texts(column: JsonColumn) -> Sequence[str | None]:
    """The values as text that reads as the same numbers."""
    if column.datatype == "BYTES":
        return column.data
    narrow = _NARROW.get(column.datatype, float)
    with np.errstate(over="ignore"):
        return [None if value is None else _number_text(value, narrow) for value in column.data]


def _number_text(value: Any, narrow: Callable[[Any], Any]) -> str:
    if not isinstance(value, float):
        return str(int(value))
    number = narrow(value)
    return float_text(number if np.isfinite(number) else value)


def _texts(column: JsonColumn) -> Sequence[str | None]:
    """The values as text, as `as_text` gives them for a typed column."""
    if column.datatype == "BYTES":
        return column.data
    if column.datatype == "BOOL":
        return [None if value is None else str(value).lower() for value in column.data]
    if column.datatype in _FLOATS:
        for row, value in enumerate(column.data):
            if isinstance(value, float) and abs(value) >= EXACT_BELOW[_FLOATS[column.datatype]]:
                raise RequestError(
                    400,
                    f"input '{column.name}', row {row}: an id so large may be another's in {column.datatype}; send it "
                    "as BYTES or INT64",
                )
    return _number_texts(column)


def _split_values(column: Any, separator: str) -> int:
    """Values of a multi-valued column: those of lists, or one more than there are separators in each distinct text."""
    count = 0
    for chunk in column.chunks:
        values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        if is_list(values.type):
            count += len(values.flatten())
            continue
        count += len(values)
        if is_text(values.type):
            texts = values.cast(pa.large_string())
            count += pc.sum(pc.count_substring(texts, separator)).as_py() or 0
    return count


def _check_integers(column: JsonColumn) -> None:
    """Raises: RequestError (400) for a value that the declared integer type cannot hold; other servers wrap it."""
    values = _INTEGERS.get(column.datatype)
    if values is None:
        return
    given = [value for value in column.data if value is not None]
    if given and not (min(given) in values and max(given) in values):
        row = next(i for i, value in enumerate(column.data) if value is not None and value not in values)
        raise RequestError(400, f"input '{column.name}', row {row}: is out of the range of {column.datatype}")
