"""The given vectors of a field's values, as they lie in a data set: one row an id.

V ids, W width of the vectors.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dmoe.errors import DataError
from dmoe.schema import CategoricalField, vectors_path

Floats = npt.NDArray[np.float32]


def read_vectors(data: Path, field: CategoricalField) -> Floats:
    """The vectors of a field's ids, (V, W).

    Raises: DataError if the file is absent or does not fit the schema.
    """
    path = vectors_path(data, field.name)
    assert field.vectors is not None  # asked for such fields only
    vectors_VW = read_tensors(path).get("vectors")
    shape = (field.vocabulary_size, field.vectors.width)
    if vectors_VW is None or vectors_VW.shape != shape or vectors_VW.dtype != np.float32:
        raise DataError(f"{path}: holds no float32 vectors of shape {shape}, as schema.json says; prepare again")
    return vectors_VW


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Raises: DataError naming the file if it is no safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not readable as safetensors ({error})") from None
