"""The vocabulary file of a field, as it lies in a data set and a run: tokens, their counts in train, their ids."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.errors import DataError
from dmoe.schema import FIRST_TOKEN_ID, CategoricalField, vocabulary_path

_TEXT: pa.DataType = pa.string()
VOCABULARY = pa.schema({"value": _TEXT, "count": pa.int64(), "id": pa.int32()})
_KNOWN = pa.schema([VOCABULARY.field("value"), VOCABULARY.field("id")])


def read_counts(folder: Path, field: CategoricalField) -> npt.NDArray[np.int64]:
    """The training rows (values, of a multi-valued field) that have each token, in the order of `read_vocabulary`."""
    path = vocabulary_path(folder, field.vocabulary_name)
    try:
        counts: npt.NDArray[np.int64] = pq.read_table(path, schema=VOCABULARY)["count"].to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]}); prepare the data again") from None
    return counts


def read_vocabulary(folder: Path, field: CategoricalField) -> dict[str, int]:
    """Value to id, tokens only.

    Raises: DataError if the file is absent, damaged or does not fit the schema.
    """
    path = vocabulary_path(folder, field.vocabulary_name)
    if not path.is_file():
        raise DataError(f"{path}: no such file, but schema.json names the field; prepare the data again")
    try:
        table = pq.ParquetFile(path).read(columns=["value", "id"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]}); prepare the data again") from None
    if table.num_rows + FIRST_TOKEN_ID != field.vocabulary_size:
        raise DataError(
            f"{path}: holds {table.num_rows} tokens, but schema.json says {field.vocabulary_size - FIRST_TOKEN_ID}"
        )
    if not table.schema.equals(_KNOWN) or table.column(0).null_count or table.column(1).null_count:
        raise DataError(f"{path}: holds no text and id in each row; prepare the data again")
    values: list[Any] = table.column(0).to_pylist()
    ids: list[Any] = table.column(1).to_pylist()
    found = dict(zip(values, ids, strict=True))
    if set(found.values()) != set(range(FIRST_TOKEN_ID, field.vocabulary_size)):
        raise DataError(f"{path}: does not hold each text and each id once; prepare the data again")
    return found
