"""Deferred Adam on a device against the compiled loops on the CPU; in the interpreter where there is no device."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="triton runs on Linux only")

import triton
import triton.language as tl

from dmoe.optim import DeferredAdam
from dmoe.optim.deferred_triton import DeferredRows
from dmoe.optim.row_storage import Numbering, row_storage
from dmoe.optim.row_storage_triton import rounded

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Of one rounding and of a few hundred steps of them.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
ROWS = 9
WHOLE = Numbering()


class Pair:
    """The same table, trained on the CPU and by `DeferredRows`."""

    def __init__(
        self,
        weight: Tensor,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        l2: float,
        scaled: bool,
        numbering: Numbering = WHOLE,
    ):
        self.dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        scale = torch.linspace(0.2, 1.0, len(weight), dtype=self.dtype) if scaled else None
        self.cpu = DeferredAdam(weight.clone(), lr, betas, eps, l2, scale, numbering=numbering)
        self.device = DeferredRows(
            weight.to(DEVICE).clone(), lr, betas, eps, l2, scale, history_length=4, numbering=numbering
        )

    def step(self, rows: Tensor, gradient: Tensor, grad_scale: float) -> None:
        """Reads and writes rows; spare places hold no row, and a gradient that must not be used."""
        spare = torch.full((2, gradient.shape[1]), float("nan"), dtype=self.dtype)
        padded = torch.cat([rows, torch.tensor([-1, -1])]).to(DEVICE)
        values = self.device.read(padded)
        self.near(values[: len(rows)], self.cpu.read(rows).to(self.cpu.weight.dtype))
        assert not values[len(rows) :].any()
        self.take_step(rows, gradient, grad_scale, padded, torch.cat([gradient, spare]))

    def take_step(
        self,
        rows: Tensor,
        gradient: Tensor,
        grad_scale: float,
        rows_there: Tensor | None = None,
        gradient_there: Tensor | None = None,
    ) -> None:
        """Writes rows; on the device others may be given."""
        self.cpu.write(rows, gradient, grad_scale)
        rows_there = rows if rows_there is None else rows_there
        gradient_there = gradient if gradient_there is None else gradient_there
        scale = torch.tensor([grad_scale], dtype=torch.float64, device=DEVICE)
        self.device.write(rows_there.to(DEVICE), gradient_there.to(DEVICE), scale)

    def set_lr(self, lr: float) -> None:
        self.cpu.set_lr(lr)
        self.device.set_lr(lr)

    def flush(self) -> None:
        self.cpu.flush()
        self.device.flush()

    def check(self) -> None:
        self.near(self.device.weight_VS, self.cpu.weight)
        state = self.cpu.state_dict(flush=False)
        self.near(self.device.first_VS, state["first_moment"])
        self.near(self.device.second_VS, state["second_moment"])
        assert torch.equal(self.device.last_V.cpu(), state["last_step"])
        assert self.device.clock.tolist() == [int(state["step_count"]), int(state["flushed"])]
        history = state["history"]
        torch.testing.assert_close(
            self.device.history_6J[:, : history.shape[1]].cpu(), history, rtol=TOLERANCE[self.dtype], atol=0
        )

    def near(self, ours: Tensor, theirs: Tensor) -> None:
        ours = ours.to("cpu", theirs.dtype)
        if theirs.dtype.itemsize == 2:
            # A last bit of float32 may turn the draw of a rounding, rarely, to the neighbour.
            spacing = torch.finfo(theirs.dtype).eps * theirs.float().abs() + 6e-8
            off = (ours.float() - theirs.float()).abs()
            assert bool((off <= 1.01 * spacing).all())
            assert int((off > 0).sum()) <= 1
        else:
            size = float(theirs.abs().max()) if theirs.numel() else 0.0
            torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[self.dtype] * size)


@settings(max_examples=16)
@given(
    dtype=st.sampled_from(DTYPES),
    width=st.integers(1, 6),
    l2=st.sampled_from([0.0, 1e-6, 1e-2]),
    scaled=st.booleans(),
    numbering=st.sampled_from([Numbering(), Numbering(5, 7, 64), Numbering(0, 2, 8)]),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.5, 0.99)]),
    eps=st.sampled_from([1e-8, 1e-3]),
    touches=st.lists(
        st.tuples(
            st.sets(st.integers(0, ROWS - 1), max_size=4),
            st.sampled_from([1.0, 0.3]),
            st.sampled_from(["", "", "", "flush", "raise lr", "lower lr", "wait"]),
        ),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 1000),
)
def test_any_touch_pattern_equals_the_cpu(
    dtype: torch.dtype,
    width: int,
    l2: float,
    scaled: bool,
    numbering: Numbering,
    betas: tuple[float, float],
    eps: float,
    touches: list[tuple[set[int], float, str]],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    pair = Pair(torch.randn(ROWS, width).to(dtype), 1e-2, betas, eps, l2, scaled, numbering)
    lr = 1e-2
    nobody = torch.empty(0, dtype=torch.int64)
    for chosen, grad_scale, event in touches:
        rows = torch.tensor(sorted(chosen), dtype=torch.int64)
        pair.step(rows, torch.randn(len(rows), width, dtype=pair.dtype), grad_scale)
        if event == "flush":
            pair.flush()
        elif event.endswith("lr"):
            lr *= 3 if event.startswith("raise") else 0.2
            pair.set_lr(lr)
        elif event == "wait":
            for _ in range(19):
                pair.take_step(nobody, torch.empty(0, width, dtype=pair.dtype), 1.0)
        pair.check()
    pair.flush()
    pair.check()


@triton.jit
def _round_all(values, stored, step, STORAGE: tl.constexpr, WIDTH: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    tl.store(stored + element, rounded(tl.load(values + element), element, step, STORAGE))


@pytest.mark.parametrize(("dtype", "storage"), [(torch.bfloat16, 1), (torch.float16, 2)])
@pytest.mark.parametrize("step", [0, 1, 12345, 2**31 - 1])
def test_rounding_draws_the_bits_of_the_cpu(dtype: torch.dtype, storage: int, step: int) -> None:
    """For floats of every size, infinities and not-a-numbers: all patterns of the high bits, low ones at random."""
    bits = (torch.arange(2**14) << 18) + torch.randint(0, 2**18, (2**14,))
    values = bits.to(torch.uint32).view(torch.float32).view(64, 256)
    expected = torch.zeros(64, 256, dtype=dtype)
    row_storage(expected).write(values.numpy(), np.arange(64), step)
    found = torch.zeros(64, 256, dtype=torch.int16, device=DEVICE)
    _round_all[(64,)](values.to(DEVICE), found, step, storage, 256)
    assert torch.equal(found.cpu(), expected.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("l2", [0.0, 1e-4])
def test_flushes_and_reads_change_no_bit(dtype: torch.dtype, l2: float) -> None:
    weight = torch.randn(ROWS, 3, dtype=dtype, device=DEVICE)
    plain, busy = (DeferredRows(weight.clone(), 1e-2, (0.9, 0.999), 1e-8, l2) for _ in range(2))
    one = torch.ones(1, dtype=torch.float64, device=DEVICE)
    for number in range(14):
        rows = torch.unique((torch.rand(2) ** 4 * ROWS).long()).to(DEVICE)
        gradient = torch.randn(len(rows), 3, dtype=dtype, device=DEVICE)
        for table in (plain, busy):
            table.write(rows, gradient, one)
        if number % 6 == 4:
            busy.flush()
        if l2 > 0 and number % 5 == 2:  # without, the moments of a row that is read follow in one product
            busy.read(torch.arange(0, ROWS, 2, device=DEVICE))
    plain.flush()
    busy.flush()
    assert torch.equal(plain.weight_VS, busy.weight_VS)
    for table in (plain, busy):  # moments follow when rows are read
        table.catch_up(torch.arange(ROWS, device=DEVICE))
    assert torch.equal(plain.first_VS, busy.first_VS)


def test_rows_with_l2_that_died_out_become_zero_as_on_the_cpu() -> None:
    pair = Pair(1e-30 * torch.randn(ROWS, 2), 1e-3, (0.9, 0.999), 1e-8, 1e-5, False)
    pair.step(torch.tensor([0]), torch.ones(1, 2), 1.0)
    for _ in range(130):
        pair.take_step(torch.empty(0, dtype=torch.int64), torch.empty(0, 2), 1.0)
    pair.flush()
    pair.near(pair.device.weight_VS, pair.cpu.weight)
    assert bool(pair.device.weight_VS[:1].all())
    assert not pair.device.weight_VS[1:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_part_of_a_table_draws_the_bits_of_its_rows_in_the_whole(dtype: torch.dtype) -> None:
    """Rows of one number draw alike, wherever they stand; others do not."""
    weight = torch.full((40, 8), 0.3).to(dtype)
    found = []
    for numbering in (Numbering(), Numbering(10, 20, 2)):
        table = DeferredRows(weight.to(DEVICE).clone(), 1e-2, (0.9, 0.999), 1e-8, 0.0, numbering=numbering)
        rows = torch.arange(10, device=DEVICE)
        table.write(rows, torch.ones(10, 8, device=DEVICE), torch.ones(1, dtype=torch.float64, device=DEVICE))
        found.append(table.weight_VS.cpu()[:10])
    # Places 10 to 19 of 20 a way hold numbers 20, 22, …; place 10 to 19 of the second call are of rows 20 to 38.
    whole = DeferredRows(weight.to(DEVICE).clone(), 1e-2, (0.9, 0.999), 1e-8, 0.0)
    every = torch.arange(40, device=DEVICE)
    whole.write(every, torch.ones(40, 8, device=DEVICE), torch.ones(1, dtype=torch.float64, device=DEVICE))
    assert torch.equal(found[1], whole.weight_VS.cpu()[20:40:2])
    assert not torch.equal(found[0], found[1])


@settings(max_examples=10)
@given(
    rows=st.sets(st.integers(0, ROWS - 1), max_size=6),
    spare=st.integers(0, 3),
    width=st.integers(1, 6),
    l2=st.sampled_from([0.0, 0.5]),
    dtype=st.sampled_from(DTYPES),
)
def test_norms_of_any_rows_equal_those_on_the_cpu(
    rows: set[int], spare: int, width: int, l2: float, dtype: torch.dtype
) -> None:
    pair = Pair(torch.randn(ROWS, width).to(dtype), 1e-2, (0.9, 0.999), 1e-8, l2, True)
    chosen = torch.tensor(sorted(rows), dtype=torch.int64)
    gradient = torch.randn(len(chosen), width, dtype=pair.dtype)
    there = torch.cat([chosen, torch.full((spare,), -1)]).to(DEVICE)
    given_there = torch.cat([gradient, torch.full((spare, width), float("nan"), dtype=pair.dtype)]).to(DEVICE)
    # Of the rows alone: a threshold that nothing reaches.
    expected = pair.cpu.grad_norm_squared(chosen, gradient, clip_norm=1e30)
    assert pair.device.grad_norm_squared(there, given_there).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_those_of_the_gradient_with_l2(dtype: torch.dtype) -> None:
    weight, l2 = torch.randn(700, 3).to(dtype), 0.5
    wide = weight.double()
    scale = torch.linspace(0.2, 1.0, 700)
    table = DeferredRows(weight.to(DEVICE), 1e-2, (0.9, 0.999), 1e-8, l2, scale)
    rows = torch.tensor([3, 5, 699, -1], device=DEVICE)
    gradient = torch.randn(4, 3, dtype=table.dtype)
    gradient[3] = float("nan")
    found = table.grad_norm_squared(rows, gradient.to(DEVICE))
    own = gradient[:3].double() + l2 * scale[[3, 5, 699], None].double() * wide[[3, 5, 699]]
    assert found.item() == pytest.approx(own.square().sum().item(), rel=1e-6)
    everything = (scale[:, None].double() * wide).square().sum().item()
    assert table.weight_norm_squared().item() == pytest.approx(everything, rel=1e-6)
    some = (scale[[3, 5, 699], None].double() * wide[[3, 5, 699]]).square().sum().item()
    assert table.weight_norm_squared(rows).item() == pytest.approx(some, rel=1e-6)
