"""Triton kernels of deferred exact Adam: what `deferred_kernels` does on a CPU, for a group of rows in each program.

The algebra is in docs/optimisers.md. Rows are (GROUP, 1), -1 for none; what belongs to their elements is
(GROUP, COLUMNS) with COLUMNS a power of two that holds the width. `clock` is [steps taken, step of the last flush],
`history` has six rows of `stride` numbers as `dmoe.optim.deferred` lists them, index j for step flushed + 1 + j, and
`numbers` is float64 [β1, β2, eps, λ, ln β1, ln β2, stable gain, dead weight, largest scale, and the `Numbering`: first,
per_way, ways].
"""

import triton
import triton.language as tl

from dmoe.optim import deferred_kernels
from dmoe.optim.row_storage_triton import numbered, rounded, widened

DEAD_CHECK_STEPS = tl.constexpr(deferred_kernels.DEAD_CHECK_STEPS)


@triton.jit
def _items(block, GROUP: tl.constexpr):
    """The numbers (GROUP,) of what a block works on, int64."""
    return (tl.full((GROUP,), 0, tl.int64) + block) * GROUP + tl.arange(0, GROUP)


@triton.jit
def _rows_of_block(block, rows, total, WHOLE: tl.constexpr, GROUP: tl.constexpr):
    """Rows (GROUP, 1), -1 for none."""
    item = _items(block, GROUP)
    if WHOLE:  # noqa: SIM108 (a branch of the compiler's)
        row = tl.where(item < total, item, -1)
    else:
        row = tl.load(rows + item, mask=item < total, other=-1).to(tl.int64)
    return row[:, None]


@triton.jit
def _scales_of(scales, row, SCALED: tl.constexpr):
    if SCALED:
        return tl.load(scales + row, mask=row >= 0, other=1)
    else:
        return tl.load(scales + row * 0)


@triton.jit
def _give(block, values, weight, row, total, width, GROUP: tl.constexpr, COLUMNS: tl.constexpr):
    item = _items(block, GROUP)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    tl.store(values + item * width + column, tl.where(row >= 0, weight, 0.0), mask=(item < total) & (column < width))


