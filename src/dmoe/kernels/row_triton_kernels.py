"""Triton kernels of table rows: see `dmoe.kernels.row_triton`, which calls them.

Each program works on GROUP rows of COLUMNS elements, a power of two that holds the width, or on BLOCK numbers.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["total"])
def keys(ids, offsets, keys, total, columns, BLOCK: tl.constexpr):
    """The table's row of each position."""
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = position < total
    row = tl.load(ids + position, mask=inside, other=0).to(tl.int64) + tl.load(offsets + position % columns)
    tl.store(keys + position, row.to(keys.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total"])
def places(keys, order, segments, rows, inverse, starts, total, BLOCK: tl.constexpr):
    """Writes each segment's row and first place, and each position's segment."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    segment = tl.load(segments + place, mask=inside, other=0)
    tl.store(inverse + tl.load(order + place, mask=inside, other=0), segment, mask=inside)
    first = inside & (segment != tl.load(segments + place - 1, mask=inside & (place > 0), other=-1))
    tl.store(rows + segment, tl.load(keys + place, mask=first, other=0).to(tl.int64), mask=first)
    tl.store(starts + segment, place.to(tl.int32), mask=first)


@triton.jit(do_not_specialize=["total"])
def take(table, rows, values, total, width, GROUP: tl.constexpr, COLUMNS: tl.constexpr):
    item = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    column = tl.arange(0, COLUMNS)[None, :]
    row = tl.load(rows + item, mask=item < total, other=-1)[:, None]
    found = tl.load(table + row * width + column, mask=(row >= 0) & (column < width), other=0)
    tl.store(values + item[:, None] * width + column, found, mask=(item < total)[:, None] & (column < width))


@triton.jit(do_not_specialize=["total"])
def put(table, rows, values, total, width, GROUP: tl.constexpr, COLUMNS: tl.constexpr):
    item = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    column = tl.arange(0, COLUMNS)[None, :]
    row = tl.load(rows + item, mask=item < total, other=-1)[:, None]
    wanted = (row >= 0) & (column < width)
    given = tl.load(values + item[:, None] * width + column, mask=wanted, other=0)
    tl.store(table + row * width + column, given, mask=wanted)


@triton.jit(do_not_specialize=["total"])
def gather(
    values,
    inverse,
    out,
    total,
    columns,
    out_row,
    width,
    whole_width,
    first,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (position < total)[:, None] & (column < width)
    place = tl.load(inverse + position, mask=position < total, other=0).to(tl.int64)[:, None]
    found = tl.load(values + place * whole_width + first + column, mask=inside, other=0)
    target = (position // columns * out_row + position % columns * width)[:, None]
    tl.store(out + target + column, found, mask=inside)


@triton.jit(do_not_specialize=["total", "room"])
def sum_pieces(
    gradient,
    order,
    segments,
    starts,
    out,
    heads,
    tails,
    total,
    room,
    columns,
    row_stride,
    field_stride,
    width,
    whole_width,
    first,
    CHUNK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A segment is cut where a chunk ends. Whole ones go to `out`; of a cut one the piece that ends with chunk k − 1
    goes to `tails` k if the segment starts in it, and the piece that begins with chunk k to `heads` k."""
    item = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    column = tl.arange(0, COLUMNS)[None, :]
    chunk = item - room
    is_start = item < room
    is_chunk = (chunk >= 0) & (chunk * CHUNK_SIZE < total)
    own = tl.load(segments + chunk * CHUNK_SIZE, mask=is_chunk, other=0).to(tl.int64)
    segment = tl.where(is_start, item, own)
    known = is_start | is_chunk
    start = tl.load(starts + segment, mask=known, other=0).to(tl.int64)
    stop = tl.load(starts + segment + 1, mask=known, other=0).to(tl.int64)
    begin = tl.where(is_start, start, chunk * CHUNK_SIZE)
    is_chunk = is_chunk & (start < begin)
    known = is_start | is_chunk
    cut = (begin // CHUNK_SIZE + 1) * CHUNK_SIZE
    length = tl.where(known, tl.minimum(stop, cut) - begin, 0)
    sums = tl.full((GROUP, COLUMNS), 0, out.dtype.element_ty)
    for index in range(0, tl.max(length, 0).to(tl.int32)):
        more = index < length
        position = tl.load(order + begin + index, mask=more, other=0)
        source = position // columns * row_stride + position % columns * field_stride
        wanted = more[:, None] & (column < width)
        sums += tl.load(gradient + source[:, None] + column, mask=wanted, other=0).to(out.dtype.element_ty)
    is_cut = stop > cut
    narrow = column < width
    tl.store(
        out + segment[:, None] * whole_width + first + column,
        sums,
        mask=(is_start & ~is_cut & (length > 0))[:, None] & narrow,
    )
    tl.store(
        tails + (begin // CHUNK_SIZE + 1)[:, None] * width + column, sums, mask=(is_start & is_cut)[:, None] & narrow
    )
    tl.store(heads + chunk[:, None] * width + column, sums, mask=is_chunk[:, None] & narrow)


@triton.jit
def join_pieces(
    segments,
    starts,
    out,
    heads,
    tails,
    width,
    whole_width,
    first,
    CHUNK_SIZE: tl.constexpr,
    JOINED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Adds up the pieces of the segment that starts in the chunk before this one and goes on in this one."""
    chunk = tl.program_id(0).to(tl.int64) + 1
    segment = tl.load(segments + chunk * CHUNK_SIZE).to(tl.int64)
    start = tl.load(starts + segment).to(tl.int64)
    begin = chunk * CHUNK_SIZE
    if (start < begin) & (start >= begin - CHUNK_SIZE):
        last = (tl.load(starts + segment + 1).to(tl.int64) - 1) // CHUNK_SIZE
        column = tl.arange(0, COLUMNS)
        narrow = column < width
        sums = tl.load(tails + chunk * width + column, mask=narrow, other=0)
        for number in range(0, (last - chunk + JOINED).to(tl.int32) // JOINED):
            one = chunk + number * JOINED + tl.arange(0, JOINED)
            wanted = (one <= last)[:, None] & narrow[None, :]
            sums += tl.sum(tl.load(heads + one[:, None] * width + column[None, :], mask=wanted, other=0), 0)
        tl.store(out + segment * whole_width + first + column, sums, mask=narrow)
