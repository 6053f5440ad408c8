"""YAML as people mean it: names are kept as they are written.

YAML 1.1 reads `no`, `01`, `1_000`, `12:30:45` and `2014-10-21` as something else than text. Here an unquoted value
keeps its text until it is known what is expected: where a name is, the text stands; where a number, truth value or
nothing is, the plain JSON-like forms are read.
"""

import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from dmoe.disk.files import read_text
from dmoe.errors import ConfigError

# What a file may hold once its aliases are written out: far more than any configuration, and soon counted.
MAX_NODES = 1_000_000

_PLAIN, _QUOTED = "plain", "quoted"
_TEXT_TAG = "tag:yaml.org,2002:str"
_COLLECTIONS = (yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, yaml.resolver.BaseResolver.DEFAULT_SEQUENCE_TAG)
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", "+.inf"), float("inf")),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}
_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)", re.ASCII)
# JSON, which is YAML too, escapes what lies beyond 16 bits as two halves.
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_REAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)


class Plain(str):
    """The text of an unquoted value."""

    __slots__ = ()

    def value(self) -> Any:
        """What the text says where no name is expected: nothing, a truth value, a number, or itself."""
        if self in _WORDS:
            return _WORDS[self]
        try:
            if _INTEGER.fullmatch(self):
                return int(self)
        except ValueError:  # more digits than Python turns into an integer
            return str(self)
        # 01 is no number of JSON, and may be a name; where a number is expected it is still read as one.
        return float(self) if _REAL.fullmatch(self) and not re.match(r"[+-]?0[0-9]", self) else str(self)


class _Loader(yaml.SafeLoader):
    """Tells what is quoted from what is not, and leaves what it means to others."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _QUOTED
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, its unquoted values as `Plain`.

    Raises: ConfigError if the file is absent, too large, not UTF-8 or YAML, has a repeated key or is not a mapping.
    """
    text = read_text(path, encoding="utf-8-sig", error=ConfigError, not_utf8="save the file as UTF-8")
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text, its unquoted values as `Plain`; `source` names it in errors.

    Raises: ConfigError.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return {}
        _Size().of(node)
        loaded = _built(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = str(error.problem or error.context)
        if "'\\t'" in problem:
            problem = (
                "a tab where spaces are expected; indent with spaces, and put a text that starts with one in quotes"
            )
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError(f"{source}: not valid YAML: nested too deeply") from None
    if isinstance(loaded, Plain) and loaded.value() is None:
        return {}
    if not isinstance(loaded, dict):
        kind = "a list" if isinstance(loaded, list) else "a single value"
        raise ConfigError(f"{source}: expected a mapping of keys to values (key: value), got {kind}")
    return loaded


class _Size:
    """Counts nodes with every alias written out, without doing so."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def of(self, node: yaml.Node) -> int:
        if id(node) in self._open:
            raise yaml.MarkedYAMLError(problem="an anchor holds itself", problem_mark=node.start_mark)
        if id(node) not in self._sizes:
            self._open.add(id(node))
            parts: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                parts = [one for pair in node.value for one in pair]
            elif isinstance(node, yaml.SequenceNode):
                parts = node.value
            self._sizes[id(node)] = 1 + sum(self.of(part) for part in parts)
            self._open.discard(id(node))
        if self._sizes[id(node)] > MAX_NODES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_NODES:,} values once its aliases are written out", problem_mark=node.start_mark
            )
        return self._sizes[id(node)]


def _built(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        if node.tag == _PLAIN:
            return Plain(node.value)
        if node.tag in (_QUOTED, _TEXT_TAG):
            return _PAIR.sub(_joined, str(node.value))
    elif node.tag in _COLLECTIONS:
        if isinstance(node, yaml.SequenceNode):
            return [_built(one) for one in node.value]
        if isinstance(node, yaml.MappingNode):
            return _mapping(node)
    raise yaml.MarkedYAMLError(problem=f"the tag {node.tag} has no meaning here", problem_mark=node.start_mark)


def _joined(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")


def _mapping(node: yaml.MappingNode) -> dict[str, Any]:
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be a text", problem_mark=key_node.start_mark)
        if key_node.tag == _PLAIN and key_node.value == "<<":
            given = _built(value_node)
            for one in given if isinstance(given, list) else [given]:
                if not isinstance(one, dict):
                    raise yaml.MarkedYAMLError(problem="'<<' takes mappings only", problem_mark=key_node.start_mark)
                merged = {**one, **merged}
            continue
        key = str(_built(key_node))
        if key in own:
            raise yaml.MarkedYAMLError(problem=f"key '{key}' appears twice", problem_mark=key_node.start_mark)
        own[key] = _built(value_node)
    return {**merged, **own}


def settled(value: Any, expected: Any = Any) -> Any:
    """`value` with each `Plain` in it as what `expected`, a type annotation, takes: its text where a name goes."""
    if isinstance(value, Plain):
        return _scalar(value, _arms(expected))
    if isinstance(value, Mapping):
        return {str(key): settled(one, _below(expected, str(key))) for key, one in value.items()}
    if isinstance(value, list):
        return [settled(one, _entry(expected)) for one in value]
    return value


def _scalar(text: Plain, arms: list[Any]) -> Any:
    value = text.value()
    if any(getattr(arm, "named_by_text", False) for arm in arms):  # a model that a name alone stands for
        return str(text)
    if any(get_origin(arm) is Literal and str(text) in get_args(arm) for arm in arms):
        return str(text)
    if value is None and types.NoneType in arms:
        return None
    if str in arms and not (type(value) in arms or (type(value) is int and float in arms)):
        return str(text)
    return value


def _arms(expected: Any) -> list[Any]:
    """The alternatives of an annotation."""
    origin = get_origin(expected)
    if origin is Annotated:
        return _arms(get_args(expected)[0])
    if origin in (Union, types.UnionType):
        return [arm for one in get_args(expected) for arm in _arms(one)]
    return [expected]


def _below(expected: Any, key: str) -> Any:
    """What a mapping expects under a key."""
    for arm in _arms(expected):
        if isinstance(arm, type) and issubclass(arm, BaseModel) and key in arm.model_fields:
            return arm.model_fields[key].annotation
        if get_origin(arm) in (dict, Mapping):
            return get_args(arm)[1]
    return Any


def _entry(expected: Any) -> Any:
    """What a list expects; where a mapping by name is expected, a list is one of names."""
    for arm in _arms(expected):
        origin, inner = get_origin(arm), get_args(arm)
        if origin in (list, tuple, set, frozenset):
            return inner[0] if inner else Any
        if origin in (dict, Mapping):
            return str
    return Any
