"""JSON bodies of the Open Inference Protocol: bounded before they are parsed, known by each of their keys."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from dmoe.outputs import TaskOutputs, all_outputs, probabilities
from dmoe.serving.rows import JSON_TYPES, JsonColumn, RequestError, Room

# Keys of the protocol's request, of each of its inputs, and of each of its outputs.
_REQUEST_KEYS = ("id", "parameters", "inputs", "outputs")
_INPUT_KEYS = ("name", "shape", "datatype", "parameters", "data")
_OUTPUT_KEYS = ("name", "parameters")

# At least what Python holds for what follows a comma, colon or opening bracket, beside a text's own bytes.
_VALUE_BYTES = 64
_BEFORE_VALUES = b",:[{"
# A text of one character beyond the first 65,536 takes four bytes for each of its characters.
_WIDEST = 4


@dataclass(frozen=True, slots=True)
class JsonRequest:
    """A request of known keys; `outputs` names each once, the default where none is named."""

    label: str | None
    outputs: list[str]
    columns: list[JsonColumn]


def read_request(body: bytes, tasks: Sequence[TaskOutputs], max_rows: int, max_columns: int, room: Room) -> JsonRequest:
    """Parses a request body for a model of these tasks.

    Raises: RequestError: 413 for more than `max_rows` rows or what would take more memory than `room`, else 400.
    """
    room.take(unfolded_bytes(body, room.limit))
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise RequestError(400, "the body is not JSON") from None
    if not isinstance(values, dict):
        raise RequestError(400, "the body must be a JSON object")
    _known_keys(values, _REQUEST_KEYS, "the body")
    label = values.get("id")
    if label is not None and (not isinstance(label, str) or len(label) > 256):
        raise RequestError(400, "'id' must be a text of at most 256 characters")
    wanted = values.get("outputs", [])
    if not isinstance(wanted, list) or not all(isinstance(one, dict) for one in wanted):
        raise RequestError(400, "'outputs' must be a list of objects with a name")
    known = all_outputs(tasks)
    if len(wanted) > len(known):
        raise RequestError(400, f"more outputs than there are; known: {', '.join(known)}")
    for one in wanted:
        _known_keys(one, _OUTPUT_KEYS, "an output")
    names = output_names([one.get("name") for one in wanted], tasks)
    columns = json_columns(values.get("inputs"), max_rows, max_columns)
    _check_keys(body, values)
    return JsonRequest(label, names, columns)


def output_names(names: list[Any], tasks: Sequence[TaskOutputs]) -> list[str]:
    """Each named output once, by default every probability. Raises: RequestError (400) for an unknown one."""
    known = all_outputs(tasks)
    for name in names:
        if name not in known:
            raise RequestError(400, f"an output is unknown; known: {', '.join(known)}")
    return list(dict.fromkeys(names)) or list(probabilities(tasks))


def json_columns(inputs: Any, max_rows: int, max_columns: int) -> list[JsonColumn]:
    """The `inputs` of an Open Inference request, all of one number of rows.

    Raises: RequestError (400, or 413 for more than `max_rows` rows).
    """
    if not isinstance(inputs, list) or not inputs:
        raise RequestError(400, "'inputs' must be a list of tensors")
    if len(inputs) > max_columns:
        raise RequestError(400, f"more inputs than the {max_columns} columns of the model; GET the model for them")
    columns = []
    for one in inputs:
        if not isinstance(one, Mapping) or not isinstance(one.get("name"), str):
            raise RequestError(400, "each of 'inputs' must be an object with name, shape, datatype and data")
        name, datatype, shape, data = one["name"], one.get("datatype"), one.get("shape"), one.get("data")
        _known_keys(one, _INPUT_KEYS, f"input '{name[:64]}'")
        if not isinstance(datatype, str) or datatype not in JSON_TYPES:
            raise RequestError(400, f"input '{name[:64]}': datatype must be one of {', '.join(sorted(JSON_TYPES))}")
        if not isinstance(data, list):
            raise RequestError(400, f"input '{name[:64]}': data must be a list")
        if shape not in ([len(data)], [len(data), 1]) or not data:
            raise RequestError(
                400, f"input '{name[:64]}': shape must be [rows] or [rows, 1] of its data, at least one row"
            )
        if len(data) > max_rows:
            raise RequestError(413, f"more than {max_rows} rows; send them in several requests")
        # [rows, 1] may come nested, one list a row.
        if len(shape) == 2 and all(isinstance(value, list) and len(value) == 1 for value in data):
            data = [value[0] for value in data]
        columns.append(JsonColumn(name, datatype, data))
    if len({len(column.data) for column in columns}) > 1:
        raise RequestError(400, "the inputs must all have the same number of rows")
    return columns


def unfolded_bytes(body: bytes, limit: int) -> int:
    """About the bytes of memory that a JSON body takes once parsed; exact counts only where quick ones pass `limit`.

    A body of `[],[],…` takes thirty times its own size.
    """
    widest = 1 if body.isascii() and b"\\u" not in body else _WIDEST
    size = len(body) * widest + _VALUE_BYTES * sum(body.count(mark) for mark in _BEFORE_VALUES)
    return size if size <= limit else len(body) * widest + _VALUE_BYTES * _outside_texts(body, _BEFORE_VALUES)


def _outside_texts(body: bytes, marks: bytes) -> int:
    """How often any of `marks` stands outside the texts of a JSON body, as far as it is JSON."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
    characters = np.frombuffer(body, np.uint8)
    found = np.zeros(len(characters), bool)
    for mark in marks:
        found |= characters == mark
    # Between an odd quote and the next is a text, which starts before the mark of its key or value.
    found &= ~np.bitwise_xor.accumulate(characters == ord('"'))
    return int(np.count_nonzero(found))


def _known_keys(values: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key[:64], known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            raise RequestError(400, f"{where} has the unknown key '{key[:64]}'; {hint}")
    parameters = values.get("parameters", {})
    if not isinstance(parameters, dict) or any(isinstance(one, dict | list) for one in parameters.values()):
        raise RequestError(400, f"{where}: 'parameters' must be an object of texts, numbers and truth values")


def _check_keys(body: bytes, values: Mapping[str, Any]) -> None:
    """Raises: RequestError (400) if an object of a JSON body has a key twice, of which its parser keeps the last.

    Args:
        values: the parsed body, of known keys.
    """
    objects = [values, *values["inputs"], *values.get("outputs", [])]
    pairs = sum(len(one) + len(one.get("parameters", ())) for one in objects)
    # There is a colon after each key, and more of them where one is lost or a text holds one.
    if body.count(b":") != pairs and _outside_texts(body, b":") != pairs:
        raise RequestError(400, "a key appears twice in one object; send each once")
