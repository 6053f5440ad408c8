"""Stored files as streams of their content: plain or compressed, which is told by the content, not by the name."""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast

import pyarrow as pa

from dmoe.errors import DataError

_STORED_BYTES = 1 << 18

_CODECS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
}
_UNREAD = "unpack it, or compress it by gzip, zstd, bzip2, xz or lz4"
_OTHER_KINDS = {
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"\xff\x06\x00\x00sNaPpY": f"is compressed by snappy; {_UNREAD}",
    b"\x89LZO\0": f"is compressed by lzop; {_UNREAD}",
    b"\x1f\x9d": f"is compressed by compress (.Z); {_UNREAD}",
    b"\x02\x21\x4c\x18": f"is compressed by an old form of lz4; {_UNREAD}",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it first",
    b"Obj\x01": "is an Avro file; convert it to Parquet or CSV",
    b"\xff\xfe": "is UTF-16; convert it to UTF-8",
    b"\xfe\xff": "is UTF-16; convert it to UTF-8",
    b"\0\0\xfe\xff": "is UTF-32; convert it to UTF-8",
}
# Excel takes a first line of this form as the delimiter of a CSV file.
_DELIMITER_LINE = re.compile(rb'(?:\xef\xbb\xbf)?"?(sep=[^\r\n"]{1,2})"?\r?(?:\n|\Z)', re.IGNORECASE)
_LOOKED_AT_BYTES = 4096
_PARQUET_MAGIC = b"PAR1"


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Members(io.RawIOBase):
    """Compressed streams put one after the other. The standard library's files leave out what follows a stream
    and is none; here that is an error, for it may be a member that was harmed."""

    def __init__(self, stored: BinaryIO, make: Callable[[], _Decompressor], padding: bytes) -> None:
        self._stored, self._make, self._padding = stored, make, padding
        self._member: _Decompressor | None = None
        self._next = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _some(self, size: int) -> bytes:
        while True:
            if self._member is None:
                self._next = self._next.lstrip(self._padding)
                if not self._next:
                    self._next = self._stored.read(_STORED_BYTES)
                    if not self._next:
                        return b""
                    continue
                self._member = self._make()
            if self._member.needs_input and not self._next:
                self._next = self._stored.read(_STORED_BYTES)
                if not self._next:
                    raise EOFError
            data = self._member.decompress(self._next, size)
            self._next = b""
            if self._member.eof:
                self._next, self._member = self._member.unused_data, None
            if data:
                return data


class ContentStream:
    """The bytes that a file holds. `stored_bytes` tells how many of the file, as it is stored, were read."""

    def __init__(self, path: Path, stored: BinaryIO) -> None:
        self._path, self._stored = path, stored
        self.codec = _codec(stored)
        self._stream = _decompressed(stored, self.codec)

    def stored_bytes(self) -> int:
        return self._stored.tell()

    def read(self, size: int, line: int) -> bytes:
        """At most `size` bytes, none at the end; `line` is the one being read, for errors.

        Raises: DataError if the compressed data is truncated or damaged, or the file cannot be read.
        """
        try:
            return self._stream.read(size)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            where = f"near byte {self._stored.tell():,} of the file, after line {line:,} of its text"
            if isinstance(error, EOFError) or "Truncated" in str(error):
                what = f"truncated: the compressed data ends early, {where}"
            else:
                what = f"damaged {self.codec} file {where} ({error})"
            raise DataError(f"{self._path}: {what}; copy or download it again") from None


def _codec(stored: BinaryIO) -> str | None:
    """The compression of a file, which is left at its start."""
    head = stored.read(8)
    # Frames to skip come before those of zstd or lz4, as parallel zstd has them.
    while len(head) == 8 and head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        stored.seek(int.from_bytes(head[4:8], "little"), io.SEEK_CUR)
        head = stored.read(8)
    stored.seek(0)
    return next((codec for magic, codec in _CODECS.items() if head.startswith(magic)), None)


def _decompressed(stored: BinaryIO, codec: str | None) -> IO[bytes]:
    if codec is None:
        return stored
    if codec == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stored))
    if codec == "bzip2":
        return cast(BinaryIO, io.BufferedReader(_Members(stored, bz2.BZ2Decompressor, b""), 1 << 20))
    if codec == "xz":
        return cast(BinaryIO, io.BufferedReader(_Members(stored, lzma.LZMADecompressor, b"\0"), 1 << 20))
    file = pa.PythonFile(cast(io.IOBase, stored), mode="r")
    return cast(BinaryIO, pa.CompressedInputStream(file, "zstd" if codec == "zstd" else "lz4"))


def check_is_text(start: bytes, path: Path, codec: str | None) -> None:
    """Raises: DataError if the content of a file starts as that of another kind does."""
    inside = "" if codec is None else f", inside {codec} compression"
    for magic, meaning in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise DataError(f"{path}: {meaning}{inside}")
    wide = _wide_text(start[:_LOOKED_AT_BYTES])
    if wide is not None:
        raise DataError(f"{path}: is {wide} without a byte order mark; convert it to UTF-8{inside}")
    named = _DELIMITER_LINE.match(start)
    if named is not None:
        line = named[1].decode(errors="replace")
        raise DataError(f"{path}:1: is Excel's line '{line}' and no row or header; remove this line{inside}")
    if start[257:262] == b"ustar":
        raise DataError(f"{path}: is a tar archive; unpack it first and give the file inside")
    if codec is not None and start.startswith(_PARQUET_MAGIC):
        raise DataError(f"{path}: is a Parquet file{inside}; unpack it, Parquet compresses by itself")
    again = next((name for magic, name in _CODECS.items() if start.startswith(magic)), None)
    if again is not None:
        raise DataError(f"{path}: is compressed twice, by {codec} and {again}; unpack it once")


def _wide_text(start: bytes) -> str | None:
    """Of text whose characters take two or four bytes each, its encoding: most of the upper ones are 0, and so is that
    of the first line's end, which tells such text from narrow text with NUL bytes."""
    zeros = [index for index, value in enumerate(start) if value == 0]
    if len(zeros) * 8 <= len(start):
        return None
    end = start.find(b"\n")
    if end >= 0 and end ^ 1 not in zeros:
        return None
    if len(zeros) * 2 > len(start):
        return "UTF-32"
    return "UTF-16" if len({index % 2 for index in zeros}) == 1 else None


def is_parquet(path: Path) -> bool:
    """Whether a file starts as Parquet files do.

    Raises: DataError if it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(4) == _PARQUET_MAGIC
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
