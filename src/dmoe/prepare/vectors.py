"""Given vectors of a field's values: read from the user's file, written to the data set in the order of the ids.

K keys of the file, V = K + 2 ids, W width of the vectors.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from dmoe.config.fields import PretrainedOptions
from dmoe.disk.files import give_usual_mode
from dmoe.errors import DataError
from dmoe.prepare.vocabulary import write_given
from dmoe.schema import FIRST_TOKEN_ID, vectors_path
from dmoe.shards.folder import DataFolder
from dmoe.tokens.vectors import Floats, read_tensors
from dmoe.values.canonical import Forms, ValueForm, forms_of
from dmoe.values.coded_columns import Column, as_text, carriers_of, pc


def file_facts(path: Path) -> tuple[str, int, int]:
    """What tells a file from a later one of its name.

    Raises: DataError if it is not there.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    return str(path), facts.st_size, facts.st_mtime_ns


def key_forms(options: PretrainedOptions) -> Forms:
    """How the keys of the user's file are written.

    Raises: DataError naming the file at fault.
    """
    path = Path(options.file)
    keys = (
        _tensor_keys(read_tensors(path), path, options)
        if path.suffix == ".safetensors"
        else _parquet_keys(path, options)
    )
    texts = as_text(keys, options.key, certain=True)
    return forms_of(texts.unique().drop_null(), carriers_of(keys.type))


def take_vectors(
    options: PretrainedOptions, keys: Path, folder: Path, field: str, base: DataFolder | None, form: ValueForm
) -> int:
    """Writes the vectors of a field into the data set `folder`, its keys as the vocabulary file `keys`; their width.

    With `base`, those of that data set are kept.

    Raises: DataError naming the file and the key at fault.
    """
    target = vectors_path(folder, field)
    target.parent.mkdir(exist_ok=True)
    if base is not None:
        vectors_VW = read_tensors(vectors_path(base.folder, field))["vectors"]
    else:
        texts, vectors_KW = _given(Path(options.file), options, form)
        vectors_VW = np.concatenate([np.zeros((FIRST_TOKEN_ID, vectors_KW.shape[1]), np.float32), vectors_KW])
        write_given(texts, keys)
    save_file({"vectors": np.ascontiguousarray(vectors_VW)}, target)
    give_usual_mode(target)
    return int(vectors_VW.shape[1])


def _given(path: Path, options: PretrainedOptions, form: ValueForm) -> tuple[Any, Floats]:
    """The keys as tokens, (K,), and their vectors, (K, W)."""
    if path.suffix == ".safetensors":
        keys, vectors_KW = _fromread_tensors(path, options)
    else:
        keys, vectors_KW = _from_parquet(path, options)
    if vectors_KW.ndim != 2 or not vectors_KW.shape[1]:
        raise DataError(f"{path}: '{options.vector}' must hold one vector a key, got shape {vectors_KW.shape}")
    if len(keys) != len(vectors_KW):
        raise DataError(f"{path}: holds {len(keys)} keys and {len(vectors_KW)} vectors")
    if keys.null_count:
        raise DataError(f"{path}: key {pc.index(pc.is_null(keys), True).as_py()} (from 0) is missing")
    bad = np.flatnonzero(~np.isfinite(vectors_KW).all(1))
    if len(bad):
        raise DataError(f"{path}: the vector of key '{keys[int(bad[0])].as_py()}' holds a NaN or infinity")
    keys = pa.array([form.token(key) for key in keys.to_pylist()], pa.string())
    counted = pc.value_counts(keys)
    twice = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
    if len(twice):
        raise DataError(f"{path}: key '{twice[0].as_py()}' appears more than once; keep one vector a key")
    return keys, vectors_KW.astype(np.float32)


def _parquet(path: Path, *wanted: str) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in wanted:
                if name not in names:
                    raise DataError(f"{path}: has no column '{name}'; it has: {', '.join(names)}")
            return file.read(columns=list(wanted))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not readable as Parquet ({reason}); pass Parquet or .safetensors") from None


def _parquet_keys(path: Path, options: PretrainedOptions) -> Column:
    return _parquet(path, options.key).column(0).combine_chunks()


def _from_parquet(path: Path, options: PretrainedOptions) -> tuple[Any, npt.NDArray[Any]]:
    table = _parquet(path, options.key, options.vector)
    keys = as_text(table.column(options.key).combine_chunks(), options.key, certain=True)
    lists: Column = table.column(options.vector).combine_chunks()
    kind = lists.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise DataError(f"{path}: column '{options.vector}' is {kind}, expected lists of numbers")
    lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
    flat = lists.flatten()
    if len(lengths) != 1 or lengths[0] is None or flat.null_count:
        raise DataError(f"{path}: the lists of '{options.vector}' must all have the same length and no nulls")
    try:
        numbers: npt.NDArray[Any] = flat.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        raise DataError(f"{path}: column '{options.vector}' is {kind}, expected lists of numbers") from None
    return keys, numbers.reshape(len(lists), lengths[0])


def _fromread_tensors(path: Path, options: PretrainedOptions) -> tuple[Any, npt.NDArray[Any]]:
    tensors = read_tensors(path)
    keys = _tensor_keys(tensors, path, options)
    return as_text(keys, options.key), tensors[options.vector]


def _tensor_keys(tensors: dict[str, npt.NDArray[Any]], path: Path, options: PretrainedOptions) -> Column:
    for name in (options.key, options.vector):
        if name not in tensors:
            raise DataError(f"{path}: has no tensor '{name}'; it has: {', '.join(sorted(tensors))}")
    keys = tensors[options.key]
    if keys.ndim != 1 or not np.issubdtype(keys.dtype, np.integer):
        raise DataError(f"{path}: tensor '{options.key}' must hold integers, one a vector; text keys need Parquet")
    return pa.array(keys)
