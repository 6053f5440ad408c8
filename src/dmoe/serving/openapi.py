"""The parts of the OpenAPI description that follow from the Open Inference Protocol, not from Python types."""

from collections.abc import Mapping, Sequence
from typing import Any

from dmoe.outputs import KINDS

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"

_DATATYPES = ["BYTES", "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
              "FP16", "FP32", "FP64"]  # fmt: skip
_SCALAR = {"type": ["string", "number", "boolean", "null"]}
_PARAMETERS = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
    "description": "Of the protocol; none has a meaning here.",
}


def infer_response(outputs: Sequence[str]) -> dict[str, Any]:
    """The schema of the answer of a model with these outputs."""
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "shape", "datatype", "data"],
                    "properties": {
                        "name": {"type": "string", "enum": list(outputs)},
                        "shape": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
                        "datatype": {"type": "string", "enum": ["FP32"]},
                        "data": {"type": "array", "items": {"type": "number"}},
                    },
                },
            },
        },
    }


_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_ERRORS = {
    400: "The request is malformed: the message names the input and row",
    401: "No token, or a wrong one",
    405: "The path knows other methods",
    408: "The body did not arrive in time",
    413: "Too many bytes, rows or values",
    415: "Neither JSON nor an Arrow stream",
    421: "The Host header names another host than this one",
    429: "The queue is full; try again after the seconds of Retry-After",
    503: "Not ready, or too many connections",
    504: "Not scored in time",
}


def responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, beside those that every route can give."""
    return {
        code: {"description": _ERRORS[code], "content": {JSON: {"schema": _ERROR}}} for code in (401, 405, 421, *codes)
    }


def answer(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "Done", "content": {JSON: {"schema": schema}}}}


def infer_body(inputs: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> dict[str, Any]:
    """The body of an inference request for a model with these inputs and outputs, with an example of one row."""
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"type": "string", "enum": [one["name"] for one in inputs]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 2},
            "datatype": {"type": "string", "enum": _DATATYPES},
            "data": {
                "type": "array",
                "minItems": 1,
                "items": {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "maxItems": 1}]},
            },
            "parameters": _PARAMETERS,
        },
        "additionalProperties": False,
    }
    named = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string", "enum": list(outputs)}, "parameters": _PARAMETERS},
        "additionalProperties": False,
    }
    default = "By default the probability alone." if len(outputs) == len(KINDS) else "By default all probabilities."
    request = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "maxLength": 256},
            "parameters": _PARAMETERS,
            "inputs": {"type": "array", "minItems": 1, "items": tensor, "description": "One tensor a raw column."},
            "outputs": {"type": "array", "items": named, "description": default},
        },
        "additionalProperties": False,
    }
    row = [{"name": one["name"], "shape": [1], "datatype": one["datatype"], "data": [one["example"]]} for one in inputs]
    arrow = {"schema": {"type": "string", "format": "binary"}}
    content = {JSON: {"schema": request, "example": {"inputs": row}}, ARROW: arrow}
    return {"requestBody": {"required": True, "content": content}}


def infer_answer(outputs: Sequence[str]) -> dict[int | str, dict[str, Any]]:
    headers = {
        f"X-Dmoe-{kind}": {
            "description": f"Fields with far more {kind.lower()} values than in training: field;share, …",
            "schema": {"type": "string"},
        }
        for kind in ("Unseen", "Missing")
    }
    content = {
        JSON: {"schema": infer_response(outputs)},
        ARROW: {"schema": {"type": "string", "format": "binary"}},
    }
    return {200: {"description": "One score a row, in the form of the request", "headers": headers, "content": content}}
