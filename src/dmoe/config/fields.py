"""Which columns of a log become fields, and what of each kind can be said."""

import unicodedata
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from dmoe.config.raw_format import check_no_repeats
from dmoe.errors import nearest
from dmoe.schema import Pooling

# Outputs of the exported graph, and what its inner names start with.
RESERVED_NAMES = ("probability", "logit", "gate_weights")
RESERVED_STARTS = ("fields/", "model/")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
        check_no_repeats("fields", names)
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
        check_no_repeats("fields", self.names())
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
