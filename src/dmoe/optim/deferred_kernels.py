"""Compiled loops of deferred exact Adam (the algebra is in docs/optimisers.md).

All scalars come in the dtype of the arithmetic, so that nothing is silently widened. Weights may be a copy of the
rows [start, stop) of the call alone: `places_N` says which row of `weight_NS` belongs to which of them. `scales_V`
holds the factor of each row's L2, or one factor for all.
Shape suffixes: V table rows, S table width, U rows of this call, N of them that are worked on, J steps since the
last flush.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.kernels.row_parallel import kernel, sum_kernel

Array = npt.NDArray[Any]
Scalar = Any

# With L2, a row whose state has died out is recognised at steps that are multiples of this, wherever the
# replay started: replaying in two pieces then gives the same bits as in one.
DEAD_CHECK_STEPS = 64

# Elements that one inner loop works on: enough to hide the latency of a square root and a division.
LANES = 160
WHOLE_LANES = 32


@sum_kernel
def sum_of_squares(start: int, stop: int, rows_U: Array, weight_NS: Array, places_N: Array, scales_V: Array) -> float:
    """Σ (scale·w)² of rows_U[start:stop], in float64."""
    total = 0.0
    for index in range(start, stop):
        scale = scales_V[rows_U[index] % len(scales_V)]
        place = places_N[index - start]
        for column in range(weight_NS.shape[1]):
            value = np.float64(scale * weight_NS[place, column])
            total += value * value
    return total


@sum_kernel
def gradient_norm_squared(
    start: int,
    stop: int,
    rows_U: Array,
    gradient_US: Array,
    weight_NS: Array,
    places_N: Array,
    l2: Scalar,
    scales_V: Array,
) -> float:
    """Σ (gradient + l2·scale·w)² over rows [start, stop) of the gradient, in float64."""
    total = 0.0
    for index in range(start, stop):
        place = places_N[index - start]
        own = l2 * scales_V[rows_U[index] % len(scales_V)]
        for column in range(weight_NS.shape[1]):
            value = np.float64(gradient_US[index, column] + own * weight_NS[place, column])
            total += value * value
    return total


@kernel
def replay_with_l2(
    start: int,
    stop: int,
    rows_U: Array,
    weight_NS: Array,
    places_N: Array,
    first_VS: Array,
    second_VS: Array,
    last_V: Array,
    now: int,
    base: int,
    step_sizes_J: Array,
    inverse_roots_J: Array,
    decays_J: Array,
    scales_V: Array,
    dead_weights_J: Array,
    dead_moments_J: Array,
    beta1: Scalar,
    one_minus_beta1: Scalar,
    beta2: Scalar,
    one_minus_beta2: Scalar,
    eps: Scalar,
) -> None:
    """Steps last+1 … now of Adam with gradient decay·scale·w, for rows_U[start:stop].

    Index j of the per-step arrays (see `_History`) is step base + 1 + j.
    """
    width = weight_NS.shape[1]
    group = max(1, LANES // width)
    lanes = -(-group * width // WHOLE_LANES) * WHOLE_LANES
    weight, first, second, scale = (
        np.zeros(lanes, weight_NS.dtype),
        np.zeros(lanes, weight_NS.dtype),
        np.zeros(lanes, weight_NS.dtype),
        np.zeros(lanes, weight_NS.dtype),
    )
    begins = np.empty(stop - start, np.int64)
    for index in range(start, stop):
        begins[index - start] = last_V[rows_U[index]]
    order = np.argsort(begins)
    # Rows that miss about as many steps run together, side by side in one buffer that stays in the cache:
    # the first row alone up to the step of the second, then both up to that of the third, and so on.
    for group_start in range(0, stop - start, group):
        size = min(group, stop - start - group_start)
        if begins[order[group_start]] == now:
            break
        for member in range(size):
            row = rows_U[start + order[group_start + member]]
            place = places_N[order[group_start + member]]
            for column in range(width):
                weight[member * width + column] = weight_NS[place, column]
                first[member * width + column] = first_VS[row, column]
                second[member * width + column] = second_VS[row, column]
                scale[member * width + column] = scales_V[row % len(scales_V)]
        for active in range(1, size + 1):
            begin = begins[order[group_start + active - 1]]
            end = begins[order[group_start + active]] if active < size else now
            # Nothing lies behind the last row, so there the loop may run on to a whole number of registers.
            span = active * width if active < size else -(-size * width // WHOLE_LANES) * WHOLE_LANES
            for step in range(begin, end):
                step_size = step_sizes_J[step - base]
                inverse_root = inverse_roots_J[step - base]
                decay = decays_J[step - base]
                if step % DEAD_CHECK_STEPS == 0:
                    dead_weight, dead_moment = dead_weights_J[step - base], dead_moments_J[step - base]
                    for member in range(active):
                        alive = 0
                        for lane in range(member * width, (member + 1) * width):
                            alive += abs(weight[lane]) >= dead_weight
                            alive += abs(first[lane]) >= dead_moment
                        if alive == 0:
                            for lane in range(member * width, (member + 1) * width):
                                weight[lane] = 0
                                first[lane] = 0
                for lane in range(span):
                    gradient = decay * scale[lane] * weight[lane]
                    m = beta1 * first[lane] + one_minus_beta1 * gradient
                    v = beta2 * second[lane] + one_minus_beta2 * (gradient * gradient)
                    first[lane] = m
                    second[lane] = v
                    weight[lane] -= step_size * m / (np.sqrt(v) * inverse_root + eps)
        for member in range(size):
            row = rows_U[start + order[group_start + member]]
            place = places_N[order[group_start + member]]
            for column in range(width):
                weight_NS[place, column] = weight[member * width + column]
                first_VS[row, column] = first[member * width + column]
                second_VS[row, column] = second[member * width + column]
            last_V[row] = now


@kernel
def replay_momentum(
    start: int,
    stop: int,
    rows_U: Array,
    weight_NS: Array,
    places_N: Array,
    first_VS: Array,
    second_VS: Array,
    last_V: Array,
    flushed: int,
    now: int,
    base: int,
    step_sizes_J: Array,
    inverse_roots_J: Array,
    bounds_J: Array,
    powers1_K: Array,
    roots2_K: Array,
    eps: Scalar,
    beta2: float,
    settle: bool,
) -> None:
    """The same with no gradient at all: step last + k moves w by step size · β1^k m / (√v β2^(k/2) / root + eps).

    `last_V` is the step that `first_VS` and `second_VS` belong to, 0 for a row never touched; weights are
    already at step `flushed` if that is later. With `settle`, the moments follow to `now`.
    `bounds_J`: at least the step size of this and every later step.
    """
    width = weight_NS.shape[1]
    root = np.empty(width, weight_NS.dtype)
    for index in range(start, stop):
        row = rows_U[index]
        last = np.int64(last_V[row])
        if last == 0 or last == now:
            continue
        weight, first, second = weight_NS[places_N[index - start]], first_VS[row], second_VS[row]
        begin = last if last > flushed else flushed
        end = now if now < last + len(powers1_K) else last + len(powers1_K) - 1
        if begin < end:
            for column in range(width):
                root[column] = np.sqrt(second[column])
        for step in range(begin, end):
            missed = step + 1 - last
            factor = step_sizes_J[step - base] * powers1_K[missed]
            scale = roots2_K[missed] * inverse_roots_J[step - base]
            for column in range(width):
                weight[column] -= factor * first[column] / (root[column] * scale + eps)
            if missed % 16 == 0:
                # Every later move is at most `bound`/2 and falls geometrically (β1 < √β2): if even `bound`
                # leaves all weights as they are, so do all later moves, and stopping changes no bit.
                factor = 2 * bounds_J[step - base] * powers1_K[missed]
                moves = 0
                for column in range(width):
                    bound = factor * first[column] / (root[column] * roots2_K[missed] + eps)
                    value = weight[column]
                    moves += (value + bound != value) | (value - bound != value)
                if moves == 0:
                    break
        if settle:
            missed = now - last
            power1 = powers1_K[missed] if missed < len(powers1_K) else powers1_K[0] * 0
            power2 = beta2**missed
            for column in range(width):
                first[column] *= power1
                second[column] = second[column] * power2
            last_V[row] = now


@kernel
def apply_gradient(
    start: int,
    stop: int,
    rows_U: Array,
    gradient_US: Array,
    weight_NS: Array,
    places_N: Array,
    first_VS: Array,
    second_VS: Array,
    last_V: Array,
    now: int,
    step_size: Scalar,
    inverse_root: Scalar,
    grad_scale: Scalar,
    l2: Scalar,
    scales_V: Array,
    beta1: Scalar,
    one_minus_beta1: Scalar,
    beta2: Scalar,
    one_minus_beta2: Scalar,
    eps: Scalar,
) -> None:
    """Step `now` of Adam with gradient grad_scale · (gradient + l2·scale·w) on rows that are at step now − 1."""
    for index in range(start, stop):
        row = rows_U[index]
        weight, first, second = weight_NS[places_N[index - start]], first_VS[row], second_VS[row]
        given = gradient_US[index]
        own = l2 * scales_V[row % len(scales_V)]
        for column in range(weight_NS.shape[1]):
            gradient = grad_scale * (given[column] + own * weight[column])
            m = beta1 * first[column] + one_minus_beta1 * gradient
            v = beta2 * second[column] + one_minus_beta2 * (gradient * gradient)
            first[column] = m
            second[column] = v
            weight[column] -= step_size * m / (np.sqrt(v) * inverse_root + eps)
        last_V[row] = now
