"""A file of weights mapped into memory, read only: a table may be larger than the memory of the machine.

The library of safetensors maps files writably, which systems refuse beyond their memory.
"""

import json
import mmap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmoe.errors import DataError

# As safetensors names them.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPE_OF = {name: dtype for dtype, name in DTYPES.items()}
# What the format allows.
_MOST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: `start` in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class MappedWeights:
    """The tensors of a safetensors file by name."""

    path: Path
    tensors: Mapping[str, Stored]

    @staticmethod
    def open(path: Path) -> "MappedWeights":
        """Reads the header alone.

        Raises: DataError if the file is damaged or unreadable.
        """
        try:
            return MappedWeights(path, _stored(path))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: damaged or unreadable ({reason})") from None

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Entries `start` to `stop` of a tensor's first dimension, by default all; they must not be written to.

        What is read of them stays in memory at most until nobody holds the tensor any more.
        """
        stored = self.tensors[name]
        if stored.shape:
            stop = stored.shape[0] if stop is None else min(stop, stored.shape[0])
            shape, at, length = (stop - start, *stored.shape[1:]), start * stored.row_bytes, stop - start
            length *= stored.row_bytes
        else:
            shape, at, length = (), 0, stored.bytes
        if not length:
            return torch.empty(shape, dtype=stored.dtype)
        flat = np.memmap(self.path, np.uint8, "r", offset=stored.start + at, shape=(length,))
        _read_at_random(flat)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(flat).view(stored.dtype).reshape(shape)


def _read_at_random(flat: np.memmap) -> None:
    """Rows of a table are read here and there: what lies beside them is not to be read ahead."""
    base = getattr(flat, "_mmap", None)
    if base is not None and len(flat) > 1 << 26 and hasattr(mmap, "MADV_RANDOM"):
        base.madvise(mmap.MADV_RANDOM)


def _stored(path: Path) -> dict[str, Stored]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            raise ValueError("its header is longer than the file")
        entries = json.loads(file.read(length))
    if not isinstance(entries, dict):
        raise ValueError("its header is no object")
    found, end = {}, 0
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        dtype, shape = _DTYPE_OF[entry["dtype"]], tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        numbers = (start, stop, *shape)
        if not all(isinstance(one, int) and one >= 0 for one in numbers):
            raise ValueError(f"{name} has no shape or place")
        if stop - start != prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} is not as long as its shape says")
        found[name] = Stored(dtype, shape, 8 + length + start)
        end = max(end, stop)
    if 8 + length + end != size:
        raise ValueError("it is not as long as its header says")
    return found
