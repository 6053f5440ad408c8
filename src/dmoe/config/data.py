"""`data.yaml`: what a raw log is, which of its columns become fields, and how the rows are split."""

import unicodedata
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from dmoe.config.time_patterns import checked_format
from dmoe.errors import ConfigError, nearest
from dmoe.schema import Pooling
from dmoe.validation import validate
from dmoe.yaml_text import read_yaml

SPLITS = ("train", "valid", "test")
# Outputs of the exported graph, and what its inner names start with.
RESERVED_NAMES = ("probability", "logit", "gate_weights")
RESERVED_STARTS = ("fields/", "model/")
_THOUSANDS = (".", ",", "'", "\u2019", "_", " ", "\u00a0", "\u202f")
DELIMITERS = (",", "\t", ";", "|")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _no_repeats(what: str, names: tuple[str, ...] | list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what}: these names appear twice: {', '.join(repeated)}")


class Label(_Strict):
    """The label column. Without `positive` it holds 0 and 1, or true and false, in any spelling; with it, these values
    are clicks and `negative`, by default all others, are none. Values compare by value: 1 is "1" and 1.0.

    `missing`: rows without a label are rejected, or count as `negative`.
    """

    named_by_text: ClassVar[bool] = True
    column: str = Field(min_length=1)
    positive: tuple[str, ...] | None = None
    negative: tuple[str, ...] | None = None
    missing: Literal["reject", "negative"] = "reject"

    @field_validator("positive", "negative", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [str(one).lower() if isinstance(one, bool) else str(one) for one in value]
        return value

    @model_validator(mode="after")
    def _classes_differ(self) -> "Label":
        if self.positive is None and self.negative is not None:
            raise ValueError("'negative' goes with 'positive', the values that are a click")
        if self.positive is not None and not self.positive:
            raise ValueError("'positive' names no value; name those that are a click, as in positive: [yes]")
        both = set(self.positive or ()) & set(self.negative or ())
        if both:
            raise ValueError(f"'{min(both)}' is both positive and negative")
        return self

    @model_serializer(mode="wrap")
    def _short(self, serialise: SerializerFunctionWrapHandler) -> Any:
        """Its name alone where nothing else is said."""
        return self.column if self == Label(column=self.column) else serialise(self)


def _label_by_name(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


class NumberFormat(_Strict):
    """How texts write numbers. `decimal`: the character before the fraction. `thousands`: what stands between groups
    of three digits, empty for nothing. `strip`: signs that are taken off either end, as € and %."""

    decimal: Literal[".", ","] = "."
    thousands: str = ""
    strip: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _signs_differ(self) -> "NumberFormat":
        if self.thousands and self.thousands not in _THOUSANDS:
            raise ValueError(f"'thousands' must be one of {', '.join(map(repr, _THOUSANDS))}, got {self.thousands!r}")
        if self.thousands == self.decimal:
            raise ValueError(f"'thousands' and 'decimal' are both {self.decimal!r}")
        for sign in self.strip:
            if not sign.strip() or any(one in "0123456789+-.,eE" for one in sign):
                raise ValueError(f"'strip': {sign!r} may be part of a number")
        return self


class Format(NumberFormat):
    """How the bytes of an input file become named columns, and how their texts write numbers.

    `columns` names the columns of a file without a header. `missing` lists the texts that stand for "no
    value"; numbers among them compare by value. A quoted value may hold delimiters and doubled quotes; with
    `escape: backslash` also `\\"` for a quote, and with `line_breaks` line breaks.
    """

    kind: Literal["auto", "csv", "parquet"] = "auto"
    header: bool = True
    columns: tuple[str, ...] | None = None
    delimiter: str = "auto"
    quote: Literal['"', "'"] | None = '"'
    escape: Literal["backslash"] | None = None
    line_breaks: bool = False
    missing: tuple[str, ...] = ("",)

    @property
    def numbers(self) -> NumberFormat:
        """How texts write numbers."""
        return NumberFormat(decimal=self.decimal, thousands=self.thousands, strip=self.strip)

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str) -> str:
        if value != "auto" and (len(value) != 1 or not value.isascii() or value in "\r\n\"'\0"):
            hint = """; a tab is "\\t" in double quotes""" if value == "\\t" else ""
            raise ValueError(f"must be 'auto' or one ASCII character that is no quote and no line break{hint}")
        return value

    @model_validator(mode="after")
    def _header_or_columns(self) -> "Format":
        if self.quote is None and (self.escape or self.line_breaks):
            raise ValueError("'escape' and 'line_breaks' are about quoted values, but 'quote' is null")
        if self.header and self.columns is not None:
            raise ValueError("'columns' names the columns of a file without a header; set 'header: false' too")
        if not self.header and not self.columns:
            raise ValueError("a file without a header needs 'columns', the names of all its columns in order")
        _no_repeats("columns", self.columns or ())
        return self


class Derivation(_Strict):
    """A column taken out of the time that another column holds, as it is written (no change of zone).

    `hour` 0-23, `weekday` 0-6 from Sunday, `weekend` 1 on Saturday and Sunday, else 0.
    `yymmddhh` as in 14102123; `iso` as in 2014-10-21 23:00:00; `unix`, `unix-ms`, `unix-us`, `unix-ns` since 1970 in
    UTC; or a pattern of strptime as %d.%m.%Y %H:%M. Typed times need no format, and are read by value.
    """

    column: str
    take: Literal["hour", "weekday", "weekend"]
    format: str = "iso"

    @model_validator(mode="after")
    def _format_holds_it(self) -> "Derivation":
        checked_format(self.format, self.take)
        return self


class _Vocabulary(_Strict):
    """`column` is the raw column, by default of the field's own name. `min_count` replaces the default of all
    fields; `max_tokens` keeps only the most frequent; `missing_values` adds to `format.missing`;
    `missing_as: oov` gives missing values the id of unseen ones (1) instead of their own (0)."""

    column: str | None = None
    min_count: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    missing_values: tuple[str, ...] = ()
    missing_as: Literal["missing", "oov"] = "missing"
    embedding_dim: int | None = Field(default=None, ge=1, le=1 << 16)
    table_group: str | None = None


class CategoricalOptions(_Vocabulary):
    """`hash_buckets`: values are tokens by their hash, so that values never seen before have one too.

    `embedding_dim` is a width of its own, projected to that of each table; `table_group` a name by which experts
    choose their fields.
    """

    hash_buckets: int | None = Field(default=None, ge=1, le=1 << 30)


_TOKEN_TRANSFORMS = ("bucket", "log-bucket", "digit", "quantile")
_KEYS_OF_TRANSFORMS: dict[str, tuple[str, ...]] = {
    "standardise": ("log",),
    "steps": ("log-bucket",),
    "radix": ("digit",),
    "place": ("digit",),
    "buckets": ("quantile",),
    "min_count": _TOKEN_TRANSFORMS,
    "max_tokens": _TOKEN_TRANSFORMS,
    "missing_as": _TOKEN_TRANSFORMS,
    "embedding_dim": _TOKEN_TRANSFORMS,
}


class NumericOptions(_Vocabulary):
    """`transform`: `value` as it is; `standardise` by the training mean and standard deviation; `log` for
    sign(x) log(1 + |x|). The others make categorical fields: `bucket` of floor(ln(x)^2) above 2, and int(x) up
    to 2; `log-bucket` of floor(`steps` ln(1 + x)); `digit` of the digit at `place` (0 the last) of the integer
    part, written to base `radix`; `quantile` of `buckets` parts of equal training counts.

    `standardise: true` standardises after the logarithm. `decimal`, `thousands` and `strip` replace those of `format`.
    `missing_values` compare by value.
    """

    transform: Literal["value", "standardise", "log", "bucket", "log-bucket", "digit", "quantile"] = "value"
    standardise: bool = False
    steps: float = Field(default=1.0, gt=0, le=1e6)
    radix: int = Field(default=10, ge=2, le=1 << 20)
    place: int = Field(default=0, ge=0, lt=128)
    buckets: int = Field(default=10, ge=2, le=1000)
    decimal: Literal[".", ","] | None = None
    thousands: str | None = None
    strip: tuple[str, ...] | None = None

    def number_keys(self) -> dict[str, Any]:
        """What this field says of how its texts write numbers."""
        keys = {"decimal": self.decimal, "thousands": self.thousands, "strip": self.strip}
        return {key: value for key, value in keys.items() if value is not None}

    @property
    def makes_tokens(self) -> bool:
        """Whether the field is categorical."""
        return self.transform in _TOKEN_TRANSFORMS

    @model_validator(mode="after")
    def _keys_fit_transform(self) -> "NumericOptions":
        if self.standardise and self.transform != "log":
            raise ValueError("'standardise: true' goes with 'transform: log'; else use 'transform: standardise'")
        for key, transforms in _KEYS_OF_TRANSFORMS.items():
            changed = key in self.model_fields_set and getattr(self, key) != type(self).model_fields[key].default
            if changed and self.transform not in transforms:
                raise ValueError(f"'{key}' goes with 'transform: {' or '.join(transforms)}' only")
        return self


class MultiValuedOptions(_Strict):
    """A column with several values a row: a text with `separator` between them, or a list in a Parquet file.

    At most `max_length` are kept, those that `keep` says, and pooled to one embedding: their `sum` or `mean`, weighted
    by `attention`, or by what they have to do with another field (`target`). Values that are missing are left out.
    With `shares` they are values of that categorical field: one vocabulary, one embedding; `target` needs it.
    """

    column: str | None = None
    separator: str = Field(default="|", min_length=1)
    max_length: int = Field(default=20, ge=1, le=10_000)
    keep: Literal["first", "last"] = "first"
    pooling: Pooling = "mean"
    shares: str | None = None
    min_count: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    missing_values: tuple[str, ...] = ()
    embedding_dim: int | None = Field(default=None, ge=1, le=1 << 16)
    table_group: str | None = None

    @model_validator(mode="after")
    def _keys_fit(self) -> "MultiValuedOptions":
        if self.pooling == "target" and self.shares is None:
            raise ValueError("'pooling: target' needs 'shares', the categorical field that the values are asked about")
        if self.shares is not None:
            for key in ("min_count", "max_tokens", "embedding_dim"):
                if getattr(self, key) is not None:
                    raise ValueError(f"'{key}' is that of '{self.shares}', whose vocabulary the field shares")
        return self


class PretrainedOptions(_Strict):
    """A field whose embedding is given: `file` has a vector for each value of `column`.

    A Parquet file has the columns `key` and `vector` (a list of numbers); a safetensors file has tensors of these
    names, (K,) integers and (K, width) floats. A value that is not among the keys has zeros, or with `trainable: true`
    what training makes of it: then the vectors are only where training starts.
    """

    column: str | None = None
    file: str
    key: str = "key"
    vector: str = "vector"
    trainable: bool = False
    missing_values: tuple[str, ...] = ()
    table_group: str | None = None


AnyOptions: TypeAlias = CategoricalOptions | NumericOptions | MultiValuedOptions | PretrainedOptions


def _by_name(value: Any) -> Any:
    """A list of names, or a mapping of names to options, as a mapping."""
    if isinstance(value, list | tuple):
        names = [str(name) for name in value]
        _no_repeats("fields", names)
        return {name: {} for name in names}
    if isinstance(value, dict):
        return {str(name): {} if options is None else options for name, options in value.items()}
    return value


def check_field_name(name: str) -> None:
    """Raises: ValueError if a model's graph, table or page could not hold a field of this name."""
    why = None
    if not name.strip():
        why = "is empty"
    elif any(unicodedata.category(one) in ("Cc", "Cs") for one in name):
        why = "holds a control character"
    elif name in RESERVED_NAMES:
        why = "is that of an output of the model"
    elif name.startswith(RESERVED_STARTS):
        why = "starts as names inside the model do"
    if why is not None:
        raise ValueError(f"the field name {name!r} {why}; give the field another, with column: {name!r}")


class Fields(_Strict):
    """The fields of an encoded row: `numeric`, `categorical`, `multi_valued`, `pretrained`, each in the order given."""

    categorical: Annotated[dict[str, CategoricalOptions], BeforeValidator(_by_name)] = {}
    numeric: Annotated[dict[str, NumericOptions], BeforeValidator(_by_name)] = {}
    multi_valued: Annotated[dict[str, MultiValuedOptions], BeforeValidator(_by_name)] = {}
    pretrained: dict[str, PretrainedOptions] = {}
    min_count: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _some_and_once(self) -> "Fields":
        if not self.names():
            raise ValueError("name at least one field under 'categorical' or 'numeric'")
        _no_repeats("fields", self.names())
        for name in self.names():
            check_field_name(name)
        for name, options in self.multi_valued.items():
            if options.shares is not None and options.shares not in self.categorical:
                raise ValueError(
                    f"multi_valued.{name}: shares '{options.shares}', which is no categorical field"
                    f"{nearest(options.shares, self.categorical)}"
                )
        return self

    def names(self) -> list[str]:
        """All fields, in order."""
        return [*self.numeric, *self.categorical, *self.multi_valued, *self.pretrained]

    def options(self, name: str) -> AnyOptions:
        for kind in (self.categorical, self.numeric, self.multi_valued, self.pretrained):
            if name in kind:
                found: AnyOptions = kind[name]
                return found
        raise KeyError(name)


class Split(_Strict):
    """`ordered` by position in the input; `random`; `stratified` (each label apart); `time` by a column;
    `given` (every input says which split it is). Shares sum to 1; a share of 0 leaves that split out.

    The time is a number, or of a `format` of `Derivation`: then moments compare, whatever zone they are written in.
    """

    kind: Literal["ordered", "random", "stratified", "time", "given"] = "ordered"
    train: float = Field(default=0.8, gt=0, le=1)
    valid: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    column: str | None = None
    format: str = "number"

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> "Split":
        shares = [name for name in SPLITS if name in self.model_fields_set]
        belongs = {
            **dict.fromkeys(SPLITS, ("ordered", "random", "stratified", "time")),
            "seed": ("random", "stratified"),
            "column": ("time",),
            "format": ("time",),
        }
        for key, kinds in belongs.items():
            default = type(self).model_fields[key].default
            changed = key in self.model_fields_set and getattr(self, key) != default
            if changed and self.kind not in kinds:
                raise ValueError(f"'{key}' has no meaning for split kind '{self.kind}'")
        if self.kind == "time" and not self.column:
            raise ValueError("split kind 'time' needs 'column', the column that holds the time")
        if self.format != "number":
            checked_format(self.format, "weekday")
        if self.kind != "given" and sum(self.shares().values()) != 1:
            given = ", ".join(f"{name} {getattr(self, name)}" for name in SPLITS)
            unsaid = "; say all three" if 0 < len(shares) < len(SPLITS) else ""
            raise ValueError(f"the shares must sum to 1, got {given}{unsaid}")
        return self

    def shares(self) -> dict[str, Fraction]:
        """The shares as exactly the decimals that were written."""
        return {name: Fraction(str(getattr(self, name))) for name in SPLITS}


class Checks(_Strict):
    """What published files with given splits have and give: their md5 sums and rows by split, the vocabulary sizes
    of single fields and of all together. A size counts the ids of missing and unseen values too."""

    md5: dict[Literal["train", "valid", "test"], str]
    rows: dict[Literal["train", "valid", "test"], int]
    vocabulary_rows: int
    vocabulary_sizes: dict[str, int] = {}


class DataConfig(_Strict):
    """A whole `data.yaml`."""

    description: str = ""
    checks: Checks | None = None
    label: Annotated[Label, BeforeValidator(_label_by_name)]
    split: Split = Split()
    fields: Fields
    derive: dict[str, Derivation] = {}
    format: Format = Format()

    @model_validator(mode="after")
    def _names_fit(self) -> "DataConfig":
        names = self.fields.names()
        label = self.label.column
        if label in (*names, *(self.source_column(name) for name in names)):
            raise ValueError(f"'{label}' is the label and cannot be a field too")
        for name, options in self.fields.numeric.items():
            self.number_format(name)
            if name in self.derive and options.number_keys():
                raise ValueError(f"'{min(options.number_keys())}' of '{name}' has no meaning: it is derived of a time")
        for name in self.derive:
            if name in names and self.fields.options(name).column is not None:
                raise ValueError(f"'fields' and 'derive' both say the column of '{name}'; say it under 'derive'")
        for derived in self.derive:
            if derived not in names:
                raise ValueError(f"derived column '{derived}' is used by no field; name it under 'fields'")
            if derived not in self.fields.categorical and derived not in self.fields.numeric:
                raise ValueError(f"derived column '{derived}' must be a categorical or numeric field")
        return self

    def number_format(self, field: str) -> NumberFormat:
        """How the texts of a numeric field's column write numbers."""
        own = {} if field in self.derive else self.fields.numeric[field].number_keys()
        return NumberFormat.model_validate({**self.format.numbers.model_dump(), **own})

    def source_column(self, field: str) -> str:
        """The raw column that a field is read from."""
        return self.derive[field].column if field in self.derive else self.fields.options(field).column or field

    def field_columns(self) -> list[str]:
        """The raw columns that the fields are read from, no repeats."""
        return list(dict.fromkeys(self.source_column(name) for name in self.fields.names()))

    def columns(self) -> list[str]:
        """All raw columns that preparing reads: label, time of the split, sources of the fields."""
        time = [str(self.split.column)] if self.split.kind == "time" else []
        return list(dict.fromkeys([self.label.column, *time, *self.field_columns()]))

    def min_count(self, field: str) -> int:
        """The least training count of a token of this categorical field."""
        options = self.fields.options(field)
        if isinstance(options, PretrainedOptions):
            return 1
        if isinstance(options, MultiValuedOptions) and options.shares is not None:
            return self.min_count(options.shares)
        return self.fields.min_count if options.min_count is None else options.min_count

    def missing_is_oov(self, field: str) -> bool:
        """Whether missing values of this categorical field share the id of unseen ones."""
        options = self.fields.options(field)
        return isinstance(options, CategoricalOptions | NumericOptions) and options.missing_as == "oov"


def read_data_config(path: Path) -> DataConfig:
    """The data configuration in a YAML file.

    Raises: ConfigError naming the file, the key and the nearest known key.
    """
    values = read_yaml(path)
    if not values:
        raise ConfigError(f"{path}: is empty; `dmoe inspect LOG` writes a data.yaml to start from")
    config = validate(DataConfig, values, str(path))
    # The files of vectors that it names lie beside it.
    pretrained = {
        name: options.model_copy(update={"file": str(path.parent / options.file)})
        for name, options in config.fields.pretrained.items()
    }
    return config.model_copy(update={"fields": config.fields.model_copy(update={"pretrained": pretrained})})


def parse_split(text: str) -> Split:
    """A split said on the command line: `KIND` or `KIND,key=value,…`, as in
    `random,train=0.7,valid=0.1,test=0.2,seed=3`.

    Raises: ConfigError.
    """
    kind, *pairs = text.split(",")
    values: dict[str, Any] = {"kind": kind}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--split: '{pair}' is not key=value; expected KIND or KIND,key=value,…")
        if key in values:
            raise ConfigError(f"--split: key '{key}' appears twice")
        values[key] = value
    return validate(Split, values, "--split")
