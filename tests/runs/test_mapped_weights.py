"""Weights that are read from their file as they are needed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dmoe.errors import DataError
from dmoe.nn.tables.bank import TokenField
from dmoe.nn.tables.fields import FieldEmbedding
from dmoe.nn.tables.table import without_rows
from dmoe.weights.mapped import DTYPES, MappedWeights

HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@settings(max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4),
    dtypes=st.lists(st.sampled_from(list(DTYPES)), min_size=4, max_size=4),
    start=st.integers(0, 5),
    stop=st.integers(0, 5),
)
def test_any_file_of_safetensors_is_read_alike(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    dtypes: list[torch.dtype],
    start: int,
    stop: int,
) -> None:
    path = tmp_path_factory.mktemp("file") / "weights.safetensors"
    generator = torch.Generator().manual_seed(3)
    wanted = {
        f"t{number}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for number, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))
    }
    save_file(wanted, path, {"some": "words"})
    weights = MappedWeights.open(path)
    assert weights.tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        assert weights.tensors[name].dtype == value.dtype
        assert torch.equal(weights.rows(name), value)
        if value.ndim:
            first = min(start, len(value))
            last = max(first, stop)
            assert torch.equal(weights.rows(name, first, last), value[first:last])


def framed(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        (1 << 62).to_bytes(8, "little") + b"{}",
        framed(b"not json", b""),
        framed(b"[1]", b""),
        framed(HEADER, bytes(7)),
        framed(HEADER, bytes(9)),
        framed(HEADER.replace(b"[2]", b"[3]"), bytes(8)),
        framed(HEADER.replace(b"[2]", b"[-2]"), bytes(8)),
        framed(HEADER.replace(b"[2]", b'["2"]'), bytes(8)),
        framed(HEADER.replace(b"F32", b"F99"), bytes(8)),
        framed(HEADER.replace(b"[0,8]", b"[4,12]"), bytes(8)),
        framed(HEADER.replace(b"[0,8]", b"[0]"), bytes(8)),
        framed(b'{"a":3}', b""),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"weights\.safetensors: damaged or unreadable"):
        MappedWeights.open(path)


def test_a_table_without_rows_takes_no_memory_and_reads_those_that_it_is_given(tmp_path: Path) -> None:
    fields = [30, TokenField(20, width=3), TokenField(9, width=5, frozen=True)]
    usual = FieldEmbedding(fields, 1, [4, 2])
    usual.set_vectors(2, torch.randn(9, 5))
    path = tmp_path / "weights.safetensors"
    save_file(usual.state_dict(), path)
    weights = MappedWeights.open(path)
    with without_rows():
        mapped = FieldEmbedding(fields, 1, [4, 2])
    for name, bank in zip(mapped.table_names(), mapped.each_bank(), strict=True):
        assert bank.tables.weight.is_meta
        bank.tables.set_rows(weights.rows(name))
    kept = {name: value for name, value in load_file(path).items() if name not in mapped.table_names()}
    mapped.load_state_dict(kept, strict=False)
    ids_BC = torch.from_numpy(np.random.default_rng(1).integers(0, 9, (7, 3)))
    with torch.no_grad():
        for one, other in zip(usual(ids_BC, torch.ones(7, 1)), mapped(ids_BC, torch.ones(7, 1)), strict=True):
            assert torch.equal(one, other)
    with without_rows():
        huge = FieldEmbedding([1 << 40], 0, [64])  # 280 TB
    assert tuple(huge.each_bank()[0].tables.weight.shape) == (1 << 40, 64)
