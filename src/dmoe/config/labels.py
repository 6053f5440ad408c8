"""Which columns of a log are labels, which one tells the domain of a row, and which one its weight."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from dmoe.config.raw_format import check_no_repeats
from dmoe.errors import nearest

# What a row does whose label says 1 where the label that it is given says 0.
Contradictions = Literal["keep", "reject", "raise-parent"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(_Strict):
    """The label column. Without `positive` it holds 0 and 1, or true and false, in any spelling; with it, these values
    are clicks and `negative`, by default all others, are none. Values compare by value: 1 is "1" and 1.0.

    `missing`: rows without the label are rejected, count as `negative`, or have it `unknown`; a row with no known label
    is rejected.
    """

    named_by_text: ClassVar[bool] = True
    column: str = Field(min_length=1)
    positive: tuple[str, ...] | None = None
    negative: tuple[str, ...] | None = None
    missing: Literal["reject", "negative", "unknown"] = "reject"

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
        return self.column if self == type(self)(column=self.column) else serialise(self)


class TaskLabel(Label):
    """One of several labels. By default it is `unknown` where it is missing: the row counts for other labels alone.

    `given` names the label without which it has no meaning: a conversion is given a click, and is unknown in rows
    without one, whatever its column says.
    """

    missing: Literal["reject", "negative", "unknown"] = "unknown"
    given: str | None = None


class DomainRule(_Strict):
    """The categorical field, by its name or its column, whose value is the domain of a row. Values with fewer than
    `min_count` training rows are one domain together."""

    named_by_text: ClassVar[bool] = True
    column: str = Field(min_length=1)
    min_count: int = Field(default=1, ge=1)


class WeightColumn(_Strict):
    """The column with the weight of each row: a number from 0 on, by which its loss counts."""

    named_by_text: ClassVar[bool] = True
    column: str = Field(min_length=1)


def by_column(value: Any) -> Any:
    """A column's name alone, or a mapping with it, as a mapping."""
    return {"column": value} if isinstance(value, str) else value


def labels_by_name(value: Any) -> Any:
    """A list of names, or a mapping of names to options, as a mapping; a column bears the label's name by default."""
    if isinstance(value, list | tuple):
        names = [str(name) for name in value]
        check_no_repeats("labels", names)
        return {name: {"column": name} for name in names}
    if not isinstance(value, Mapping):
        return value
    found = {}
    for name, options in value.items():
        if options is None or options == "":
            options = {}
        options = by_column(options)
        found[str(name)] = {"column": str(name), **options} if isinstance(options, Mapping) else options
    return found


def check_labels(labels: Mapping[str, TaskLabel], contradictions: Contradictions) -> None:
    """Raises: ValueError naming the label at fault: its name, its parent, or a cycle of `given`."""
    for name, label in labels.items():
        if not name.strip() or not name.isprintable():
            raise ValueError(f"labels: the name {name!r} is empty or holds a control character; give the label another")
        for sign in (".", "+"):
            if sign in name:
                raise ValueError(
                    f"labels: the name '{name}' holds '{sign}', which joins the names of outputs; give the label "
                    f"another, as in {name.replace('.', '_').replace('+', '_')}: {{column: {label.column}}}"
                )
        if label.given is not None and label.given not in labels:
            raise ValueError(f"labels.{name}: given '{label.given}', which is no label{nearest(label.given, labels)}")
    for name in labels:
        chain = [name]
        while (parent := labels[chain[-1]].given) is not None:
            if parent in chain:
                cycle = " given ".join(map(repr, [*chain[chain.index(parent) :], parent]))
                raise ValueError(f"labels: {cycle} is a cycle; one of them must be given no other")
            chain.append(parent)
    if contradictions != "keep" and not any(label.given for label in labels.values()):
        raise ValueError(f"'contradictions: {contradictions}' is about labels that are 'given' another, and none is")
