"""The ONNX graph from fields to ids and numbers, and its union with the model's graph.

Shape suffixes: B rows, C id columns, L values of a multi-valued field, N numeric fields, K bucket fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dmoe.errors import DataError
from dmoe.export.extra import require
from dmoe.export.fields import FieldInput
from dmoe.export.manifest import VALUES
from dmoe.schema import MISSING_ID, OOV_ID, NumericField, Schema

OPSET = 20
ML_OPSET = 3
IR_VERSION = 10

# Bucket numbers stay in the range in which float64 and int64 agree; a missing one gets a number beyond it.
_BUCKET_LIMIT = 2**53
_NO_BUCKET = 2**60


class _Graph:
    """Nodes and constants, named `fields/…`: a field's input has its own name and must not meet them."""

    def __init__(self) -> None:
        self.onnx = require("onnx", "export")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = f"fields/{output or f'{operator}_{len(self.nodes)}'}"
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: type) -> str:
        name = f"fields/constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name


def front_graph(schema: Schema, inputs: Sequence[FieldInput], tokens: Mapping[str, Mapping[str, int]]) -> Any:
    """A model from the fields' inputs, (B, 1) or of multi-valued fields (B, L), to `fields/values` and `fields/ids`
    (B, C) int64 and `fields/numeric` (B, N) float32. The former differ where missing values are to count as unseen.

    Args:
        tokens: value to id of every field whose input is text or a bucket.
    Raises: DataError if a bucket token is no whole number within ±2⁵³.
    """
    graph = _Graph()
    types = graph.onnx.TensorProto
    kinds = {"text": types.STRING, "number": types.DOUBLE, "id": types.INT64}
    by_name = {one.name: one for one in inputs}
    categorical = [by_name[field.name] for field in schema.categorical]
    ids = _id_columns(graph, categorical, schema, tokens)
    outputs = []
    if ids:
        values = graph.add("Concat", *ids, output="values", axis=1)
        _merged_missing(graph, values, categorical)
        outputs += [
            graph.onnx.helper.make_tensor_value_info(name, types.INT64, ["batch", schema.num_ids])
            for name in (VALUES, "fields/ids")
        ]
    if schema.numeric:
        _scaled_numbers(graph, schema.numeric)
        outputs.append(
            graph.onnx.helper.make_tensor_value_info("fields/numeric", types.FLOAT, ["batch", len(schema.numeric)])
        )
    body = graph.onnx.helper.make_graph(
        graph.nodes,
        "fields",
        [graph.onnx.helper.make_tensor_value_info(one.name, kinds[one.kind], ["batch", one.width]) for one in inputs],
        outputs,
        graph.constants,
    )
    opsets = [graph.onnx.helper.make_opsetid("", OPSET), graph.onnx.helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return graph.onnx.helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION)


def _id_columns(
    graph: _Graph, inputs: Sequence[FieldInput], schema: Schema, tokens: Mapping[str, Mapping[str, int]]
) -> list[str]:
    sizes = dict(zip((field.name for field in schema.categorical), schema.vocabulary_sizes, strict=True))
    buckets = [one for one in inputs if one.bucket]
    bucket_columns: dict[str, str] = {}
    if buckets:
        numbers = graph.add("Concat", *(one.name for one in buckets), axis=1)
        bucketed = _buckets(graph, numbers)
        for index, one in enumerate(buckets):
            column = graph.constant([index], np.int64)
            bucket_columns[one.name] = graph.add("Gather", bucketed, column, axis=1)
    columns = []
    for one in inputs:
        if one.kind == "id":
            # ONNX Runtime reads row -1 as the last one without a word: an id out of range becomes unseen.
            size, zero = graph.constant(sizes[one.name], np.int64), graph.constant(0, np.int64)
            inside = graph.add("And", graph.add("Less", one.name, size), graph.add("GreaterOrEqual", one.name, zero))
            columns.append(graph.add("Where", inside, one.name, graph.constant(OOV_ID, np.int64)))
            continue
        keys: dict[Any, int]
        if one.bucket:
            keys = {_bucket_number(one.name, token): id_ for token, id_ in tokens[one.name].items()}
            keys |= {int(text): MISSING_ID for text in one.missing_texts if _is_bucket(text)}
            keys[_NO_BUCKET] = MISSING_ID
            columns.append(_encoder(graph, bucket_columns[one.name], keys, keys_int64s=list(keys)))
        else:
            keys = {**tokens[one.name], **dict.fromkeys((*one.missing_texts, one.null), MISSING_ID)}
            columns.append(_encoder(graph, one.name, keys, keys_strings=list(keys)))
    return columns


def _merged_missing(graph: _Graph, values: str, inputs: Sequence[FieldInput]) -> str:
    """The ids that the model takes: a missing value of some fields is as an unseen one."""
    merged_C = [one.missing_id == OOV_ID for one in inputs for _ in range(one.width)]
    if not any(merged_C):
        return graph.add("Identity", values, output="ids")
    empty = graph.add("Equal", values, graph.constant(MISSING_ID, np.int64))
    merged = graph.add("And", empty, graph.constant([merged_C], np.bool_))
    return graph.add("Where", merged, graph.constant(OOV_ID, np.int64), values, output="ids")


