"""Turns pydantic's complaints into one message that names the file, the key and the nearest known key."""

import difflib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dmoe.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, or the list of known names when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises: ConfigError if the file is absent, is not UTF-8 or YAML, has a repeated key or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    return parse_yaml(text, str(path))


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; a configuration must not."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"key '{key}' appears twice", problem_mark=key_node.start_mark)
        seen[key] = 1
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text; `source` names it in errors."""
    try:
        loaded = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{source}: expected a mapping of keys to values, got {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}


def validate(model: type[ModelT], values: Mapping[str, Any], source: str) -> ModelT:
    """`model` built from `values`; all faults come in one ConfigError, each with its key.

    Raises: ConfigError.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines = [_line(model, fault, source) for fault in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


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
    if get_origin(annotation) in (list, tuple, dict, Union, types.UnionType):
        for argument in get_args(annotation):
            found = _inner_model(argument)
            if found is not None:
                return found
    return None
