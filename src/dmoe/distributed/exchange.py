"""Rows of tables on their way to the processes that read them, and their gradients on the way back.

A process asks for each distinct row of its share of a batch once. The holder of a row takes the requests of all
processes together, reads each row once from its store, and later sums the gradients in the order of the processes, so
that equal input gives equal bits. Requests of all tables travel together: three exchanges a step forth, one back.
Requests are made on the host, where ids are; values and gradients travel where the tables are.

Shape suffixes: U distinct rows that this process asks for, L distinct rows that it is asked for, S width of a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from dmoe.distributed.layout import RowLayout
from dmoe.distributed.world import World


@dataclass(frozen=True, slots=True)
class Request:
    """What one exchange of rows of a table is about.

    `order_U`: the rows asked for, in the order of their places; `rows_L`: the rows asked of this process, as it holds
    them, rising; `counts_L`: how many positions read each; `sought`: for each process, which of `rows_L` it asked for.
    """

    order_U: Tensor
    rows_L: Tensor
    counts_L: Tensor
    sought: tuple[Tensor, ...]
    asked: tuple[int, ...]  # rows asked of each process

    def placed_on(self, device: torch.device) -> "Request":
        """The same with its tensors on `device`, which from pinned memory it takes by itself: in one copy."""
        if device.type == "cpu":
            return self
        parts = [self.order_U, self.rows_L, self.counts_L, *self.sought]
        flat = torch.cat(parts)
        moved = (flat.pin_memory() if device.type == "cuda" else flat).to(device, non_blocking=True)
        order_U, rows_L, counts_L, *sought = torch.split(moved, [len(one) for one in parts])
        return Request(order_U, rows_L, counts_L, tuple(sought), self.asked)

    def tensors(self) -> list[Tensor]:
        return [self.order_U, self.rows_L, self.counts_L, *self.sought]


class RowExchange:
    """Reads rows of tables that several processes hold. All of them must call, in the same order.

    Args:
        layouts: of each table, as this process holds it.
    """

    def __init__(self, world: World, layouts: Sequence[RowLayout]) -> None:
        self.world, self.layouts = world, list(layouts)
        # Figures of the last request: rows asked for and rows given, of all tables.
        self.asked = self.given = 0

    def request(self, rows: Sequence[Tensor], counts: Sequence[Tensor | None]) -> list[Request]:
        """Asks for `rows` (U,), distinct, of each table; `counts` (U,): how many positions read each, by default 1."""
        world, tables = self.world, len(self.layouts)
        orders, held, sizes_WT = [], [], np.zeros((world.size, tables), np.int64)
        for table, (layout, rows_U) in enumerate(zip(self.layouts, rows, strict=True)):
            places_U = layout.place_of(rows_U.numpy())
            order_U = np.argsort(places_U, kind="stable")
            places_U = places_U[order_U]
            edges_W = np.searchsorted(places_U, np.minimum(np.arange(world.size + 1) * layout.chunk, layout.places))
            sizes_WT[:, table] = np.diff(edges_W)
            orders.append(torch.from_numpy(order_U))
            held.append((places_U % max(layout.chunk, 1)).astype(np.int32))
        sent_sizes = torch.from_numpy(sizes_WT)
        came_WT = world.exchange(sent_sizes, [1] * world.size, [1] * world.size).numpy()
        counted = [count is not None for count in counts]
        starts = [np.concatenate([[0], np.cumsum(sizes_WT[:, table])]) for table in range(tables)]
        pieces = []
        for rank in range(world.size):
            for table in range(tables):
                of = slice(starts[table][rank], starts[table][rank + 1])
                pieces.append(held[table][of])
                count_U = counts[table]
                if count_U is not None:
                    pieces.append(count_U.numpy()[orders[table].numpy()[of]].astype(np.int32))
        words = np.array([2 if one else 1 for one in counted])
        sent = torch.from_numpy(np.concatenate(pieces) if pieces else np.zeros(0, np.int32))
        came = world.exchange(sent, (sizes_WT @ words).tolist(), (came_WT @ words).tolist()).numpy()
        ids: list[list[np.ndarray]] = [[] for _ in range(tables)]
        times: list[list[np.ndarray]] = [[] for _ in range(tables)]
        at = 0
        for rank in range(world.size):
            for table in range(tables):
                length = int(came_WT[rank, table])
                ids[table].append(came[at : at + length])
                at += length
                if counted[table]:
                    times[table].append(came[at : at + length])
                    at += length
        found = []
        self.asked, self.given = int(sizes_WT.sum()), int(came_WT.sum())
        for table in range(tables):
            rows_L, inverse = np.unique(np.concatenate(ids[table]), return_inverse=True)
            weights = np.concatenate(times[table]) if counted[table] else None
            counts_L = np.bincount(inverse, weights, minlength=len(rows_L)).astype(np.int64)
            edges = np.cumsum([len(one) for one in ids[table]])[:-1]
            sought = tuple(torch.from_numpy(one) for one in np.split(inverse, edges))
            found.append(
                Request(
                    orders[table],
                    torch.from_numpy(rows_L.astype(np.int64)),
                    torch.from_numpy(counts_L),
                    sought,
                    tuple(sizes_WT[:, table].tolist()),
                )
            )
        return found

    def fetch(self, requests: Sequence[Request], values: Sequence[Tensor]) -> list[Tensor]:
        """The values (U, S) of the rows asked for; `values` are those (L, S) that are held here."""
        pieces = [
            values_LS[one.sought[rank]].reshape(-1)
            for rank in range(self.world.size)
            for values_LS, one in zip(values, requests, strict=True)
        ]
        came = self._swap(pieces, requests, [values_LS.shape[1] for values_LS in values], back=False)
        found = []
        for one, parts, values_LS in zip(requests, came, values, strict=True):
            values_US = values_LS.new_empty(len(one.order_U), values_LS.shape[1])
            values_US[one.order_U] = torch.cat([part.reshape(-1, values_LS.shape[1]) for part in parts])
            found.append(values_US)
        return found

    def give_back(self, requests: Sequence[Request], gradients: Sequence[Tensor]) -> list[Tensor]:
        """The gradients (L, S) of the rows held here: the mean over processes of what each says of those it asked for.

        `gradients`: of this process, (U, S).
        """
        sorted_US = [gradient_US[one.order_U] for gradient_US, one in zip(gradients, requests, strict=True)]
        split = [
            torch.split(gradient_US, list(one.asked)) for gradient_US, one in zip(sorted_US, requests, strict=True)
        ]
        pieces = [parts[rank].reshape(-1) for rank in range(self.world.size) for parts in split]
        came = self._swap(pieces, requests, [gradient_US.shape[1] for gradient_US in gradients], back=True)
        found = []
        for one, parts, gradient_US in zip(requests, came, gradients, strict=True):
            width = gradient_US.shape[1]
            summed_LS = gradient_US.new_zeros(len(one.rows_L), width)
            for sought, part in zip(one.sought, parts, strict=True):
                # Each row stands in it at most once: the order of additions is that of the processes.
                summed_LS.index_add_(0, sought, part.reshape(-1, width))
            found.append(summed_LS.div_(self.world.size))
        return found

    def _swap(
        self, pieces: Sequence[Tensor], requests: Sequence[Request], widths: Sequence[int], *, back: bool
    ) -> list[list[Tensor]]:
        """Sends the pieces, by process and table; for each table the pieces that came, by process."""
        asked = [[one.asked[rank] * width for one, width in zip(requests, widths, strict=True)] for rank in self._ranks]
        given = [
            [len(one.sought[rank]) * width for one, width in zip(requests, widths, strict=True)] for rank in self._ranks
        ]
        sent, came = (asked, given) if back else (given, asked)
        values = self.world.exchange(torch.cat(list(pieces)), [sum(one) for one in sent], [sum(one) for one in came])
        edges = list(accumulate((length for one in came for length in one), initial=0))
        tables = len(requests)
        return [
            [values[edges[rank * tables + table] : edges[rank * tables + table + 1]] for rank in self._ranks]
            for table in range(tables)
        ]

    @property
    def _ranks(self) -> range:
        return range(self.world.size)
