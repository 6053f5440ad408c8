"""Vocabularies too large for the graph: exact, memory-mapped look-up from text to id.

K tokens. Hashes are sorted, so a token is found by binary search and then compared byte for byte: an unseen text
with the hash of a token is still unseen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.errors import DataError, DmoeError
from dmoe.export.extra import require
from dmoe.schema import OOV_ID

_PARTS = {"hashes": np.uint64, "ids": np.int32, "offsets": np.int64, "text": np.uint8}


def write_tokens(folder: Path, tokens: Sequence[str], ids_K: npt.NDArray[np.int32]) -> None:
    """Writes `hashes`, `ids`, `offsets` and `text`, each an .npy file, into a new folder.

    Raises: DmoeError if two tokens share a hash.
    """
    xxh3 = require("xxhash", "export").xxh3_64_intdigest
    encoded = [token.encode() for token in tokens]
    hashes_K = np.fromiter((xxh3(token) for token in encoded), np.uint64, len(encoded))
    order_K = np.argsort(hashes_K)
    hashes_K = hashes_K[order_K]
    if (hashes_K[1:] == hashes_K[:-1]).any():
        raise DmoeError(f"{folder}: two tokens have one 64-bit hash; raise --max-graph-tokens above {len(tokens)}")
    folder.mkdir(parents=True)
    ordered = [encoded[index] for index in order_K.tolist()]
    offsets = np.zeros(len(ordered) + 1, np.int64)
    np.cumsum([len(token) for token in ordered], out=offsets[1:])
    parts: tuple[npt.NDArray[Any], ...] = (
        hashes_K,
        ids_K[order_K],
        offsets,
        np.frombuffer(b"".join(ordered), np.uint8),
    )
    for name, array in zip(_PARTS, parts, strict=True):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def _mapped(path: Path, dtype: type) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, MemoryError) as error:
        raise DataError(f"{path}: damaged or unreadable ({error}); export the run again") from None
    if array.dtype != dtype or array.ndim != 1:
        raise DataError(f"{path}: holds no row of {np.dtype(dtype)}; export the run again")
    return array


class TokenTable:
    """The tokens of one field, as `write_tokens` left them."""

    def __init__(self, folder: Path) -> None:
        """Raises: DataError if a file is absent or damaged, or they do not fit each other."""
        self._hash = require("xxhash", "serve").xxh3_64_intdigest
        hashes, ids, offsets, text = (_mapped(folder / f"{name}.npy", dtype) for name, dtype in _PARTS.items())
        # Plain views: indexing np.memmap itself is several times slower.
        self._hashes_K, self._ids_K, self._offsets = np.asarray(hashes), np.asarray(ids), np.asarray(offsets)
        self._text = np.asarray(text).data
        tokens = len(self._hashes_K)
        if len(self._ids_K) != tokens or len(self._offsets) != tokens + 1:
            raise DataError(f"{folder / 'ids.npy'}: does not fit the files beside it; export the run again")

    def ids(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """The id of each text, int64; out of vocabulary where it is no token."""
        found = np.full(len(texts), OOV_ID, np.int64)
        if not len(self._hashes_K):
            return found
        encoded = [text.encode() for text in texts]
        hashes = np.fromiter(map(self._hash, encoded), np.uint64, len(encoded))
        places = np.searchsorted(self._hashes_K, hashes)
        places[places == len(self._hashes_K)] = 0
        hits = np.flatnonzero(self._hashes_K[places] == hashes)
        places = places[hits]
        bounds = zip(hits.tolist(), self._offsets[places].tolist(), self._offsets[places + 1].tolist(), strict=True)
        same = np.array([self._text[start:stop] == encoded[hit] for hit, start, stop in bounds], dtype=bool)
        found[hits[same]] = self._ids_K[places[same]]
        return found
