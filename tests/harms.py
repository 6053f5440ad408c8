"""Ways to harm a file of a folder, by what kind of file it is: none may do more than be refused."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# A harm's name, and the bytes that take the file's place.
Harm = tuple[str, bytes]

_DEEP = 100_000
_WRONG: dict[str, Any] = {
    "null": None, "text": "x\r\n../../etc/passwd", "negative": -1, "huge": 10**30, "far": 1e308, "list": [],
    "object": {}, "truth": True, "lists": [[[]]],
}  # fmt: skip


def broken_json(text: str) -> Iterator[Harm]:
    """What is no JSON object that says one thing: never read, whatever its keys mean."""
    yield "empty", b""
    yield "cut", text.encode()[: len(text) // 2]
    yield "list", b"[]"
    yield "no UTF-8", b'{"a": "\xff"}'
    yield "deep", b'{"a": ' + b"[" * _DEEP + b"]" * _DEEP + b"}"
    yield "deep objects", b'{"a":' * _DEEP + b"1" + b"}" * _DEEP
    yield "digits", b'{"a": ' + b"9" * 10_000 + b"}"
    for word in ("NaN", "Infinity", "-Infinity", "1e999"):
        yield word, f'{{"a": {word}}}'.encode()
    key = next(iter(json.loads(text)))
    yield "doubled key", (f"{{{json.dumps(key)}: 1, " + text.lstrip()[1:]).encode()
    yield "surrogate", b'{"\\ud800": 1}'


def wrong_json(text: str) -> Iterator[Harm]:
    """Each value in turn of another type, and each key in turn left out; of a list the first entry stands for all."""
    value = json.loads(text)
    for path in _paths(value):
        where = ".".join(map(str, path))
        for name, wrong in _WRONG.items():
            yield f"{where} {name}", json.dumps(_changed(value, path, wrong)).encode()
        yield f"{where} left out", json.dumps(_changed(value, path, None, remove=True)).encode()


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from _paths(value[0], (*path, 0))


def _changed(value: Any, path: tuple[Any, ...], new: Any, *, remove: bool = False) -> Any:
    copy = json.loads(json.dumps(value))
    at = copy
    for step in path[:-1]:
        at = at[step]
    if remove:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return copy


def broken_tensors(content: bytes) -> Iterator[Harm]:
    """Headers of safetensors that lie."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    yield "empty", b""
    for name, size in (("length", 2**63), ("length beyond", len(content)), ("length short", 3)):
        yield name, struct.pack("<Q", size) + content[8:]
    yield "cut", content[: len(content) // 2]
    yield "longer", content + b"\0" * 8
    yield "deep", _with_header(b'{"a":' * _DEEP + b"1" + b"}" * _DEEP, data)
    names = [name for name in header if name != "__metadata__"]
    first = max(names, key=lambda name: header[name]["data_offsets"][1] - header[name]["data_offsets"][0])
    begin, end = header[first]["data_offsets"]
    shape = header[first]["shape"]
    for name, change in (
        ("offsets beyond", {"data_offsets": [begin, end + 2**40]}),
        ("offsets back", {"data_offsets": [end, begin]}),
        ("offsets over others", {"data_offsets": [max(begin - 4, 0), end - 4]}),
        ("shape huge", {"shape": [2**40, 2**20]}),
        ("shape empty", {"shape": [0, *shape[1:]], "data_offsets": [begin, begin]}),
        ("dtype", {"dtype": "I8"}),
        ("dtype unknown", {"dtype": "PICKLE"}),
        ("shape of other order", {"shape": [1, *shape]}),
    ):
        yield name, _with_header(json.dumps({**header, first: {**header[first], **change}}).encode(), data)
    yield (
        "other name",
        _with_header(json.dumps({("../x" if k == first else k): v for k, v in header.items()}).encode(), data),
    )
    yield "none", _with_header(b"{}", b"")
    same = header[first]["dtype"]
    other = {"F32": "I32", "F64": "I64", "U8": "I8", "I64": "F64", "BF16": "F16", "F16": "BF16"}[same]
    yield (
        "dtype of the same size",
        _with_header(json.dumps({**header, first: {**header[first], "dtype": other}}).encode(), data),
    )


def _with_header(header: bytes, data: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data


def broken_parquet(path: Path) -> Iterator[Harm]:
    content = path.read_bytes()
    yield "empty", b""
    yield "cut", content[: len(content) // 2]
    yield "footer length", content[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"
    yield "no Parquet", b"PAR1" + b"\xff" * 100 + struct.pack("<I", 90) + b"PAR1"
    random = np.random.default_rng(0)
    for index in range(6):
        changed = bytearray(content)
        for place in random.integers(0, len(content), 3):
            changed[place] ^= int(random.integers(1, 256))
        yield f"bytes {index}", bytes(changed)
    table = pq.read_table(path)
    yield "other columns", _parquet(pa.table({"../x": [1]}))
    yield "no rows", _parquet(table.slice(0, 0))
    for index, field in enumerate(table.schema):
        for name, column in (
            ("null", pa.nulls(len(table), field.type)),
            ("text", pa.array(["x"] * len(table))),
            ("doubles", pa.array([float("nan")] * len(table))),
            ("far ids", pa.array([2**31 - 1] * len(table), pa.int32())),
            ("negative ids", pa.array([-1] * len(table), pa.int32())),
        ):
            yield f"{field.name} {name}", _parquet(table.set_column(index, field.name, column))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def broken_trees(text: str) -> Iterator[Harm]:
    """Of lightgbm.txt: numbers that lead out of the arrays that they count."""
    yield "empty", b""
    yield "cut", text.encode()[: len(text) // 3]
    yield "no UTF-8", b"\xff" + text.encode()
    yield "nul", b"\0" * 1000
    for key, wrong in (
        ("num_leaves", "2147483647"), ("num_leaves", "-1"), ("num_leaves", "1"), ("num_cat", "2147483647"),
        ("split_feature", "999999"), ("split_feature", "-1"), ("left_child", "0"), ("right_child", "2147483647"),
        ("left_child", "-2147483648"), ("decision_type", "999"), ("leaf_value", "nan"), ("leaf_value", "1e999"),
        ("is_linear", "1"), ("shrinkage", "x"), ("max_feature_idx", "2147483646"), ("num_class", "1000000000"),
        ("tree_sizes", "7"), ("feature_names", ""), ("feature_infos", "none"), ("objective", "custom"),
        ("num_tree_per_iteration", "0"), ("cat_boundaries", "0 2147483647"), ("cat_threshold", "1"),
    ):  # fmt: skip
        start = text.find(f"\n{key}=")
        if start >= 0:
            start += len(key) + 2
            stop = text.index("\n", start)
            first = text[start:stop].split(" ")[0]
            yield f"{key} {wrong}", (text[:start] + wrong + text[start + len(first) : stop] + text[stop:]).encode()
            yield f"{key} twice", (text[:start] + text[start:stop] + f"\n{key}=" + text[start:]).encode()


def broken_yaml(text: str) -> Iterator[Harm]:
    yield "empty", b""
    yield "no UTF-8", b"\xff" + text.encode()
    yield "deep", b"[" * _DEEP
    yield "tag", b"!!python/object/apply:os.system ['touch ran']\n" + text.encode()
    yield (
        "aliases",
        b"a: &a [1,1,1,1,1,1,1,1]\n"
        + b"".join(
            b"a%d: &b%d [%s]\n" % (i, i, b",".join([b"*a" if i == 0 else b"*b%d" % (i - 1)] * 9)) for i in range(12)
        ),
    )
    key = text.split(":", 1)[0]
    yield "doubled key", f"{text}\n{key}: 1\n".encode()
    yield "unknown key", f"{text}\nunknown_key: 1\n".encode()


def broken_file(path: Path) -> list[Harm]:
    """All harms that a file's kind knows, those of its form first."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return [*broken_json(content.decode()), *wrong_json(content.decode())]
    if path.suffix == ".jsonl":
        line = content.decode().splitlines()[0]
        return [(name, harm + b"\n" + content) for name, harm in (*broken_json(line), *wrong_json(line)) if harm]
    if path.suffix == ".safetensors":
        return list(broken_tensors(content))
    if path.suffix == ".parquet":
        return list(broken_parquet(path))
    if path.suffix == ".npy":
        return list(broken_array(content))
    if path.name == "lightgbm.txt":
        return list(broken_trees(content.decode()))
    if path.suffix == ".yaml":
        return list(broken_yaml(content.decode()))
    if path.name == "latest":
        return [(name, name.encode()) for name in ("../..", "/etc", "", "x" * 100_000, "000000003-00000/../..", "\0")]
    return [("empty", b""), ("cut", content[: len(content) // 2]), ("noise", bytes(range(256)) * 100)]


def broken_array(content: bytes) -> Iterator[Harm]:
    """Of .npy files."""
    yield "empty", b""
    yield "cut", content[: len(content) - 4]
    yield "longer", content + b"\0" * 16
    (size,) = struct.unpack("<H", content[8:10])
    header, data = content[10 : 10 + size], content[10 + size :]
    for name, old, new in (
        ("objects", b"'descr': '", b"'descr': '|O', 'x': '"),
        ("order", b"False", b"True "),
        ("shape huge", b"'shape': (", b"'shape': (99999999999999,"),
        ("shape negative", b"'shape': (", b"'shape': (-1,"),
        ("code", b"'shape': (", b"'shape': (__import__('os').system('touch ran'),"),
    ):
        changed = header.replace(old, new)
        yield name, content[:8] + struct.pack("<H", len(changed)) + changed + data
