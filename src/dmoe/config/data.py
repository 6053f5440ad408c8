"""`data.yaml`: what a raw log is, which of its columns become fields, and how the rows are split."""

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from dmoe.config.fields import CategoricalOptions, Fields, MultiValuedOptions, NumericOptions, PretrainedOptions
from dmoe.config.labels import (
    Contradictions,
    DomainRule,
    Label,
    TaskLabel,
    WeightColumn,
    by_column,
    check_labels,
    labels_by_name,
)
from dmoe.config.raw_format import Derivation, LogFormat, NumberFormat
from dmoe.config.time_patterns import checked_format
from dmoe.errors import ConfigError, nearest
from dmoe.validation import validate
from dmoe.yaml_text import read_yaml

SPLITS = ("train", "valid", "test")
HELD_OUT = ("valid", "test")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitRule(_Strict):
    """`ordered` by position in the input; `random`; `stratified` (each class of `label` apart, by default of the main
    one); `time` by a column; `given` (every input says which split it is). Shares sum to 1; a share of 0 leaves that
    split out. `label` is also the one whose rate in each split is shown.

    The time is a number, or of a `format` of `Derivation`: then moments compare, whatever zone they are written in.
    """

    kind: Literal["ordered", "random", "stratified", "time", "given"] = "ordered"
    train: float = Field(default=0.8, gt=0, le=1)
    valid: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    column: str | None = None
    format: str = "number"
    label: str | None = None

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> "SplitRule":
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

    @model_serializer(mode="wrap")
    def _as_written(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a label that is not said."""
        values: dict[str, Any] = serialise(self)
        return {key: value for key, value in values.items() if key != "label" or value is not None}

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
    """A whole `data.yaml`: one `label`, or several `labels`, of which the first is the main one."""

    description: str = ""
    checks: Checks | None = None
    label: Annotated[Label, BeforeValidator(by_column)] | None = None
    labels: Annotated[dict[str, Annotated[TaskLabel, BeforeValidator(by_column)]], BeforeValidator(labels_by_name)] = {}
    contradictions: Contradictions = "keep"
    domain: Annotated[DomainRule, BeforeValidator(by_column)] | None = None
    weight: Annotated[WeightColumn, BeforeValidator(by_column)] | None = None
    split: SplitRule = SplitRule()
    fields: Fields
    derive: dict[str, Derivation] = {}
    format: LogFormat = LogFormat()

    @model_validator(mode="after")
    def _labels_fit(self) -> "DataConfig":
        if self.label is not None and self.labels:
            raise ValueError("'label' and 'labels' are both given; say 'labels' alone, the main one first")
        if self.label is None and not self.labels:
            raise ValueError("key 'label' is missing")
        check_labels(self.labels, self.contradictions)
        names = self.fields.names()
        inputs = {*names, *(self.source_column(name) for name in names)}
        for name, label in self.tasks.items():
            if label.column in inputs:
                what = "the label" if name == label.column else f"the label '{name}'"
                raise ValueError(f"'{label.column}' is {what} and cannot be a field too")
            if name in names:
                raise ValueError(f"'{name}' is the name of a label and of a field; name one of them differently")
        if self.split.label is not None and self.split.label not in self.tasks:
            raise ValueError(f"split.label: no label '{self.split.label}'{nearest(self.split.label, self.tasks)}")
        if self.weight is not None:
            weight = self.weight.column
            if weight in inputs:
                raise ValueError(f"'{weight}' is the weight and cannot be a field too")
            if weight in self.label_columns() or weight in self.tasks:
                raise ValueError(f"'{weight}' is the weight and cannot be a label too")
        self.domain_field()
        return self

    @model_validator(mode="after")
    def _names_fit(self) -> "DataConfig":
        names = self.fields.names()
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

    @model_serializer(mode="wrap")
    def _as_written(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not said, and one label as `label` where that says all."""
        values: dict[str, Any] = serialise(self)
        if len(self.labels) == 1:
            ((name, label),) = self.tasks.items()
            if name == label.column and "labels" in values:
                plain = Label(**{key: getattr(label, key) for key in Label.model_fields}).model_dump()
                values.pop("label", None)
                values = {("label" if key == "labels" else key): value for key, value in values.items()}
                values["label"] = plain
        unsaid: dict[str, Any] = {"label": None, "labels": {}, "contradictions": "keep", "domain": None, "weight": None}
        return {key: value for key, value in values.items() if key not in unsaid or value != unsaid[key]}

    @property
    def tasks(self) -> dict[str, TaskLabel]:
        """The labels by name, the main one first. What a single label lacks is no label at all: `reject`."""
        if len(self.labels) > 1:
            return self.labels
        alone = dict(self.labels) if self.label is None else {self.label.column: self.label}
        ((name, label),) = alone.items()
        values = {key: getattr(label, key) for key in Label.model_fields}
        lacking = "negative" if label.missing == "negative" else "reject"
        return {name: TaskLabel(**{**values, "missing": lacking})}

    def label_columns(self) -> list[str]:
        """The raw columns that the labels are read from, no repeats."""
        return list(dict.fromkeys(label.column for label in self.tasks.values()))

    def domain_field(self) -> str | None:
        """The field whose value is the domain of a row.

        Raises: ValueError if what `domain` names is no categorical field, or several.
        """
        if self.domain is None:
            return None
        name = self.domain.column
        if name in self.fields.categorical:
            return name
        readers = [field for field in self.fields.categorical if self.source_column(field) == name]
        if len(readers) > 1:
            raise ValueError(f"domain: the column '{name}' has several fields; name one of {', '.join(readers)}")
        if not readers:
            close = nearest(name, self.fields.categorical)
            raise ValueError(f"domain: '{name}' is no categorical field{close}; list it under fields.categorical")
        return readers[0]

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
        """All raw columns that preparing reads: labels, weight, time of the split, sources of the fields."""
        weight = [self.weight.column] if self.weight is not None else []
        time = [str(self.split.column)] if self.split.kind == "time" else []
        return list(dict.fromkeys([*self.label_columns(), *weight, *time, *self.field_columns()]))

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


def parse_split(text: str) -> SplitRule:
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
    return validate(SplitRule, values, "--split")
