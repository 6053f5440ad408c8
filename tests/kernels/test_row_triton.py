"""Triton's kernels of table rows against torch and loops: on a CUDA device, or in the interpreter where none is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="triton runs on Linux only")

from dmoe.kernels import row_triton
from dmoe.kernels.row_triton import CHUNK, DistinctRows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch(num_rows: int, sizes: list[int], skew: float) -> Tensor:
    """Low ids often, high ones rarely."""
    columns = [(torch.rand(num_rows) ** skew * size).int() for size in sizes]
    return torch.stack(columns, dim=1).to(DEVICE)


def distinct(ids: Tensor, sizes: list[int], vocabulary_of_column: list[int]) -> tuple[DistinctRows, Tensor]:
    """What is found, and the table row of each position."""
    offsets = torch.tensor([sum(sizes[:vocabulary]) for vocabulary in vocabulary_of_column], device=DEVICE)
    columns = [vocabulary_of_column.count(vocabulary) for vocabulary in range(len(sizes))]
    room = sum(min(len(ids) * number, size) for number, size in zip(columns, sizes, strict=True))
    return row_triton.distinct_rows(ids, offsets, sum(sizes), room), ids.long() + offsets


@settings(max_examples=12)
@given(
    num_rows=st.integers(0, 3 * CHUNK),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    shared=st.booleans(),
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    spare_fields=st.integers(0, 2),
    skew=st.sampled_from([1.0, 4.0, 60.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_distinct_rows_their_values_and_the_sums_of_gradients_equal_torch(
    num_rows: int,
    sizes: list[int],
    shared: bool,
    widths: list[int],
    spare_fields: int,
    skew: float,
    dtype: torch.dtype,
) -> None:
    vocabulary_of_column = [0, *range(len(sizes))] if shared else list(range(len(sizes)))
    ids = batch(num_rows, [sizes[vocabulary] for vocabulary in vocabulary_of_column], skew)
    found, positions = distinct(ids, sizes, vocabulary_of_column)
    rows, inverse, counts = torch.unique(positions, return_inverse=True, return_counts=True)
    known = len(rows)
    assert found.count.item() == known
    assert torch.equal(found.rows_U[:known], rows)
    assert torch.equal(found.inverse_BC.long(), inverse)
    assert torch.equal(found.counts_U()[:known].long(), counts)
    assert bool((found.rows_U[known:] == -1).all())
    assert not found.counts_U()[known:].any()

    values = torch.randn(len(found.rows_U), sum(widths), dtype=dtype, device=DEVICE)
    columns = len(vocabulary_of_column)
    outputs = found.gather(values, widths, columns + spare_fields)
    gathered = torch.cat([output[:, :columns] for output in outputs], dim=2)
    assert torch.equal(gathered, values[inverse])

    gradients = [torch.randn(num_rows, columns + spare_fields, width, dtype=dtype, device=DEVICE) for width in widths]
    summed = found.sum_gradients(gradients, widths, dtype)
    given_S = torch.cat([gradient[:, :columns] for gradient in gradients], dim=2).flatten(0, 1).double()
    expected = torch.zeros(len(found.rows_U), sum(widths), dtype=torch.float64, device=DEVICE)
    expected.index_add_(0, inverse.reshape(-1), given_S)
    size = torch.zeros_like(expected).index_add_(0, inverse.reshape(-1), given_S.abs())
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert bool(((summed.double() - expected).abs() <= tolerance * size).all())


def test_sums_within_a_chunk_are_taken_in_batch_order() -> None:
    """So they have the bits of a loop over the batch."""
    ids = torch.tensor([[1], [0], [1], [1], [0]], dtype=torch.int32, device=DEVICE)
    found, _ = distinct(ids, [2], [0])
    gradient = torch.tensor([1e8, 1.0, 1.0, -1e8, 3.0], device=DEVICE).reshape(5, 1, 1)
    assert found.sum_gradients([gradient], [1], torch.float32).tolist() == [[4.0], [0.0]]


@pytest.mark.parametrize("width", [1, 3, 64])
def test_a_row_that_fills_many_chunks_is_summed_over_all_of_them(width: int) -> None:
    num_rows = 5 * CHUNK + 7
    found, _ = distinct(torch.zeros(num_rows, 1, dtype=torch.int64, device=DEVICE), [1], [0])
    gradient = torch.arange(num_rows * width, dtype=torch.float32, device=DEVICE).reshape(num_rows, 1, width)
    summed = found.sum_gradients([gradient], [width], torch.float32)
    torch.testing.assert_close(summed[0].double(), gradient.double().sum(dim=(0, 1)), rtol=1e-6, atol=0)


def test_a_table_without_a_gradient_has_zeros_and_strides_are_honoured() -> None:
    ids = batch(9, [4], 1.0)
    found, _ = distinct(ids, [4], [0])
    wide = torch.randn(9, 6, 4, device=DEVICE)
    part = wide[:, 2:4, :3]
    summed = found.sum_gradients([None, part], [2, 3], torch.float32)
    again = found.sum_gradients([part.contiguous()], [3], torch.float32)
    assert not summed[:, :2].any()
    assert torch.equal(summed[:, 2:], again)
    turned = part.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(found.sum_gradients([turned], [3], torch.float32), again)


@settings(max_examples=12)
@given(
    size=st.integers(1, 40),
    width=st.integers(1, 9),
    spare=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32]),
    data=st.data(),
)
def test_any_rows_are_taken_and_put(size: int, width: int, spare: int, dtype: torch.dtype, data: st.DataObject) -> None:
    table = torch.randint(-100, 100, (size, width), device=DEVICE).to(dtype)
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, size - 1), unique=True)), dtype=torch.int64, device=DEVICE)
    rows = torch.cat([chosen, chosen.new_full((spare,), -1)])
    values = row_triton.take_rows(table, rows)
    assert torch.equal(values[: len(chosen)], table[chosen])
    assert not values[len(chosen) :].any()
    expected = table.clone()
    expected[chosen] = values[: len(chosen)] + 1
    row_triton.put_rows(table, rows, values + 1)
    assert torch.equal(table, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32])
def test_rows_are_taken_and_put_and_minus_one_is_none(dtype: torch.dtype) -> None:
    table = torch.randint(0, 100, (6, 3), device=DEVICE).to(dtype)
    rows = torch.tensor([1, 4, 5, -1, -1], device=DEVICE)
    values = row_triton.take_rows(table, rows)
    assert torch.equal(values[:3], table[rows[:3]])
    assert not values[3:].any()
    expected = table.clone()
    expected[rows[:3]] = values[:3] + 1
    row_triton.put_rows(table, rows, values + 1)
    assert torch.equal(table, expected)
