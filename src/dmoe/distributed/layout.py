"""Which process holds which row of a table.

Rows of a vocabulary are numbered by falling count, so ranges of rows would give one process most of the requests. Row r
of V therefore stands in place (r mod 64)·⌈V/64⌉ + r div 64, and each process holds a range of places: every one then
has its share of frequent and of rare rows, whatever their number, and tables cut for another number of processes are
other ranges of the same places.

Shape suffixes: U rows of a call, L places that one process holds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

WAYS = 64


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The places of the rows of one table, and the range of them that process `rank` of `size` holds.

    With one process rows stand in their order. Otherwise up to 63 places hold no row; they are zeros for ever.
    """

    rows: int
    rank: int = 0
    size: int = 1

    @property
    def ways(self) -> int:
        return WAYS if self.size > 1 else 1

    @property
    def per_way(self) -> int:
        return -(-self.rows // self.ways)

    @property
    def places(self) -> int:
        """Places of all processes."""
        return self.ways * self.per_way

    @property
    def chunk(self) -> int:
        """Places of each process but the last ones, which may have fewer."""
        return -(-self.places // self.size)

    @property
    def first(self) -> int:
        return min(self.rank * self.chunk, self.places)

    @property
    def held(self) -> int:
        """Places of this process."""
        return min((self.rank + 1) * self.chunk, self.places) - self.first

    def of(self, rank: int) -> "RowLayout":
        """What process `rank` holds."""
        return RowLayout(self.rows, rank, self.size)

    def place_of(self, rows_U: Array) -> Array:
        places_U: Array = rows_U if self.ways == 1 else (rows_U % self.ways) * self.per_way + rows_U // self.ways
        return places_U

    def rows_held(self, start: int = 0, stop: int | None = None) -> Array:
        """The rows in places `start` to `stop` of those held here, at least `rows` where there is none."""
        places_L = np.arange(self.first + start, self.first + (self.held if stop is None else stop))
        if self.ways == 1:
            return places_L
        rows_L: Array = (places_L % self.per_way) * self.ways + places_L // self.per_way
        return rows_L

    def held_of(self, start: int, stop: int) -> tuple[Array, Array]:
        """Of rows `start` to `stop`, those that this process holds, and where it holds them."""
        if self.ways == 1:
            rows_U = np.arange(max(start, self.first), min(stop, self.first + self.held))
            return rows_U, rows_U - self.first
        rows_U = np.arange(start, stop)
        held_U = self.place_of(rows_U) - self.first
        mine_U = (held_U >= 0) & (held_U < self.held)
        return rows_U[mine_U], held_U[mine_U]

    def blocks(self, length: int) -> Iterator[tuple[int, int]]:
        """Ranges of at most `length` places that cover those held."""
        for start in range(0, self.held, length):
            yield start, min(start + length, self.held)
