"""Arrow streams from strangers: bounded before they are decoded, checked before they are used."""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from pyarrow import ipc

from dmoe.errors import DataError
from dmoe.export.extra import require

pc: Any = pyarrow.compute

# Positions in the flatbuffers of Message, RecordBatch and DictionaryBatch (format/Message.fbs of Apache Arrow).
_HEADER_TYPE, _HEADER = 6, 8
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_COMPRESSION, _DICTIONARY_DATA, _IS_DELTA = 10, 6, 8

# Each costs time, however little it holds.
_MOST_MESSAGES = 1000

UNFOLDED = "the body unfolds to more than {} bytes"

_VIEW_BYTES = 16  # of a string view: its length in the first four, then the text or where it is
_SLOT_BYTES = 8  # what any other value counts as


class TooLarge(DataError):
    """More rows or bytes than one request may have."""


def read_table(body: bytes, max_rows: int, max_bytes: int) -> tuple[pa.Table, int]:
    """The table of an Arrow IPC stream, and its bytes once every row has its own value.

    A few kilobytes may stand for gigabytes: compressed, in a dictionary's one long text for all rows, or in views of
    the same bytes. What a column unfolds to is reckoned from lengths before it is decoded.

    Raises: TooLarge if there are more than `max_rows` rows or `max_bytes`; DataError if it is no such stream, is
    compressed, has a type that no raw value has, or has no row.
    """
    try:
        _refuse_unbounded(body)
        batches, rows, held, decoded = [], 0, 0, 0
        with ipc.open_stream(body) as reader:
            for field in reader.schema:
                _check_type(field)
            for batch in reader:
                rows += batch.num_rows
                if rows > max_rows:
                    raise TooLarge(f"more than {max_rows} rows; send them in several requests")
                # Buffers may be the same bytes many times, and a dictionary comes back with every batch.
                held += batch.get_total_buffer_size()
                _check_size(held, max_bytes)
                batch.validate(full=True)
                decoded += sum(_decoded_bytes(column) for column in batch.columns)
                _check_size(decoded, max_bytes)
                batches.append(batch)
            table = pa.Table.from_batches(batches, reader.schema)
    except (pa.ArrowException, OSError, ValueError, KeyError, struct.error, IndexError, TypeError, OverflowError):
        raise DataError("the body is no Arrow IPC stream") from None
    if not rows:
        raise DataError("the body holds no row")
    return table, decoded


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise TooLarge(f"{UNFOLDED.format(max_bytes)}; send fewer rows or shorter values")


def _check_type(field: Any) -> None:
    kind, value = field.type, field.type
    if pa.types.is_dictionary(kind) or is_list(kind):
        value = kind.value_type
    plain = pa.types.is_primitive(value) or pa.types.is_decimal(value) or pa.types.is_null(value) or is_text(value)
    if not plain or isinstance(value, pa.BaseExtensionType):
        name = field.name.encode("unicode_escape").decode()[:64]
        raise DataError(f"column '{name}' is of a type that no raw value has; send text, numbers, or lists of them")


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists of a kind that is read."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether values are texts or bytes of any length and layout."""
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
            pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary,
        )
    )  # fmt: skip


def _decoded_bytes(column: Any) -> int:
    """Bytes of a valid column once every row has its own value."""
    own = len(column) * _SLOT_BYTES
    if is_list(column.type):
        return own + _decoded_bytes(column.values)
    if pa.types.is_dictionary(column.type):
        if not is_text(column.type.value_type):
            return own
        indices = column.indices.drop_null().to_numpy(zero_copy_only=False)
        return own + int(_lengths(column.dictionary)[indices].sum())
    # A list may hold any number of nulls, which take no bytes of the body: nothing is made for each.
    return own + int(_lengths(column).sum()) if is_text(column.type) else own


def _lengths(column: Any) -> npt.NDArray[np.int64]:
    """Bytes of each text, 0 where null, (R,)."""
    kind = column.type
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        views = np.frombuffer(column.buffers()[1], np.uint8)
        start = column.offset * _VIEW_BYTES
        first = views[start : start + len(column) * _VIEW_BYTES].reshape(-1, _VIEW_BYTES)[:, :4]
        lengths = np.ascontiguousarray(first).view("<i4")[:, 0].astype(np.int64)
        lengths[column.is_null().to_numpy(zero_copy_only=False)] = 0
        return lengths
    found: npt.NDArray[np.int64] = pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _refuse_unbounded(body: bytes) -> None:
    # What is compressed, or added to an earlier dictionary (which is copied each time), only the metadata says.
    flat = require("flatbuffers.table", "serve").Table
    for number, message in enumerate(ipc.MessageReader.open_stream(body)):
        if number > _MOST_MESSAGES:
            raise TooLarge(f"the body has more than {_MOST_MESSAGES} batches and dictionaries; send longer batches")
        metadata = message.metadata.to_pybytes()
        (root,) = struct.unpack_from("<I", metadata)
        header_type, header = _header(flat(metadata, root))
        if header is not None and header_type == _DICTIONARY_BATCH:
            delta = header.Offset(_IS_DELTA)
            if delta and header.Bytes[header.Pos + delta]:
                raise DataError("the body adds to a dictionary; send whole dictionaries")
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
