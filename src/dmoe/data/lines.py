"""Text files as chunks of whole lines, with the number of each chunk's first line."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from dmoe.errors import DataError

CHUNK_BYTES = 16 << 20
LINE_LIMIT = 1 << 20
_READ_BYTES = 1 << 20
_PARQUET_MAGIC = b"PAR1"
_OTHER_KINDS = {
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it, or compress it by gzip",
    b"BZh": "is compressed by bzip2; unpack it, or compress it by gzip",
    b"\xff\xfe": "is UTF-16; convert it to UTF-8",
    b"\xfe\xff": "is UTF-16; convert it to UTF-8",
}


@dataclass(frozen=True, slots=True)
class LineChunk:
    """Whole lines, `first_line` counted from 1. Lines end in a line feed, the last perhaps in nothing.

    `end`: the bytes of the file, as it is stored, that have been read so far.
    """

    first_line: int
    data: bytes
    end: int = 0


def is_parquet(path: Path) -> bool:
    """Whether a file starts as Parquet files do.

    Raises: DataError if it cannot be read.
    """
    return _head(path, 4) == _PARQUET_MAGIC


def read_line_chunks(path: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[LineChunk]:
    """The lines of a plain or gzip file, without a byte order mark, in chunks of about `chunk_bytes`.

    Raises: DataError if the file cannot be read, is empty, truncated, no text, or has an endless line.
    """
    compressed = _head(path, 2) == b"\x1f\x8b"
    try:
        with path.open("rb") as stored:
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=stored)) if compressed else stored
            yield from _cut(stream, stored, path, chunk_bytes)
    except EOFError:
        raise DataError(f"{path}: truncated: the compressed data ends early; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); copy or download it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _cut(stream: BinaryIO, stored: BinaryIO, path: Path, chunk_bytes: int) -> Iterator[LineChunk]:
    line, rest, empty, start_seen = 1, b"", True, False
    while True:
        pieces, size = [rest], 0
        while size < chunk_bytes and (piece := stream.read(min(_READ_BYTES, chunk_bytes - size))):
            pieces.append(piece)
            size += len(piece)
        data = b"".join(pieces)
        if not start_seen:
            data = _checked_start(data, path)
            start_seen = True
        last = size < chunk_bytes
        end = len(data) if last else data.rfind(b"\n") + 1
        if len(data) - end > LINE_LIMIT:
            number = data.count(b"\n") + line
            raise DataError(f"{path}:{number}: line longer than {LINE_LIMIT} bytes; is this a text file?")
        rest = data[end:]
        if end:
            yield LineChunk(line, data[:end], stored.tell())
            line += data.count(b"\n", 0, end)
            empty = False
        if last:
            break
    if empty:
        raise DataError(f"{path}: is empty")


def _checked_start(data: bytes, path: Path) -> bytes:
    for magic, meaning in _OTHER_KINDS.items():
        if data.startswith(magic):
            raise DataError(f"{path}: {meaning}")
    if data[257:262] == b"ustar":
        raise DataError(f"{path}: is a tar archive; unpack it first and give the file inside")
    return data.removeprefix(b"\xef\xbb\xbf")


def _head(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(size)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; give its files, as in '{path}/*.csv'") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
