"""Widening and stochastic rounding of 16-bit rows inside Triton kernels: what `row_storage` does on a CPU, to the bit.

`STORAGE` is 0 for float32 and float64, 1 for bfloat16 and 2 for float16, both as int16.
"""

import triton
import triton.language as tl


@triton.jit
def _mix(number):
    """`row_storage._mix`."""
    x = number.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def widened(stored, STORAGE: tl.constexpr):
    if STORAGE == 1:
        return (stored.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif STORAGE == 2:
        return stored.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return stored


@triton.jit
def numbered(row, column, width, first, per_way, ways, STORAGE: tl.constexpr):
    """The place in the whole table, int64, of an element of this part: what rounding draws its bits by."""
    if STORAGE == 0:
        return row * width + column
    else:
        place = tl.load(first).to(tl.int64) + row
        per_way = tl.load(per_way).to(tl.int64)
        number = place % per_way * tl.load(ways).to(tl.int64) + place // per_way
        return number * width + column


@triton.jit
def rounded(value, element, step, STORAGE: tl.constexpr):
    """As `row_storage` rounds; `element`, int64, is the place in the whole table."""
    if STORAGE == 0:
        return value
    else:
        bits = value.to(tl.uint32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        random = _mix(_mix(step + element * 0) ^ (element & 0xFFFFFFFF).to(tl.uint32))
        if STORAGE == 1:
            added = tl.where(magnitude < 0x7F800000, random & 0xFFFF, 0)
            quiet = tl.where(magnitude > 0x7F800000, 0x0040, 0).to(tl.uint32)
            return (((bits + added) >> 16) | quiet).to(tl.uint16).to(tl.int16, bitcast=True)
        else:
            # 2⁻¹⁴ and more: ten bits after the leading one; below, multiples of 2⁻²⁴.
            normal = (magnitude + (random & 0x1FFF) - (112 << 23)) >> 13
            # Kept to what is below 2⁻¹⁴, as only there it is used.
            scaled = tl.where(magnitude < 0x38800000, tl.abs(value), 0.0) * 16777216.0
            below = tl.floor(scaled)
            up = (random >> 8).to(tl.float32) * 5.9604644775390625e-08 < scaled - below
            small = below.to(tl.uint32) + up.to(tl.uint32)
            found = tl.where(magnitude >= 0x38800000, normal, small)
            beyond = tl.where(magnitude > 0x7F800000, 0x7E00, 0x7C00).to(tl.uint32)
            found = tl.where(magnitude >= 0x47800000, beyond, found)
            return (found | ((bits >> 16) & 0x8000)).to(tl.uint16).to(tl.int16, bitcast=True)
