"""From texts to ids and back for vocabularies of any size: a few bytes a token, in memory or mapped from files.

K tokens, which lie in the order of their ids. Their hashes are sorted, so a token is found by binary search and then
compared byte for byte: an unseen text with the hash of a token is still unseen.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest

from dmoe.errors import DataError
from dmoe.schema import FIRST_TOKEN_ID, OOV_ID, CategoricalField, Schema, vocabulary_path
from dmoe.tokens.vocabulary import AT_ONCE, checked_tokens, read_tokens

# Vocabularies of more tokens are mapped from files beside them: a token takes some 30 bytes there.
LARGE_TOKENS = 200_000

_PARTS = {"hashes": np.uint64, "ids": np.int32, "offsets": np.int64, "text": np.uint8}
_SORTED_AT_ONCE = 1 << 22

Hashes = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class TokenTable:
    """The tokens of one vocabulary: token k has id k + 2 and is `text[offsets[k]:offsets[k + 1]]`; `ids_K` are those
    of the sorted `hashes_K`."""

    def __init__(self, hashes_K: Hashes, ids_K: Ids, offsets: Offsets, text: Bytes, where: str) -> None:
        self._hashes_K, self._ids_K, self._offsets, self._where = hashes_K, ids_K, offsets, where
        self._text = text.data

    @staticmethod
    def of(tokens: Any, path: Path) -> "TokenTable":
        """One in memory, of an Arrow array of large strings, which are those of the vocabulary file `path`.

        Raises: DataError if one is there twice.
        """
        offsets, text = _buffers(tokens)
        hashes_K, ids_K = np.empty(len(tokens), np.uint64), np.empty(len(tokens), np.int32)
        unsorted = [_hashes(tokens[start : start + AT_ONCE]) for start in range(0, len(tokens), AT_ONCE)]
        table = TokenTable(hashes_K, ids_K, offsets, text, str(path))
        table._sort(np.concatenate(unsorted) if unsorted else hashes_K)
        return table

    @staticmethod
    def mapped(folder: Path, remedy: str) -> "TokenTable":
        """One in the files that `write_tokens` left, read only.

        Raises: DataError if a file is absent or damaged, or they do not fit each other; `remedy` says what to do then.
        """
        hashes, ids, offsets, text = (_mapped(folder / f"{name}.npy", dtype, remedy) for name, dtype in _PARTS.items())
        if len(ids) != len(hashes) or len(offsets) != len(hashes) + 1 or offsets[-1] != len(text):
            raise DataError(f"{folder / 'ids.npy'}: does not fit the files beside it; {remedy}")
        return TokenTable(hashes, ids, offsets, text, str(folder))

    def __len__(self) -> int:
        return len(self._hashes_K)

    def ids(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """The id of each text, int64; out of vocabulary where it is no token."""
        found = np.full(len(texts), OOV_ID, np.int64)
        encoded = [text.encode() for text in texts]
        hashes = np.fromiter(map(xxh3_64_intdigest, encoded), np.uint64, len(encoded))
        places = np.searchsorted(self._hashes_K, hashes)
        left = np.arange(len(texts))
        while True:
            left = left[places[left] < len(self)]
            left = left[self._hashes_K[places[left]] == hashes[left]]
            if not len(left):
                return found
            ids = self._ids_K[places[left]]
            tokens = zip(self._tokens(ids), left.tolist(), strict=True)
            same = np.array([token == encoded[index] for token, index in tokens], dtype=bool)
            found[left[same]] = ids[same]
            left = left[~same]  # another token may have the same hash
            places[left] += 1

    def texts(self, ids: npt.NDArray[np.integer]) -> list[str]:
        """The tokens of ids, none of which may be that of missing or unseen values."""
        try:
            return [str(token, "utf-8") for token in self._tokens(ids)]
        except UnicodeDecodeError:
            raise DataError(f"{self._where}: damaged: a token is no text") from None

    def _tokens(self, ids: npt.NDArray[np.integer]) -> Iterator[memoryview]:
        places = ids.astype(np.int64) - FIRST_TOKEN_ID
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(self):
            raise DataError(f"{self._where}: damaged: it holds an id that no token has")
        bounds = zip(self._offsets[places].tolist(), self._offsets[places + 1].tolist(), strict=True)
        return (self._text[start:stop] for start, stop in bounds)

    def _sort(self, unsorted_K: Hashes) -> None:
        """Fills hashes and ids with those of the tokens, a range of hashes after the other, so that few are in memory.

        Raises: DataError if a text is there twice.
        """
        ranges, done = np.uint64(1 + len(unsorted_K) // _SORTED_AT_ONCE), 0
        for number in range(int(ranges)):
            places = np.concatenate([np.empty(0, np.int64), *_in_range(unsorted_K, number, ranges)])
            hashes = unsorted_K[places]
            order = np.argsort(hashes, kind="stable")
            hashes, ids = hashes[order], (places[order] + FIRST_TOKEN_ID).astype(np.int32)
            self._hashes_K[done : done + len(ids)], self._ids_K[done : done + len(ids)] = hashes, ids
            done += len(ids)
            self._check_once(hashes, ids)

    def _check_once(self, hashes: Hashes, ids: Ids) -> None:
        alike = np.flatnonzero(hashes[1:] == hashes[:-1])
        alike = np.union1d(alike, alike + 1)
        texts = [bytes(token) for token in self._tokens(ids[alike])]
        if len(set(texts)) != len(texts):
            raise DataError(f"{self._where}: does not hold each text once; prepare the data again")


def open_tokens(folder: Path, field: CategoricalField) -> TokenTable:
    """The look-up of a field's vocabulary in a folder that holds it.

    Raises: DataError if it is absent or damaged, or does not fit the schema.
    """
    path, beside = vocabulary_path(folder, field.vocabulary_name), tokens_path(folder, field.vocabulary_name)
    if not beside.is_dir():
        return TokenTable.of(read_tokens(folder, field), path)
    remedy = f"remove the folder {beside.name}: the vocabulary beside it serves as well, in memory"
    table = TokenTable.mapped(beside, remedy)
    if len(table) + FIRST_TOKEN_ID != field.vocabulary_size:
        said = field.vocabulary_size - FIRST_TOKEN_ID
        raise DataError(f"{beside}: holds {len(table)} tokens, but schema.json says {said}; {remedy}")
    return table


def copy_vocabularies(data: Path, folder: Path, schema: Schema) -> None:
    """Copies the vocabularies of a data set, if it has any, into a new folder, with the look-ups of large ones."""
    if not (data / "vocabulary").is_dir():
        return
    shutil.copytree(data / "vocabulary", folder / "vocabulary")
    for field in schema.categorical:
        if field.vocabulary_name == field.name and field.vocabulary_size > LARGE_TOKENS + FIRST_TOKEN_ID:
            write_tokens(vocabulary_path(folder, field.name), tokens_path(folder, field.name))


def tokens_path(folder: Path, field: str) -> Path:
    """`vocabulary/<field>.tokens`, the folder of a mapped look-up."""
    return vocabulary_path(folder, field).with_suffix(".tokens")


def write_tokens(source: Path, folder: Path) -> None:
    """Writes the look-up of a vocabulary file into a new folder, for `TokenTable.mapped`; memory does not grow with it.

    Raises: DataError if the vocabulary is damaged.
    """
    folder.mkdir(parents=True)
    tokens = sum(len(batch) for batch in _batches(source))
    hashes, ids, unsorted = (_new(folder, name, tokens) for name in ("hashes", "ids", "unsorted"))
    offsets, done = _new(folder, "offsets", tokens + 1), 0
    for batch in _batches(source):
        ends = _buffers(batch)[0][1:]
        offsets[done + 1 : done + 1 + len(ends)] = offsets[done] + ends
        done += len(ends)
    text, done = _new(folder, "text", int(offsets[-1])), 0
    for batch in _batches(source):
        text[offsets[done] : offsets[done + len(batch)]] = _buffers(batch)[1]
        unsorted[done : done + len(batch)] = _hashes(batch)
        done += len(batch)
    TokenTable(hashes, ids, offsets, text, str(source))._sort(unsorted)
    for array in (hashes, ids, offsets, text):
        array.flush()
    (folder / "unsorted.npy").unlink()


def _in_range(hashes_K: Hashes, number: int, ranges: np.uint64) -> Iterator[npt.NDArray[np.int64]]:
    """Where the hashes of one of so many equal ranges of all 64-bit numbers are."""
    for start in range(0, len(hashes_K), AT_ONCE):
        high = hashes_K[start : start + AT_ONCE] >> np.uint64(32)
        yield start + np.flatnonzero(high * ranges >> np.uint64(32) == number)


def _new(folder: Path, name: str, length: int) -> Any:
    return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", _PARTS.get(name, np.uint64), (length,))


def _batches(path: Path) -> Iterator[Any]:
    """The tokens of a vocabulary file, some large strings at a time."""
    first = FIRST_TOKEN_ID
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(AT_ONCE, columns=["value", "id"]):
                yield checked_tokens(path, batch.schema, batch.column(0), batch.column(1), first)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]}); prepare the data again") from None


def _buffers(tokens: Any) -> tuple[Offsets, Bytes]:
    """Of an Arrow array of large strings: where they begin and end, from 0, and their bytes."""
    _, offsets, data = tokens.buffers()
    if not len(tokens):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int64)[tokens.offset : tokens.offset + len(tokens) + 1]
    text = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
    return bounds - bounds[0], text


def _hashes(tokens: Any) -> Hashes:
    return np.fromiter(map(xxh3_64_intdigest, tokens.cast(pa.large_binary()).to_pylist()), np.uint64, len(tokens))


def _mapped(path: Path, dtype: type, remedy: str) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, MemoryError) as error:
        raise DataError(f"{path}: damaged or unreadable ({error}); {remedy}") from None
    if array.dtype != dtype or array.ndim != 1:
        raise DataError(f"{path}: holds no row of {np.dtype(dtype)}; {remedy}")
    return np.asarray(array)  # a plain view: indexing np.memmap itself is several times slower
