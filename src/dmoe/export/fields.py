"""How each field of a schema enters the graph, and raw rows as the graph's inputs.

Values are parsed by the same `convert` that preparing uses; the graph does what follows: text to id, bucket to id,
number to its scaled value. R rows.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from dmoe.config.data import DataConfig
from dmoe.config.fields import CategoricalOptions, MultiValuedOptions, NumericOptions
from dmoe.errors import DataError
from dmoe.schema import MISSING_ID, OOV_ID, CategoricalField, NumericField, Schema
from dmoe.sources.delimited import RawRows
from dmoe.tokens.fields import FieldRows, convert, raw_valued, token_of
from dmoe.tokens.lookup import TokenTable
from dmoe.tokens.numbers import encode_numbers
from dmoe.tokens.quantiles import bucket_of, coded_buckets
from dmoe.tokens.scalars import FLOAT32_MAX, Fault, hasher, missing_numbers, parse_number, token_maker
from dmoe.tokens.times import deriver
from dmoe.values.coded_columns import MISSING, CodedColumn
from dmoe.values.missing import MissingTexts

Column: TypeAlias = npt.NDArray[Any]
Features: TypeAlias = dict[str, Column]  # input name -> (R, 1), or (R, L) of a multi-valued field

# Stands for "no value" in a field in which the empty text is a value; no line of text can hold it.
NUL = "\0"


@dataclass(frozen=True, slots=True)
class FieldInput:
    """One field: the text, number or id that the graph takes for it.

    `made` says what a token is made of before the graph: a number, or a text by its hash. A multi-valued field, of
    which `lists` is how its values are written, enters as ids.
    """

    name: str
    kind: Literal["text", "number", "id"]
    column: str
    missing_texts: tuple[str, ...]  # of a text field, beyond null; compared with the text or derived text
    missing_id: int = MISSING_ID
    bucket: bool = False
    made: Literal["number", "hash"] | None = None
    lists: MultiValuedOptions | None = None
    vocabulary: str = ""  # of an id field: the field whose vocabulary its ids are of

    @property
    def width(self) -> int:
        """Columns of the input: those of a multi-valued field are its values, 0 behind them."""
        return 1 if self.lists is None else self.lists.max_length

    @property
    def null(self) -> str:
        """The text that stands for no value."""
        return "" if "" in self.missing_texts else NUL


def field_inputs(schema: Schema, config: DataConfig, id_fields: Collection[str]) -> list[FieldInput]:
    """The inputs in schema order, categorical fields first; text fields among `id_fields` enter as ids."""
    inputs = []
    for field in schema.categorical:
        column = config.source_column(field.name)
        missing_id = OOV_ID if config.missing_is_oov(field.name) else MISSING_ID
        options = config.fields.options(field.name)
        if isinstance(options, MultiValuedOptions):
            inputs.append(FieldInput(field.name, "id", column, (), lists=options, vocabulary=field.vocabulary_name))
            continue
        if isinstance(options, NumericOptions) and options.transform == "bucket":
            inputs.append(FieldInput(field.name, "number", column, options.missing_values, missing_id, bucket=True))
            continue
        kind: Literal["text", "id"] = "id" if field.name in id_fields else "text"
        made: Literal["number", "hash"] | None = None
        if isinstance(options, NumericOptions):
            made = "number"
        elif isinstance(options, CategoricalOptions) and options.hash_buckets is not None:
            made = "hash"
        # The raw text of a derived field was compared with the format's missing texts; it is never empty itself.
        # A made token is compared with none: what makes it gives no token where the value is missing.
        general = ("",) if made or field.name in config.derive else config.format.missing
        missing = general if made else (*general, *options.missing_values)
        texts = tuple(dict.fromkeys(missing))
        inputs.append(FieldInput(field.name, kind, column, texts, missing_id, made=made, vocabulary=field.name))
    numbers = [FieldInput(field.name, "number", config.source_column(field.name), ()) for field in schema.numeric]
    return [*inputs, *numbers]


def without_buckets(config: DataConfig) -> DataConfig:
    """The configuration under which `convert` leaves the numbers of bucket fields as numbers."""
    values = config.model_dump(exclude_defaults=True)
    for name, options in config.fields.numeric.items():
        if options.transform == "bucket":
            kept = (
                options.number_keys() if options.column is None else {"column": options.column, **options.number_keys()}
            )
            values["fields"]["numeric"][name] = kept
    return DataConfig.model_validate(values)


TokenMaker: TypeAlias = Callable[[str], str | Fault | None]


def token_makers(schema: Schema, config: DataConfig) -> dict[str, TokenMaker]:
    """For each field but multi-valued ones: the function from a raw text to its token, None where it is missing.

    Fields that the graph itself buckets count as numbers: theirs gives the number's text.
    """
    makers: dict[str, TokenMaker] = {name: deriver(derivation) for name, derivation in config.derive.items()}
    for field in schema.categorical:
        options = config.fields.options(field.name)
        if isinstance(options, NumericOptions):
            if options.makes_tokens and options.transform != "bucket":
                absent = config.format.missing
                if options.transform == "quantile":
                    make: TokenMaker = _quantile_maker(field, (*absent, *options.missing_values))
                    makers[field.name] = _after(makers.get(field.name), make)
                else:
                    made = _after(makers.get(field.name), token_maker(options, absent))
                    makers[field.name] = _without(made, options.missing_values)
        elif field.name not in config.derive and not isinstance(options, MultiValuedOptions):
            gone = (*config.format.missing, *options.missing_values)
            makers[field.name] = _value_maker(gone, token_of(field.values, config, field.name))
        elif isinstance(options, CategoricalOptions) and options.hash_buckets is not None:
            made = _without(makers[field.name], options.missing_values)
            makers[field.name] = _after(made, hasher(options.hash_buckets))
    return makers


def _value_maker(missing: Collection[str], token: Callable[[str], str] | None) -> TokenMaker:
    absent = MissingTexts(missing)

    def make(text: str) -> str | None:
        if text in absent:
            return None
        return text if token is None else token(text)

    return make


def _quantile_maker(field: CategoricalField, missing: Collection[str]) -> TokenMaker:
    gone = missing_numbers(missing)

    def make(text: str) -> str | Fault | None:
        number = parse_number(text)
        if isinstance(number, Fault):
            return number
        return None if number in gone else str(bucket_of(np.array([number]), field.edges or ())[0])

    return make


def _after(first: TokenMaker | None, second: TokenMaker) -> TokenMaker:
    if first is None:
        return second

    def make(text: str) -> str | Fault | None:
        between = first(text)
        return second(between) if isinstance(between, str) else between

    return make


def _without(make: TokenMaker, missing: Collection[str]) -> TokenMaker:
    def kept(text: str) -> str | Fault | None:
        token = make(text)
        return None if isinstance(token, str) and token in missing else token

    return kept


class Featuriser:
    """Raw rows to the graph's inputs.

    `tables` holds the look-up of every field whose input is an id.
    """

    def __init__(
        self, schema: Schema, config: DataConfig, inputs: Sequence[FieldInput], tables: Mapping[str, TokenTable]
    ):
        self.schema, self.inputs, self._tables = schema, inputs, tables
        self.config = without_buckets(config)
        self._forms = {name: schema.field(name).values for name in raw_valued(config)}
        self._edges = {field.name: field.edges for field in schema.categorical if field.edges is not None}
        self._narrow = [field for field in schema.numeric if _may_overflow(field)]

    def __call__(self, raw: RawRows) -> Features:
        """Raises: DataError naming the first row that cannot be read."""
        rows = convert(raw, self.config, scoring=True, forms=self._forms)
        if rows.rejects:
            raise DataError(str(rows.rejects[0]))
        features = {one.name: self._column(one, rows) for one in self.inputs}
        self.check_range(features)
        return features

    def check_range(self, features: Features) -> None:
        """Raises: DataError if a scaled number would not fit float32, as `RawEncoder` does."""
        for field in self._narrow:
            encode_numbers(features[field.name][:, 0], field)

    def _column(self, one: FieldInput, rows: FieldRows) -> Column:
        if one.kind == "number":
            return rows.numeric[one.name].reshape(-1, 1)
        edges = self._edges.get(one.name)
        if edges is None:
            coded: CodedColumn = rows.categorical[one.name]
        else:
            coded = coded_buckets(rows.numeric[one.name], edges)
        if one.lists is not None:
            return list_ids(self._tables[one.name], coded)
        texts = [*coded.values.to_pylist(), None]
        assert MISSING == -1  # the code of what is appended here
        by_code = text_column(one, texts) if one.kind == "text" else text_ids(self._tables[one.name], one, texts)
        return by_code[coded.codes_N].reshape(-1, 1)


def text_column(one: FieldInput, texts: Sequence[str | None]) -> Column:
    """The input of a text field, (R,); None is missing."""
    if one.null == NUL and NUL in texts:
        texts = [NUL * 2 if text == NUL else text for text in texts]  # is a text like any other, and unseen
    return np.array([one.null if text is None else text for text in texts], dtype=object)


def text_ids(table: TokenTable, one: FieldInput, texts: Sequence[str | None]) -> npt.NDArray[np.int64]:
    """The ids of an id field's texts; None is missing."""
    missing = {None, *one.missing_texts}
    ids = table.ids(["" if text is None else text for text in texts])
    ids[[index for index, text in enumerate(texts) if text in missing]] = MISSING_ID
    return ids


def list_ids(table: TokenTable, coded: CodedColumn) -> npt.NDArray[np.int64]:
    """The input of a multi-valued field, (R, L)."""
    by_code = np.append(table.ids(coded.values.to_pylist()), np.int64(MISSING_ID))
    ids_RL: npt.NDArray[np.int64] = by_code[coded.codes_N]
    return ids_RL


def _may_overflow(field: NumericField) -> bool:
    reach = FLOAT32_MAX if field.transform != "log" else np.log1p(FLOAT32_MAX)
    return bool((reach + abs(field.mean)) / field.scale > FLOAT32_MAX)
