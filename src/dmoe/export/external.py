"""Tables of a graph beside it, written in ranges of rows: of a table of any size a few rows are in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from dmoe.errors import DmoeError
from dmoe.export.extra import require
from dmoe.export.tables import StoredEmbedding

# As far apart as any system wants what it maps into memory.
_ALIGNED = 1 << 16


def write_tables(scoring: nn.Module, model: Any, file: Path) -> None:
    """Puts the tables of `scoring` in the place of the rows that stand for them in its graph, at the end of `file`.

    Raises: DmoeError if the graph does not hold one of them.
    """
    known = {one.name: one for one in model.graph.initializer}
    with file.open("r+b" if file.exists() else "w+b") as stream:
        for prefix, tables in scoring.named_modules():
            if not isinstance(tables, StoredEmbedding) or not tables.rows:
                continue
            places = {}
            for name, value in tables.named_buffers():
                if name not in ("table", "scale_VT"):
                    continue
                where = f"{prefix}.{name}"
                if where not in known:
                    raise DmoeError(
                        f"torch's exporter left no {where} in the graph; is its version one that is tested?"
                    )
                size = tables.rows * value.shape[1] * value.element_size()
                places[name] = _take_place(known[where], file.name, stream, [tables.rows, value.shape[1]], size)
            _write(stream, tables.blocks(), places)
    shapes = model.graph.value_info
    for one in [one for one in shapes if one.name in known]:
        shapes.remove(one)


def _take_place(tensor: Any, file: str, stream: IO[bytes], shape: list[int], size: int) -> int:
    """Room of `size` bytes at the end of the file, which the tensor then lies in; where it begins."""
    onnx = require("onnx", "export")
    stream.seek(0, 2)
    start = -(-stream.tell() // _ALIGNED) * _ALIGNED
    stream.truncate(start + size)
    del tensor.dims[:], tensor.external_data[:]
    tensor.ClearField("raw_data")
    tensor.dims.extend(shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": file, "offset": start, "length": size}.items():
        tensor.external_data.add(key=key, value=str(value))
    return start


def _write(stream: IO[bytes], blocks: Iterator[dict[str, Tensor]], places: dict[str, int]) -> None:
    places = dict(places)
    for block in blocks:
        for name, rows in block.items():
            data = rows.contiguous().reshape(-1).view(torch.uint8).numpy()
            stream.seek(places[name])
            stream.write(data.data)
            places[name] += len(data)
