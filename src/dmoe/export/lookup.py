"""Vocabularies too large for the graph: exact, memory-mapped look-up from text to id.

K tokens. Hashes are sorted, so a token is found by binary search and then compared byte for byte: an unseen text
with the hash of a token is still unseen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.errors import DmoeError
from dmoe.export.extra import require
from dmoe.schema import OOV_ID

_PARTS = ("hashes", "ids", "offsets", "text")


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


class TokenTable:
    """The tokens of one field, as `write_tokens` left them."""

    def __init__(self, folder: Path) -> None:
        self._hash = require("xxhash", "serve").xxh3_64_intdigest
        hashes, ids, offsets, text = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _PARTS
        )
        # Plain views: indexing np.memmap itself is several times slower.
        self._hashes_K, self._ids_K, self._offsets = np.asarray(hashes), np.asarray(ids), np.asarray(offsets)
        self._text = np.asarray(text).data

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