def _encoder(graph: _Graph, source: str, keys: Mapping[Any, int], **typed_keys: Any) -> str:
    values = list(keys.values())
    domain = "ai.onnx.ml"
    return graph.add("LabelEncoder", source, domain=domain, values_int64s=values, default_int64=OOV_ID, **typed_keys)


def _buckets(graph: _Graph, numbers_BK: str) -> str:
    """floor(ln(x)²) above 2, else x cut to an integer, as int64; all in float64, where it equals Python's."""
    two, one, zero = (graph.constant(value, np.float64) for value in (2, 1, 0))
    above = graph.add("Greater", numbers_BK, two)
    log = graph.add("Log", graph.add("Where", above, numbers_BK, one))
    squared = graph.add("Floor", graph.add("Mul", log, log))
    negative = graph.add("Less", numbers_BK, zero)
    cut = graph.add("Where", negative, graph.add("Ceil", numbers_BK), graph.add("Floor", numbers_BK))
    bucket = graph.add("Where", above, squared, cut)
    # Clipped before the cast: infinity would become the smallest int64.
    limits = (graph.constant(-_BUCKET_LIMIT - 1, np.float64), graph.constant(_BUCKET_LIMIT + 1, np.float64))
    clipped = graph.add("Clip", bucket, *limits)
    missing = graph.constant(_NO_BUCKET, np.float64)
    present = graph.add("Where", graph.add("IsNaN", numbers_BK), missing, clipped)
    return graph.add("Cast", present, to=graph.onnx.TensorProto.INT64)


def _is_bucket(text: str) -> bool:
    return text.removeprefix("-").isdigit() and str(int(text)) == text and abs(int(text)) < _BUCKET_LIMIT


def _bucket_number(field: str, token: str) -> int:
    if not _is_bucket(token):
        raise DataError(
            f"field '{field}': bucket '{token}' is beyond ±2^53 and cannot be exported; raise its min_count"
        )
    return int(token)


def _scaled_numbers(graph: _Graph, fields: Sequence[NumericField]) -> None:
    """`(transform(x) - mean) / scale` in float64, 0 where missing, as float32."""
    # Two columns at least: ONNX Runtime drops a step whose one constant is 0 or 1 in float32, be it none in float64.
    wide = [*fields, *fields] if len(fields) == 1 else fields
    numbers = graph.add("Concat", *(field.name for field in wide), axis=1)
    values = numbers
    logs = [field.transform == "log" for field in wide]
    if any(logs):
        log = graph.add("Mul", graph.add("Sign", numbers), _log_of_one_more(graph, graph.add("Abs", numbers)))
        values = log if all(logs) else graph.add("Where", graph.constant([logs], np.bool_), log, numbers)
    centred = graph.add("Sub", values, graph.constant([[field.mean for field in wide]], np.float64))
    scaled = graph.add("Div", centred, graph.constant([[field.scale for field in wide]], np.float64))
    present = graph.add("Where", graph.add("IsNaN", numbers), graph.constant(0, np.float64), scaled)
    asked = graph.add("Gather", present, graph.constant(list(range(len(fields))), np.int64), axis=1)
    graph.add("Cast", asked, output="numeric", to=graph.onnx.TensorProto.FLOAT)


def _log_of_one_more(graph: _Graph, numbers: str) -> str:
    """ln(1 + x) to the last digits of float64, for which ONNX has no operator: with u = 1 + x as it is rounded,
    ln(u) * x / (u - 1), or x where u is 1 (Goldberg 1991, theorem 4)."""
    one = graph.constant(1, np.float64)
    above = graph.add("Add", numbers, one)
    added = graph.add("Sub", above, one)
    lost = graph.add("Equal", added, graph.constant(0, np.float64))
    log = graph.add("Mul", graph.add("Log", above), graph.add("Div", numbers, graph.add("Where", lost, one, added)))
    return graph.add("Where", lost, numbers, log)


def joined(front: Any, model: Any) -> Any:
    """The front graph followed by the model's, whose inputs `ids` and `numeric` it feeds."""
    onnx = require("onnx", "export")
    compose = require("onnx.compose", "export")
    inner = compose.add_prefix(model, "model/", rename_outputs=False)
    fed = [
        (output.name, output.name.replace("fields/", "model/"))
        for output in front.graph.output
        if output.name != VALUES
    ]
    body = compose.merge_graphs(front.graph, inner.graph, io_map=fed)
    # The model takes ids and numbers even if the schema has no field of the one kind or the other.
    unused = [one for one in body.input if one.name.startswith("model/")]
    for one in unused:
        body.input.remove(one)
    merged = onnx.helper.make_model(body, opset_imports=front.opset_import, ir_version=IR_VERSION)
    merged.functions.extend(inner.functions)
    return merged
