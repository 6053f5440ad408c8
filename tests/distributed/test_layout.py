"""Rows to places and back, and the shares of processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoe.distributed.layout import RowLayout

ROWS, SIZES = st.integers(1, 3000), st.integers(1, 70)


@given(rows=ROWS, size=SIZES)
def test_every_row_is_held_once_and_where_its_place_says(rows: int, size: int) -> None:
    seen = []
    for rank in range(size):
        layout = RowLayout(rows, rank, size)
        held = layout.rows_held()
        assert len(held) == layout.held
        real = held[held < rows]
        np.testing.assert_array_equal(layout.place_of(real) - layout.first, np.flatnonzero(held < rows))
        seen += real.tolist()
    assert sorted(seen) == list(range(rows))


@given(rows=ROWS, size=SIZES, ends=st.tuples(st.integers(0, 3000), st.integers(0, 3000)))
def test_a_range_of_rows_is_found_where_it_is_held(rows: int, size: int, ends: tuple[int, int]) -> None:
    start, stop = sorted(min(end, rows) for end in ends)
    found = []
    for rank in range(size):
        layout = RowLayout(rows, rank, size)
        rows_U, held_U = layout.held_of(start, stop)
        np.testing.assert_array_equal(layout.rows_held()[held_U], rows_U)
        found += rows_U.tolist()
    assert sorted(found) == list(range(start, stop))


@pytest.mark.parametrize("size", [2, 3, 8, 32])
def test_frequent_rows_are_dealt_out_evenly(size: int) -> None:
    """Ids are numbered by falling count: of a law as of words, ranges would give the first process nearly all."""
    rows = 100_000
    requests = 1.0 / np.arange(1, rows + 1) ** 1.05
    # A row counts once a batch, however often the batch holds it.
    asked = 1 - np.exp(-requests * 1000)
    layouts = [RowLayout(rows, rank, size) for rank in range(size)]
    shares = [asked[held[held < rows]].sum() for held in (one.rows_held() for one in layouts)]
    assert max(shares) < 1.06 * np.mean(shares)
    ranges = [part.sum() for part in np.array_split(asked, size)]
    assert max(ranges) > 1.5 * np.mean(ranges)
