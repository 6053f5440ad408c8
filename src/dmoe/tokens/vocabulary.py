"""The vocabulary file of a field, as it lies in a data set and a run: tokens, their counts in train, their ids.

K tokens.
"""

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
# Tokens that are Python's own objects at once.
AT_ONCE = 1 << 16


def read_counts(folder: Path, field: CategoricalField) -> npt.NDArray[np.int64]:
    """The training rows (values, of a multi-valued field) that have each token, (K,), in the order of their ids."""
    path = vocabulary_path(folder, field.vocabulary_name)
    try:
        counts: npt.NDArray[np.int64] = pq.read_table(path, schema=VOCABULARY)["count"].to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]}); prepare the data again") from None
    return counts


def read_tokens(folder: Path, field: CategoricalField) -> Any:
    """The tokens, an Arrow array of large strings, (K,), in the order of their ids.

    Raises: DataError if the file is absent, damaged or does not fit the schema.
    """
    path = vocabulary_path(folder, field.vocabulary_name)
    if not path.is_file():
        raise DataError(f"{path}: no such file, but schema.json names the field; prepare the data again")
    try:
        table = pq.ParquetFile(path).read(columns=_KNOWN.names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]}); prepare the data again") from None
    if table.num_rows + FIRST_TOKEN_ID != field.vocabulary_size:
        raise DataError(
            f"{path}: holds {table.num_rows} tokens, but schema.json says {field.vocabulary_size - FIRST_TOKEN_ID}"
        )
    tokens, ids = (table.column(name).combine_chunks() for name in range(2))
    return checked_tokens(path, table.schema, tokens, ids, FIRST_TOKEN_ID)


def checked_tokens(path: Path, schema: pa.Schema, tokens: Any, ids: Any, first: int) -> Any:
    """The tokens of some rows of a vocabulary file, as large strings.

    Raises: DataError unless the rows hold a text each, and ids that rise by one from `first`.
    """
    if not schema.equals(_KNOWN) or tokens.null_count or ids.null_count:
        raise DataError(f"{path}: holds no text and id in each row; prepare the data again")
    # Arrow's own way to numpy imports pandas.
    if not np.array_equal(np.from_dlpack(ids), np.arange(first, first + len(ids))):
        raise DataError(f"{path}: does not hold each id once, in their order; prepare the data again")
    return tokens.cast(pa.large_string())


def read_vocabulary(folder: Path, field: CategoricalField) -> dict[str, int]:
    """Value to id, tokens only. Of many tokens it takes much memory, and `dmoe.tokens.lookup` little.

    Raises: DataError as `read_tokens`, or if a text is there twice.
    """
    texts = read_tokens(folder, field).to_pylist()
    found = dict(zip(texts, range(FIRST_TOKEN_ID, field.vocabulary_size), strict=True))
    if len(found) != len(texts):
        path = vocabulary_path(folder, field.vocabulary_name)
        raise DataError(f"{path}: does not hold each text once; prepare the data again")
    return found
