"""What an encoded row is: its fields in order, their vocabularies, and how a raw row becomes it.

Written as `schema.json` in every data set and run folder.
"""

import hashlib
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from dmoe.disk.files import read_json, write_text
from dmoe.disk.replaced import check_in_place
from dmoe.errors import DataError
from dmoe.validation import check_version, validate_stored
from dmoe.values.canonical import ValueForm

FORMAT_VERSION = 3
MISSING_ID = 0
OOV_ID = 1
FIRST_TOKEN_ID = 2
# A label that a row does not say, among 0 and 1.
UNKNOWN: Final = 2

# Of a row in one field, and of numbers in an embedding: far above any use, and small enough to be made.
MOST_VALUES = 1 << 16

Pooling = Literal["sum", "mean", "attention", "target"]


class Vectors(BaseModel):
    """Given vectors of a field's tokens, `pretrained/<field>.safetensors`: one row an id, `width` numbers each."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    width: int = Field(ge=1, le=MOST_VALUES)
    trainable: bool = False


class CategoricalField(BaseModel):
    """A field whose value is looked up in a vocabulary.

    Ids: 0 missing, 1 out of vocabulary, then tokens by falling training count, ties by value.
    With `edges` the value is the number of edges below a raw number: the rising inner bounds of quantile buckets.

    `embedding_dim` is a width of its own, which a model projects to that of each table; `table_group` a name under
    which experts can ask for it and others; `vectors` says that its embedding is given. `values` is the type of its raw
    values, by which they are tokens whatever carries them (docs/data.md).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["categorical"] = "categorical"
    name: str
    vocabulary_size: int = Field(ge=FIRST_TOKEN_ID, lt=2**31)  # tokens + 2
    min_count: int = Field(default=1, ge=1)
    edges: tuple[float, ...] | None = None
    embedding_dim: int | None = Field(default=None, ge=1, le=MOST_VALUES)
    table_group: str | None = None
    vectors: Vectors | None = None
    values: ValueForm = ValueForm()

    @property
    def length(self) -> int:
        """Id columns of an encoded row."""
        return 1

    @property
    def vocabulary_name(self) -> str:
        """The field whose vocabulary its ids are of."""
        return self.name


class MultiValuedField(CategoricalField):
    """A field with up to `max_length` values, whose embeddings are pooled to one.

    With `shares` its ids are those of that categorical field, and its embeddings too.
    """

    kind: Literal["multi-valued"] = "multi-valued"  # type: ignore[assignment]
    max_length: int = Field(ge=1, le=MOST_VALUES)
    pooling: Pooling = "mean"
    shares: str | None = None

    @property
    def length(self) -> int:
        return self.max_length

    @property
    def vocabulary_name(self) -> str:
        return self.shares or self.name


class NumericField(BaseModel):
    """A field whose encoded value is a float32: `(transform(x) - mean) / scale`, 0 where missing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["numeric"] = "numeric"
    name: str
    transform: Literal["value", "standardise", "log"] = "value"
    mean: float = 0.0
    scale: float = Field(default=1.0, gt=0)
    table_group: str | None = None


AnyField = Annotated[CategoricalField | MultiValuedField | NumericField, Field(discriminator="kind")]


class Coverage(BaseModel):
    """How far the values of a field were known when the data was prepared, by split.

    `unseen`: share of its values that are out of vocabulary, none of a numeric field; `missing`: share of rows
    without a value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    unseen: dict[str, float] = Field(default_factory=dict)
    missing: dict[str, float]

    @property
    def expected_unseen(self) -> float:
        """What later rows are to show: the larger share of train (tokens below the least count) and valid."""
        return max(self.unseen.get(split, 0.0) for split in ("train", "valid"))

    @property
    def expected_missing(self) -> float:
        return max(self.missing.get(split, 0.0) for split in ("train", "valid"))


class Task(BaseModel):
    """A label that is predicted. With `given`, the name of another, it is defined on the rows that have that one."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    given: str | None = None


class Domain(BaseModel):
    """Which of the S domains a row is of, by its id in a categorical field that holds one value a row.

    `names`: by falling count in train, with `other` last where rare values have rows of their own there; `of_id`: the
    domain's number for each id of the field's vocabulary.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    field: str
    names: tuple[str, ...] = Field(min_length=1)
    of_id: tuple[int, ...]

    @model_validator(mode="after")
    def _numbers_fit(self) -> "Domain":
        outside = [number for number in self.of_id if not 0 <= number < len(self.names)]
        if outside:
            raise ValueError(f"domain number {outside[0]} is none of {len(self.names)}")
        return self


def links(given: Mapping[str, str | None], name: str) -> list[str]:
    """The labels above one and itself last, by what each is given; one that is not said ends the chain."""
    chain = [name]
    while (above := given.get(chain[0])) is not None and above in given and above not in chain:
        chain.insert(0, above)
    return chain


