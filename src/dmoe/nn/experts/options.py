"""The options that a configuration gives to experts, checked against their constructors before any is built."""

import inspect
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from dmoe.errors import ConfigError, nearest
from dmoe.nn.experts.base import Expert, expert_class

# What a configuration may say of every expert; it is not an option of its class.
_OF_ALL = ("kind", "fields", "count", "per")


def check_experts(experts: Sequence[Mapping[str, Any]], source: str) -> None:
    """Checks the kind of each expert and the names and types of its options.

    Args:
        experts: `model.experts` of a configuration.
        source: where they were read, to be named.
    Raises: ConfigError with what is at fault and the nearest known name.
    """
    for index, expert in enumerate(experts):
        where = f"{source}: 'model.experts': experts[{index}]"
        try:
            kind = expert_class(str(expert["kind"]))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        said = {key: value for key, value in expert.items() if key not in _OF_ALL}
        check_options(kind, said, where)


def check_options(expert: type[Expert], said: Mapping[str, Any], where: str) -> None:
    """Checks the names and types of an expert's options.

    Raises: ConfigError with what is at fault and the nearest known name.
    """
    options = expert.options()
    for key, value in said.items():
        if key not in options:
            raise ConfigError(f"{where}: expert '{expert.kind}' has no option '{key}'{nearest(key, options)}")
        if not _fits(value, options[key].annotation):
            shown = inspect.formatannotation(options[key].annotation)
            shown = shown.replace("collections.abc.", "").replace("typing.", "")
            raise ConfigError(f"{where}.{key} must be {shown}, got {value!r}")


def _fits(value: object, annotation: Any) -> bool:
    """Whether a YAML value is of the annotated type; annotations beyond YAML's own types accept anything."""
    if annotation is None or annotation is types.NoneType:
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    return True
