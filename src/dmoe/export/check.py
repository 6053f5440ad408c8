"""Whether the export knows every token, and the raw values of encoded rows.

B rows of a batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dmoe.errors import DmoeError
from dmoe.export.extra import require
from dmoe.export.fields import Column, Features, FieldInput, text_ids
from dmoe.export.onnx_model import Graph
from dmoe.schema import FIRST_TOKEN_ID, MISSING_ID, OOV_ID, NumericField, Schema
from dmoe.shards.batch import SCORING_ROWS, Batch
from dmoe.tokens.lookup import TokenTable
from dmoe.tokens.vocabulary import read_vocabulary

Floats: TypeAlias = npt.NDArray[np.float64]
Scorer: TypeAlias = Callable[[Batch], dict[str, Floats]]  # (B,) by the name of the output

_UNSEEN = "\0unseen"  # no line of text can hold it


def check_tokens(
    front: Any, schema: Schema, inputs: Sequence[FieldInput], tokens: Mapping[str, Mapping[str, int]]
) -> None:
    """Runs every token, missing text and an unseen one of every field through the graph.

    Raises: DmoeError if one gets another id than its vocabulary says.
    """
    session = require("onnxruntime", "export").InferenceSession(front.SerializeToString())
    for field, columns in zip(schema.categorical, schema.id_columns, strict=True):
        one = next(one for one in inputs if one.name == field.name)
        if one.kind == "id":
            continue
        expected = {**tokens[one.name], one.null: one.missing_id}
        if one.bucket:
            values: Column = np.array([bucket_number(text) for text in expected if text != one.null] + [math.nan])
        else:
            expected |= {**dict.fromkeys(one.missing_texts, one.missing_id), _UNSEEN: OOV_ID}
            values = np.array(list(expected), dtype=object)
        for start in range(0, len(values), SCORING_ROWS):
            part = values[start : start + SCORING_ROWS]
            ids = session.run(["fields/ids"], {**_nulls(inputs, len(part)), one.name: part.reshape(-1, 1)})[0]
            wanted = list(expected.values())[start : start + len(part)]
            if ids[:, columns.start].tolist() != wanted:
                raise DmoeError(f"field '{one.name}': the graph gives a token another id than the vocabulary")


def _nulls(inputs: Sequence[FieldInput], rows: int) -> Features:
    columns: Features = {}
    for one in inputs:
        value: Any = {"text": one.null, "number": math.nan, "id": MISSING_ID}[one.kind]
        dtype = {"text": object, "number": float, "id": int}[one.kind]
        columns[one.name] = np.full((rows, one.width), value, dtype=dtype)
    return columns


def bucket_number(token: str) -> float:
    """A number that lies in a bucket: the middle of floor(ln(x)²) = token, or the token itself up to 2."""
    bucket = int(token)
    return math.exp(math.sqrt(bucket + 0.5)) if bucket > 2 else float(bucket)


class Decoder:
    """Encoded rows back to raw values: what training saw, numbers up to rounding and missing where encoded as that."""

    def __init__(
        self, schema: Schema, inputs: Sequence[FieldInput], vocabularies: Path, tables: Mapping[str, TokenTable]
    ) -> None:
        self._schema, self._inputs, self._tables = schema, inputs, tables
        self._texts: dict[str, list[str]] = {
            field.name: list(read_vocabulary(vocabularies, field))
            for field in schema.categorical
            if field.name not in tables
        }

    def scorer(self, graph: Graph, outputs: Sequence[str]) -> Scorer:
        def score(batch: Batch) -> dict[str, Floats]:
            return {name: one[:, 0].astype(np.float64) for name, one in graph.run(self(batch), outputs).items()}

        return score

    def __call__(self, batch: Batch) -> Features:
        ids_BC, numeric_BN = batch.ids_BC.numpy(), batch.numeric_BN.double().numpy()
        by_name = {one.name: one for one in self._inputs}
        features: Features = {}
        for field, columns in zip(self._schema.categorical, self._schema.id_columns, strict=True):
            one = by_name[field.name]
            features[field.name] = self._categorical(one, ids_BC[:, columns].reshape(-1)).reshape(-1, one.width)
        for index, numeric in enumerate(self._schema.numeric):
            encoded_B = numeric_BN[:, index]
            features[numeric.name] = np.where(encoded_B == 0, math.nan, _unscaled(numeric, encoded_B)).reshape(-1, 1)
        return features

    def example(self, one: FieldInput) -> str | float | None:
        """A frequent value of a field, None if its vocabulary is empty."""
        numeric = {field.name: field for field in self._schema.numeric}
        if one.name in numeric:
            return round(float(_unscaled(numeric[one.name], np.zeros(1))[0]), 3)
        table = self._tables.get(one.name)
        if one.made:  # what a token was made of is not kept
            return None
        if table is not None:
            return table.texts(np.array([FIRST_TOKEN_ID]))[0] if len(table) else None
        texts = self._texts[one.name]
        if not texts:
            return None
        return round(bucket_number(texts[0]), 3) if one.bucket else texts[0]

    def _categorical(self, one: FieldInput, ids_B: npt.NDArray[np.int32]) -> Column:
        if one.kind == "id":
            table = self._tables[one.name]
            distinct, inverse = np.unique(ids_B, return_inverse=True)
            special = [{MISSING_ID: None, OOV_ID: _UNSEEN}[id_] for id_ in distinct[distinct < FIRST_TOKEN_ID].tolist()]
            words = [*special, *table.texts(distinct[distinct >= FIRST_TOKEN_ID])]
            return text_ids(table, one, words)[inverse]
        texts = self._texts[one.name]
        if one.bucket:
            # No bucket is as large as that of infinity: unseen.
            by_id: Column = np.array([math.nan, math.inf, *map(bucket_number, texts)])
        else:
            by_id = np.array([one.null, _UNSEEN, *texts], dtype=object)
        return by_id[ids_B]


def _unscaled(field: NumericField, values: Floats) -> Floats:
    numbers = values * field.scale + field.mean
    return np.sign(numbers) * np.expm1(np.abs(numbers)) if field.transform == "log" else numbers
