"""Arrow streams from strangers: bounded before they are decoded, checked before they are used."""

import struct
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from dmoe.errors import DataError
from dmoe.export.extra import require

# Positions in the flatbuffers of Message, RecordBatch and DictionaryBatch (format/Message.fbs of Apache Arrow).
_HEADER_TYPE, _HEADER = 6, 8
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_COMPRESSION, _DICTIONARY_DATA = 10, 6


def read_table(body: bytes, max_rows: int) -> pa.Table | None:
    """The table of an Arrow IPC stream, None if it has more than `max_rows` rows.

    Raises: DataError if it is no such stream, is compressed, or has no row. A compressed stream of a few
    kilobytes may stand for gigabytes.
    """
    try:
        _refuse_compression(body)
        batches, rows = [], 0
        with ipc.open_stream(body) as reader:
            for batch in reader:
                rows += batch.num_rows
                if rows > max_rows:
                    return None
                batch.validate(full=True)
                batches.append(batch)
            table = pa.Table.from_batches(batches, reader.schema)
    except (pa.ArrowException, OSError, ValueError, KeyError, struct.error, IndexError, TypeError, OverflowError):
        raise DataError("the body is no Arrow IPC stream") from None
    if not rows:
        raise DataError("the body holds no row")
    return table


def _refuse_compression(body: bytes) -> None:
    # Bytes of compressed buffers are told apart only in the messages' metadata.
    flat = require("flatbuffers.table", "serve").Table
    for message in ipc.MessageReader.open_stream(body):
        metadata = message.metadata.to_pybytes()
        (root,) = struct.unpack_from("<I", metadata)
        header_type, header = _header(flat(metadata, root))
        if header is not None and header_type == _DICTIONARY_BATCH:
            inner = header.Offset(_DICTIONARY_DATA)
            header = flat(metadata, header.Indirect(inner + header.Pos)) if inner else None
            header_type = _RECORD_BATCH
        if header is not None and header_type == _RECORD_BATCH and header.Offset(_COMPRESSION):
            raise DataError("the body is compressed; send an uncompressed Arrow stream")


def _header(message: Any) -> tuple[int, Any]:
    kind, place = message.Offset(_HEADER_TYPE), message.Offset(_HEADER)
    if not kind or not place:
        return 0, None
    header_type = message.Bytes[message.Pos + kind]
    return header_type, type(message)(message.Bytes, message.Indirect(place + message.Pos))


def write_table(columns: dict[str, Any], metadata: dict[str, str]) -> bytes:
    """An Arrow IPC stream of (R, width) arrays: a column of numbers, or of lists where the width is above 1."""
    arrays = {}
    for name, values in columns.items():
        flat = pa.array(values.reshape(-1))
        arrays[name] = flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    table = pa.table(arrays).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded
