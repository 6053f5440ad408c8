"""Text files as chunks of whole records, with the number of each chunk's first line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmoe.errors import DataError
from dmoe.sources.quoting import Records
from dmoe.sources.streams import ContentStream, check_is_text

CHUNK_BYTES = 16 << 20
LINE_LIMIT = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LineChunk:
    """Whole lines, `first_line` counted from 1. Lines end in a line feed, the last perhaps in nothing.

    `end`: the bytes of the file, as it is stored, that have been read so far. `inside`: where in `data` the line
    feeds are that belong to values.
    """

    first_line: int
    data: bytes
    end: int = 0
    inside: tuple[int, ...] = ()


def read_line_chunks(
    path: Path, chunk_bytes: int = CHUNK_BYTES, *, records: Records | None = None
) -> Iterator[LineChunk]:
    """The lines of a plain or compressed file, without a byte order mark, in chunks of about `chunk_bytes`; with
    `records` no chunk ends inside one of them.

    Raises: DataError if the file cannot be read, is truncated, damaged, no text, or has an endless line.
    """
    try:
        with path.open("rb") as stored:
            yield from _cut(ContentStream(path, stored), path, chunk_bytes, records)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _cut(stream: ContentStream, path: Path, chunk_bytes: int, records: Records | None) -> Iterator[LineChunk]:
    line, rest, start_seen = 1, b"", False
    while True:
        pieces, size = [rest], 0
        while size < chunk_bytes and (piece := stream.read(min(_READ_BYTES, chunk_bytes - size), line)):
            pieces.append(piece)
            size += len(piece)
        data = b"".join(pieces)
        if not start_seen:
            check_is_text(data, path, stream.codec)
            data = data.removeprefix(BYTE_ORDER_MARK)
            start_seen = True
        last = size < chunk_bytes
        inside: tuple[int, ...] = ()
        end = len(data) if last else data.rfind(b"\n") + 1
        if records is not None:
            inside, end = records.joined(data, last)
        if len(data) - end > LINE_LIMIT:
            number = data.count(b"\n") + line
            raise DataError(f"{path}:{number}: line longer than {LINE_LIMIT} bytes; is this a text file?")
        rest = data[end:]
        if end:
            yield LineChunk(line, data[:end], stream.stored_bytes(), inside)
            line += data.count(b"\n", 0, end)
        if last:
            break