class Schema(BaseModel):
    """The fields of an encoded row and the recipe that made them.

    `label` is the main label. With several, `labels` has them all, the main one first, and the order is that of the
    columns of a batch. `weight` is the shards' column of the rows' weights.

    `source` is the resolved data configuration (delimiter, columns, derivations): with the vocabularies it
    is all that is needed to encode another raw row. `coverage` says by field what later rows are to show; it is
    empty for a schema that was not made of data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format_version: int = FORMAT_VERSION
    label: str
    fields: tuple[AnyField, ...]
    source: dict[str, Any] = Field(default_factory=dict)
    coverage: dict[str, Coverage] = Field(default_factory=dict)
    labels: tuple[Task, ...] = ()
    domain: Domain | None = None
    weight: str | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if value or name not in ("labels", "domain", "weight")}

    @model_validator(mode="after")
    def _labels_fit(self) -> "Schema":
        if not self.labels:
            return self
        names = [task.name for task in self.labels]
        if len(names) < 2 or names[0] != self.label:
            raise ValueError("'labels' lists two labels or more, the first of them 'label'")
        for task in self.labels:
            seen = [task.name]
            while task.given is not None:
                if task.given not in names:
                    raise ValueError(f"label '{task.name}' is given '{task.given}', which is no label")
                if task.given in seen:
                    raise ValueError(f"label '{task.name}' is given itself: {' given '.join([*seen, task.given])}")
                seen.append(task.given)
                task = self.labels[names.index(task.given)]
        return self

    @model_validator(mode="after")
    def _domain_fits(self) -> "Schema":
        if self.domain is None:
            return self
        found = [field for field in self.categorical if field.name == self.domain.field]
        if not found or isinstance(found[0], MultiValuedField):
            raise ValueError(f"domain '{self.domain.field}' is no categorical field")
        if len(self.domain.of_id) != found[0].vocabulary_size:
            raise ValueError(
                f"domain '{self.domain.field}' has {len(self.domain.of_id)} numbers for {found[0].vocabulary_size} ids"
            )
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> "Schema":
        names = [field.name for field in self.fields] + [task.name for task in self.tasks]
        names += [] if self.weight is None else [self.weight]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"these names appear twice: {', '.join(repeated)}")
        if not self.fields:
            raise ValueError("a schema needs at least one field")
        sizes = {
            field.name: field.vocabulary_size for field in self.categorical if not isinstance(field, MultiValuedField)
        }
        for field in self.categorical:
            shares = field.shares if isinstance(field, MultiValuedField) else None
            if shares is not None and sizes.get(shares) != field.vocabulary_size:
                raise ValueError(f"field '{field.name}' shares the vocabulary of '{shares}', which differs")
        return self

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is predicted, the main label first."""
        return self.labels or (Task(name=self.label),)

    def chain(self, name: str) -> tuple[int, ...]:
        """The numbers of the tasks whose probabilities multiply to the joint one of a task, itself last."""
        number = self.task_number(name)
        given = self.tasks[number].given
        return (*(() if given is None else self.chain(given)), number)

    def task_number(self, name: str | None) -> int:
        """The place of a label among `tasks`; None is the main one."""
        return 0 if name is None else [task.name for task in self.tasks].index(name)

    @property
    def domain_column(self) -> int | None:
        """The id column that says the domain, None without domains."""
        if self.domain is None:
            return None
        names = [field.name for field in self.categorical]
        return int(self.id_columns[names.index(self.domain.field)].start)

    @property
    def categorical(self) -> tuple[CategoricalField, ...]:
        """The fields with a vocabulary, multi-valued ones included, in the order of their id columns."""
        return tuple(field for field in self.fields if isinstance(field, CategoricalField))

    def field(self, name: str) -> CategoricalField:
        """The field with a vocabulary of this name."""
        return next(field for field in self.categorical if field.name == name)

    @property
    def id_columns(self) -> list[slice]:
        """The id columns of each categorical field; all but those of multi-valued fields are one wide."""
        ends = list(accumulate(field.length for field in self.categorical))
        return [slice(end - field.length, end) for field, end in zip(self.categorical, ends, strict=True)]

    @property
    def num_ids(self) -> int:
        """Id columns of all categorical fields together."""
        return sum(field.length for field in self.categorical)

    @property
    def numeric(self) -> tuple[NumericField, ...]:
        """The numeric fields, in the order of the numeric columns."""
        return tuple(field for field in self.fields if isinstance(field, NumericField))

    @property
    def vocabulary_sizes(self) -> list[int]:
        return [field.vocabulary_size for field in self.categorical]

    def write(self, folder: Path) -> None:
        write_text(folder / "schema.json", self.model_dump_json(indent=2) + "\n")

    @staticmethod
    def read(folder: Path) -> "Schema":
        """The schema of a data set or run folder.

        Raises: DataError if the folder or file is absent, damaged, or of another format version.
        """
        path = folder / "schema.json"
        check_in_place(folder)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected one made by `dmoe prepare` or `dmoe train`")
        if not path.is_file():
            raise DataError(f"{folder}: has no schema.json, so it is not a data set or run folder of dmoe")
        values = read_json(path)
        remedy = "prepare (and train) again with this version, or install the dmoe that wrote it"
        check_version(values, FORMAT_VERSION, str(path), remedy)
        return validate_stored(Schema, values, str(path))


def vocabulary_path(folder: Path, field: str) -> Path:
    """`vocabulary/<field>.parquet`, the field's name as files can hold it."""
    return folder / "vocabulary" / f"{_file_name(field)}.parquet"


def vectors_path(folder: Path, field: str) -> Path:
    """`pretrained/<field>.safetensors`: the given vectors of a field, tensor `vectors` (V, width) float32."""
    return folder / "pretrained" / f"{_file_name(field)}.safetensors"


def _file_name(field: str) -> str:
    """A name that every file system takes, and that no other field has, also where case makes no difference: capitals
    are written `!c`, what files cannot hold as %xx, and the end of a long name is its BLAKE2b."""
    name = quote(field, safe=" ()[]+=,@!").replace("~", "%7e").replace("!", "%21")
    name = re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), name)
    name = re.sub(r"[A-Z]", lambda found: f"!{found[0].lower()}", name)
    name = re.sub(r"^[. ]|[. ]$", lambda found: f"%{ord(found[0]):02x}", name)
    if _RESERVED.fullmatch(name):
        name = f"%{ord(name[0]):02x}{name[1:]}"
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}~{hashlib.blake2b(field.encode(), digest_size=16).hexdigest()}"
    return name


# Devices of Windows, whatever follows a dot.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.DOTALL)
_LONGEST_NAME = 120
