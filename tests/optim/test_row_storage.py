"""Tables in 16 bits: what is read and written is right to the bit, and rounding loses nothing on average."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmoe.distributed.layout import RowLayout
from dmoe.nn.tables.lookup import TableRows
from dmoe.nn.tables.table import MultiTableEmbedding
from dmoe.optim import DeferredAdam
from dmoe.optim.row_storage import Numbering, row_storage

HALF = [torch.bfloat16, torch.float16]


def all_values(dtype: torch.dtype) -> Tensor:
    """Every value that 16 bits can hold, infinities and not-a-numbers included."""
    return torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype).view(1024, 64)


def same(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(first.nan_to_num(), second.nan_to_num())


@pytest.mark.parametrize("dtype", HALF)
def test_every_value_is_widened_as_torch_does_and_written_back_unchanged(dtype: torch.dtype) -> None:
    table = all_values(dtype)
    rows = np.random.default_rng(0).permutation(1024)
    values, places = row_storage(table).read(rows)
    assert same(torch.from_numpy(values[places]), table[torch.from_numpy(rows)].float())
    copy = torch.zeros_like(table)
    row_storage(copy).write(values, rows, step=3)
    assert same(copy, table)
    assert torch.equal(copy.signbit()[~table.isnan()], table.signbit()[~table.isnan()])


@pytest.mark.parametrize("dtype", HALF)
@settings(max_examples=100)
@given(value=st.floats(-6e4, 6e4, width=32), step=st.integers(0, 2**31 - 1))
def test_a_number_becomes_one_of_its_two_neighbours(dtype: torch.dtype, value: float, step: int) -> None:
    table = torch.zeros(50, 3, dtype=dtype)
    row_storage(table).write(np.full((50, 3), value, np.float32), np.arange(50), step)
    nearest = torch.tensor(value).to(dtype)
    # The neighbour on the other side; nextafter is not there for 16 bits, so a step in the bits is taken.
    off = value - nearest.double().item()
    bits = int(nearest.view(torch.int16)) & 0xFFFF
    if nearest == 0:
        other = torch.tensor(1 | (0x8000 if off < 0 else 0))
    else:
        other = torch.tensor(bits + (1 if (off > 0) == (nearest.item() > 0) else -1))
    allowed = {nearest.item(), other.to(torch.int32).to(torch.uint16).view(dtype).item()}
    assert set(table.unique().tolist()) <= ({nearest.item()} if off == 0 else allowed)


@pytest.mark.parametrize("dtype", HALF)
def test_rounding_is_right_on_average(dtype: torch.dtype) -> None:
    values = torch.tensor([0.3, -1e-4, 1e-6, 3e-8, -7e-5, 1000.3, 1.0001, -3.0])
    count = 100_000
    table = torch.zeros(count, len(values), dtype=dtype)
    row_storage(table).write(values.expand(count, -1).contiguous().numpy(), np.arange(count), step=11)
    error = table.double().mean(dim=0) - values.double()
    spread = table.double().std(dim=0) / count**0.5
    assert bool((error.abs() <= 5 * spread).all())
    assert torch.equal(spread > 0, values != -3)  # every other one lies between two neighbours
    again = torch.zeros_like(table)
    row_storage(again).write(values.expand(count, -1).contiguous().numpy(), np.arange(count), step=12)
    # Two steps draw independently: up at both with the product of the probabilities.
    up, up_again = (one[:, 0].float() > values[0] for one in (table, again))
    together = (up & up_again).double().mean().item()
    assert together == pytest.approx(up.double().mean().item() * up_again.double().mean().item(), abs=0.01)


def train(weight: Tensor, steps: int, l2: float, lr: float = 1e-3, **options: Any) -> DeferredAdam:
    """Many small steps of few rows on `weight`, the same for equal options."""
    generator = torch.Generator().manual_seed(4)
    optimiser = DeferredAdam(nn.Parameter(weight), lr, l2=l2)
    for number in range(steps):
        rows = torch.unique((torch.rand(12, generator=generator) ** 3 * len(weight)).long())
        values = 0.1 * torch.randn(len(rows), weight.shape[1], generator=generator) + 0.02
        optimiser.catch_up(rows)
        optimiser.grad_norm_squared(rows, values, options.get("clip_norm"))
        optimiser.write(rows, values)
        if number == options.get("save_at"):
            state = {name: tensor.clone() for name, tensor in optimiser.state_dict(flush=False).items()}
            saved = optimiser.weight.detach().clone()
            optimiser = DeferredAdam(nn.Parameter(saved), lr, l2=l2)
            optimiser.load_state_dict(state)
    optimiser.flush()
    return optimiser


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("l2", [0.0, 1e-6])
def test_training_stays_close_to_float32_where_nearest_rounding_would_stand_still(
    dtype: torch.dtype, l2: float
) -> None:
    """Steps of 1e-4 from weights near 1: a hundredth to a tenth of the spacing of the stored numbers."""
    start = (1 + 0.1 * torch.randn(40, 64)).to(dtype)
    exact = train(start.float(), 1500, l2, lr=1e-4).weight.detach().float()
    half = train(start.clone(), 1500, l2, lr=1e-4).weight.detach().float()
    moved = (exact - start.float())[:20].mean().item()
    assert abs(moved) > 0.01
    # The mean over 1,280 elements averages the noise away; a bias would stay.
    assert (half - start.float())[:20].mean().item() == pytest.approx(moved, rel=0.03)
    spacing = torch.finfo(dtype).eps
    assert (half - exact).abs().max().item() < spacing * 1500**0.5


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("l2", [0.0, 1e-6])
def test_a_save_and_load_between_flushes_changes_no_bit(dtype: torch.dtype, l2: float) -> None:
    start = torch.randn(40, 7).to(dtype)
    whole = train(start.clone(), 60, l2, clip_norm=1.0)
    cut = train(start.clone(), 60, l2, clip_norm=1.0, save_at=31)
    assert torch.equal(whole.weight, cut.weight)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, cut.state_dict()[name]), name


@pytest.mark.parametrize("dtype", HALF)
def test_bits_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    start = torch.randn(3000, 7).to(dtype)
    threads = torch.get_num_threads()
    weights = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            weights.append(train(start.clone(), 30, 1e-6).weight.detach())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(weights[0], other) for other in weights[1:])
    assert not torch.equal(weights[0], start)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("traced", [False, True])
def test_an_embedding_in_16_bits_gives_the_values_and_gradient_of_the_widened_one(
    dtype: torch.dtype, traced: bool
) -> None:
    half = MultiTableEmbedding([50, 8], 1, [3, 2], storage=dtype)
    wide = MultiTableEmbedding([50, 8], 1, [3, 2])
    nn.init.normal_(half.weight)
    with torch.no_grad():
        wide.weight.copy_(half.weight)
        wide.numeric_weight.copy_(half.numeric_weight)
    ids = torch.stack([torch.randint(0, 50, (40,)), torch.randint(0, 8, (40,))], dim=1)
    numeric = torch.randn(40, 1)
    if traced:
        outputs = torch.export.export(half, (ids, numeric)).module()(ids, numeric)
    else:
        outputs = half(ids, numeric)
        gradients = []
        for embedding in (half, wide):
            store = DeferredAdam(embedding.weight, 1e-3)
            rows = TableRows.read(embedding.batch_rows(ids), store)
            sum(output.square().sum() for output in embedding(ids, numeric, rows)).backward()
            gradients.append(rows.gradient_US)
        assert gradients[0].dtype == torch.float32
        assert torch.equal(*gradients)
    for output, wanted in zip(outputs, wide(ids, numeric), strict=True):
        assert output.dtype == torch.float32
        assert torch.equal(output, wanted)
    assert half.state_dict()["weight"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parts_of_a_table_are_rounded_as_the_whole(dtype: torch.dtype) -> None:
    """Random bits are those of the row's number in the whole table, whichever process holds it."""
    rows, width = 200, 5
    values = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    whole = torch.zeros(rows, width, dtype=dtype)
    row_storage(whole).write(values, np.arange(rows), 7)
    for rank in range(3):
        layout = RowLayout(rows, rank, 3)
        held = layout.rows_held()
        part = torch.zeros(layout.held, width, dtype=dtype)
        storage = row_storage(part, Numbering(layout.first, layout.per_way, layout.ways))
        real = np.flatnonzero(held < rows)
        storage.write(values[held[real]], real, 7)
        torch.testing.assert_close(part[real], whole[held[real]], rtol=0, atol=0)