@triton.jit
def _blocks_if(condition, total, GROUP: tl.constexpr):
    """How many blocks there are, or none if `condition` is 0."""
    return tl.where(tl.load(condition) != 0, (total + GROUP - 1) // GROUP, 0).to(tl.int32)


@triton.jit
def _replay_block(
    block,
    rows,
    weights,
    firsts,
    seconds,
    lasts,
    values,
    clock,
    history,
    stride,
    numbers,
    scales,
    total,
    width,
    WHOLE: tl.constexpr,
    GIVES: tl.constexpr,
    SCALED: tl.constexpr,
    STORAGE: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    dtype = firsts.dtype.element_ty
    row = _rows_of_block(block, rows, total, WHOLE, GROUP)
    column = tl.arange(0, COLUMNS)[None, :]
    now = tl.load(clock)
    base = tl.load(clock + 1)
    last = tl.load(lasts + row, mask=row >= 0, other=0).to(tl.int64)
    last = tl.where(row >= 0, last, now)
    behind = last < now
    if GIVES:  # noqa: SIM108
        wanted = row >= 0
    else:
        wanted = behind
    element = row * width + column
    narrow = column < width
    moved = behind & narrow
    weight = widened(tl.load(weights + element, mask=wanted & narrow, other=0), STORAGE)
    first = tl.load(firsts + element, mask=moved, other=0)
    second = tl.load(seconds + element, mask=moved, other=0)
    scale = _scales_of(scales, row, SCALED)
    beta1 = tl.load(numbers)
    beta2 = tl.load(numbers + 1)
    rest1 = (1.0 - beta1).to(dtype)
    rest2 = (1.0 - beta2).to(dtype)
    beta1 = beta1.to(dtype)
    beta2 = beta2.to(dtype)
    eps = tl.load(numbers + 2).to(dtype)
    for index in range((tl.min(last) - base).to(tl.int32), (now - base).to(tl.int32)):
        step = base + index
        active = last <= step
        step_size = tl.load(history + index)
        inverse_root = tl.load(history + stride + index)
        decay = tl.load(history + 2 * stride + index)
        if step % DEAD_CHECK_STEPS == 0:
            dead_weight = tl.load(history + 4 * stride + index)
            dead_moment = tl.load(history + 5 * stride + index)
            alive = ((tl.abs(weight) >= dead_weight) | (tl.abs(first) >= dead_moment)) & narrow
            dead = (tl.sum(alive.to(tl.int32), 1) == 0)[:, None] & active
            weight = tl.where(dead, 0.0, weight)
            first = tl.where(dead, 0.0, first)
        gradient = decay * scale * weight
        m = beta1 * first + rest1 * gradient
        v = beta2 * second + rest2 * (gradient * gradient)
        w = weight - step_size * m / (tl.sqrt(v) * inverse_root + eps)
        first = tl.where(active, m, first)
        second = tl.where(active, v, second)
        weight = tl.where(active, w, weight)
    place = numbered(row, column, width, numbers + 9, numbers + 10, numbers + 11, STORAGE)
    stored = rounded(weight, place, now, STORAGE)
    tl.store(weights + element, stored, mask=moved)
    tl.store(firsts + element, first, mask=moved)
    tl.store(seconds + element, second, mask=moved)
    tl.store(lasts + row, (now + row * 0).to(tl.int32), mask=behind)
    if GIVES:
        _give(block, values, widened(stored, STORAGE), row, total, width, GROUP, COLUMNS)


@triton.jit(do_not_specialize=["total"])
def replay_with_l2(
    rows,
    weights,
    firsts,
    seconds,
    lasts,
    values,
    clock,
    history,
    stride,
    numbers,
    scales,
    condition,
    total,
    width,
    WHOLE: tl.constexpr,
    GIVES: tl.constexpr,
    CONDITIONAL: tl.constexpr,
    SCALED: tl.constexpr,
    STORAGE: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`deferred_kernels.replay_with_l2`; `CONDITIONAL`: a few programs do it all, or nothing if `condition` is 0."""
    if CONDITIONAL:
        for block in range(tl.program_id(0), _blocks_if(condition, total, GROUP), tl.num_programs(0)):
            _replay_block(
                block, rows, weights, firsts, seconds, lasts, values, clock, history, stride, numbers, scales,
                total, width, WHOLE, GIVES, SCALED, STORAGE, GROUP, COLUMNS,
            )  # fmt: skip
    else:
        _replay_block(
            tl.program_id(0), rows, weights, firsts, seconds, lasts, values, clock, history, stride, numbers, scales,
            total, width, WHOLE, GIVES, SCALED, STORAGE, GROUP, COLUMNS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["total"])
def replay_momentum(
    rows,
    weights,
    firsts,
    seconds,
    lasts,
    values,
    clock,
    history,
    stride,
    numbers,
    powers1,
    roots2,
    num_powers,
    total,
    width,
    WHOLE: tl.constexpr,
    GIVES: tl.constexpr,
    STORAGE: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`deferred_kernels.replay_momentum`; moments follow to now unless all rows are worked on (`WHOLE`)."""
    dtype = firsts.dtype.element_ty
    block = tl.program_id(0)
    row = _rows_of_block(block, rows, total, WHOLE, GROUP)
    column = tl.arange(0, COLUMNS)[None, :]
    now = tl.load(clock)
    flushed = tl.load(clock + 1)
    last = tl.load(lasts + row, mask=row >= 0, other=0).to(tl.int64)
    behind = (last > 0) & (last < now)
    if GIVES:  # noqa: SIM108
        wanted = row >= 0
    else:
        wanted = behind
    element = row * width + column
    narrow = column < width
    moved = behind & narrow
    weight = widened(tl.load(weights + element, mask=wanted & narrow, other=0), STORAGE)
    first = tl.load(firsts + element, mask=moved, other=0)
    second = tl.load(seconds + element, mask=moved, other=0)
    root = tl.sqrt(second)
    eps = tl.load(numbers + 2).to(dtype)
    begin = tl.where(behind, tl.maximum(last, flushed), now)
    end = tl.where(behind, tl.minimum(now, last + num_powers - 1), 0)
    step = tl.min(begin)
    stop = tl.max(end)
    live = 1
    settled = tl.full((GROUP, 1), 0, tl.int32)
    while (step < stop) & (live > 0):
        active = (begin <= step) & (step < end) & (settled == 0)
        missed = tl.where(active, step + 1 - last, 0)
        power1 = tl.load(powers1 + missed)
        root2 = tl.load(roots2 + missed)
        factor = tl.load(history + step - flushed) * power1
        scale = root2 * tl.load(history + stride + step - flushed)
        weight = tl.where(active, weight - factor * first / (root * scale + eps), weight)
        if step % 16 == 0:
            # See the loop on the CPU: where twice the largest move still to come changes nothing, nothing will.
            largest = 2.0 * tl.load(history + 3 * stride + step - flushed) * power1
            bound = largest * first / (root * root2 + eps)
            moves = ((weight + bound != weight) | (weight - bound != weight)) & narrow
            still = (tl.sum(moves.to(tl.int32), 1) == 0)[:, None] & active
            settled = tl.where(still, 1, settled)
            live = tl.sum(((settled == 0) & (step + 1 < end)).to(tl.int32))
        step += 1
    place = numbered(row, column, width, numbers + 9, numbers + 10, numbers + 11, STORAGE)
    stored = rounded(weight, place, now, STORAGE)
    tl.store(weights + element, stored, mask=moved)
    if not WHOLE:
        missed = tl.where(behind, now - last, 0)
        beyond = missed >= num_powers
        power1 = tl.where(beyond, 0.0, tl.load(powers1 + tl.where(beyond, 0, missed)))
        power2 = tl.exp(missed.to(tl.float64) * tl.load(numbers + 5))
        tl.store(firsts + element, first * power1, mask=moved)
        tl.store(seconds + element, (second.to(tl.float64) * power2).to(dtype), mask=moved)
        tl.store(lasts + row, (now + row * 0).to(tl.int32), mask=behind)
    if GIVES:
        _give(block, values, widened(stored, STORAGE), row, total, width, GROUP, COLUMNS)


@triton.jit
def take_step(clock, rates, grad_scale, numbers, history, stride):
    """Counts a step and keeps its numbers, as `_History.append` does."""
    dtype = history.dtype.element_ty
    step = tl.load(clock) + 1
    length = step - 1 - tl.load(clock + 1)
    lr = tl.load(rates)
    largest = tl.load(rates + 1)
    if lr > largest:
        for start in range(0, length.to(tl.int32), 256):
            place = start + tl.arange(0, 256)
            old = tl.load(history + 3 * stride + place, mask=place < length, other=0)
            raised = (old.to(tl.float64) * (lr / largest)).to(dtype)
            raised = tl.where(largest == 0.0, float("inf"), raised)
            tl.store(history + 3 * stride + place, raised, mask=place < length)
        largest = lr
        tl.store(rates + 1, lr)
    eps = tl.load(numbers + 2)
    correction1 = 1.0 / (1.0 - tl.exp(step.to(tl.float64) * tl.load(numbers + 4)))
    inverse_root = 1.0 / tl.sqrt(1.0 - tl.exp(step.to(tl.float64) * tl.load(numbers + 5)))
    decay = tl.load(grad_scale) * tl.load(numbers + 3)
    step_size = lr * correction1
    gain = step_size * decay * tl.load(numbers + 8) / eps
    alive = (step_size == 0.0) | (gain >= tl.load(numbers + 6))
    dead_weight = tl.where(alive, 0.0, tl.load(numbers + 7))
    ratio = eps / tl.where(step_size == 0.0, 1.0, step_size)
    dead_moment = dead_weight * tl.minimum(1.0, ratio)
    tl.store(history + length, step_size.to(dtype))
    tl.store(history + stride + length, inverse_root.to(dtype))
    tl.store(history + 2 * stride + length, decay.to(dtype))
    tl.store(history + 3 * stride + length, (largest * correction1).to(dtype))
    tl.store(history + 4 * stride + length, dead_weight.to(dtype))
    tl.store(history + 5 * stride + length, dead_moment.to(dtype))
    tl.store(clock, step)


@triton.jit(do_not_specialize=["total"])
def apply(
    rows,
    gradients,
    weights,
    firsts,
    seconds,
    lasts,
    clock,
    history,
    stride,
    numbers,
    grad_scale,
    scales,
    total,
    width,
    SCALED: tl.constexpr,
    STORAGE: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`deferred_kernels.apply_gradient` with the last step of the history."""
    dtype = firsts.dtype.element_ty
    block = tl.program_id(0)
    row = _rows_of_block(block, rows, total, False, GROUP)
    item = _items(block, GROUP)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    element = row * width + column
    wanted = (row >= 0) & (column < width)
    now = tl.load(clock)
    index = now - 1 - tl.load(clock + 1)
    step_size = tl.load(history + index)
    inverse_root = tl.load(history + stride + index)
    beta1 = tl.load(numbers)
    beta2 = tl.load(numbers + 1)
    rest1 = (1.0 - beta1).to(dtype)
    rest2 = (1.0 - beta2).to(dtype)
    eps = tl.load(numbers + 2).to(dtype)
    weight = widened(tl.load(weights + element, mask=wanted, other=0), STORAGE)
    given = tl.load(gradients + item * width + column, mask=wanted, other=0).to(dtype)
    own = tl.load(numbers + 3).to(dtype) * _scales_of(scales, row, SCALED)
    gradient = tl.load(grad_scale).to(dtype) * (given + own * weight)
    m = beta1.to(dtype) * tl.load(firsts + element, mask=wanted, other=0) + rest1 * gradient
    v = beta2.to(dtype) * tl.load(seconds + element, mask=wanted, other=0) + rest2 * (gradient * gradient)
    weight = weight - step_size * m / (tl.sqrt(v) * inverse_root + eps)
    tl.store(firsts + element, m, mask=wanted)
    tl.store(seconds + element, v, mask=wanted)
    place = numbered(row, column, width, numbers + 9, numbers + 10, numbers + 11, STORAGE)
    tl.store(weights + element, rounded(weight, place, now, STORAGE), mask=wanted)
    tl.store(lasts + row, (now + row * 0).to(tl.int32), mask=row >= 0)


@triton.jit
def _squares_block(
    block,
    rows,
    gradients,
    weights,
    numbers,
    scales,
    sums,
    total,
    width,
    WHOLE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    SCALED: tl.constexpr,
    STORAGE: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = _rows_of_block(block, rows, total, WHOLE, GROUP)
    item = _items(block, GROUP)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    wanted = (row >= 0) & (column < width)
    weight = widened(tl.load(weights + row * width + column, mask=wanted, other=0), STORAGE)
    value = _scales_of(scales, row, SCALED) * weight
    if WITH_GRADIENT:
        given = tl.load(gradients + item * width + column, mask=wanted, other=0).to(value.dtype)
        value = given + tl.load(numbers + 3).to(value.dtype) * value
    value = tl.where(wanted, value, 0.0).to(tl.float64)
    tl.store(sums + block, tl.sum(value * value))


@triton.jit(do_not_specialize=["total"])
def squares(
    rows,
    gradients,
    weights,
    numbers,
    scales,
    sums,
    condition,
    total,
    width,
    WHOLE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    CONDITIONAL: tl.constexpr,
    SCALED: tl.constexpr,
    STORAGE: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Σ (gradient + λ·scale·w)² or Σ (scale·w)² of each block, float64; `CONDITIONAL` as in `replay_with_l2`."""
    if CONDITIONAL:
        for block in range(tl.program_id(0), _blocks_if(condition, total, GROUP), tl.num_programs(0)):
            _squares_block(
                block, rows, gradients, weights, numbers, scales, sums, total, width, WHOLE, WITH_GRADIENT, SCALED,
                STORAGE, GROUP, COLUMNS,
            )  # fmt: skip
    else:
        _squares_block(
            tl.program_id(0), rows, gradients, weights, numbers, scales, sums, total, width, WHOLE, WITH_GRADIENT,
            SCALED, STORAGE, GROUP, COLUMNS,
        )  # fmt: skip
