"""Turns pydantic's complaints into one message that names the file, the key and the nearest known key."""

import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

from dmoe.errors import ConfigError, DataError, nearest
from dmoe.yaml_text import settled

ModelT = TypeVar("ModelT", bound=BaseModel)
Count = Annotated[int, Field(strict=True, ge=0)]


class Counted(BaseModel):
    """So many rows, of which so many are positive."""

    rows: Count
    positives: Count

    @model_validator(mode="after")
    def _no_more_positives(self) -> Self:
        if self.positives > self.rows:
            raise ValueError(f"has {self.positives} positives in {self.rows} rows")
        return self


def validate(model: type[ModelT], values: Mapping[str, Any], source: str) -> ModelT:
    """`model` built from `values`; all faults come in one ConfigError, each with its key.

    Unquoted values of a YAML file become what the model takes in their place: see `yaml_text`.

    Raises: ConfigError.
    """
    return _validated(model, settled(values, model), source)


def _validated(model: type[ModelT], values: Any, source: str) -> ModelT:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_line(model, fault, source) for fault in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def validate_stored(model: type[ModelT], values: Mapping[str, Any], source: str) -> ModelT:
    """As `validate`, of what dmoe wrote itself: what is wrong with it is no fault of a configuration.

    Raises: DataError.
    """
    try:
        return _validated(model, values, source)
    except ConfigError as error:
        raise DataError(str(error)) from None


def check_version(values: Mapping[str, Any], version: int, source: str, remedy: str) -> None:
    """Raises: DataError if what dmoe wrote is of another format version; `remedy` says what to do then."""
    found = values.get("format_version")
    if found != version:
        raise DataError(f"{source}: format version {found}, but this dmoe reads version {version}; {remedy}")


def _line(model: type[BaseModel], fault: Any, source: str) -> str:
    location = [part for part in fault["loc"] if not (isinstance(part, str) and "[" in part)]
    key = _dotted(location)
    if fault["type"] == "extra_forbidden":
        parent = _model_at(model, location[:-1])
        known = parent.model_fields if parent else ()
        return f"{source}: unknown key '{key}'{nearest(str(location[-1]), known)}"
    if fault["type"] == "missing":
        return f"{source}: key '{key}' is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    got = fault.get("input")
    shown = "" if isinstance(got, Mapping | list) or fault["type"] == "value_error" else f", got {got!r}"
    return f"{source}: '{key}': {message}{shown}" if key else f"{source}: {message}{shown}"


def _dotted(location: Iterable[object]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _model_at(model: type[BaseModel], location: list[Any]) -> type[BaseModel] | None:
    """The nested model that the keys of `location` lead to."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        if current is None or part not in current.model_fields:
            return current
        current = _inner_model(current.model_fields[part].annotation)
    return current


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, tuple, dict, Annotated, Union, types.UnionType):
        for argument in get_args(annotation):
            found = _inner_model(argument)
            if found is not None:
                return found
    return None
