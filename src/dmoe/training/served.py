"""The end of a training on several processes: the first one does what one process would, the others give it rows."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmoe.distributed.exchange import Request, RowExchange
from dmoe.distributed.world import World
from dmoe.nn.model import DMoE
from dmoe.weights.run import Run, table_layouts
from dmoe.weights.stream import save_together

_ROWS, _SAVE, _END = "rows", "save", "end"


def with_rows_of_all(world: World, run: Run, model: DMoE, work: Callable[[Callable[[], None]], None]) -> None:
    """Has the first process do `work`, in which it may use the model and save it with the function that `work` gets.

    The others wait for its word, however long that takes, and do their part of fetching and saving rows.
    """
    if not world.several:
        work(lambda: run.save_weights(model.state_dict()))
        return
    lead = _Lead(world, run, model)
    if not world.is_first:
        lead.serve()
        return
    embedding = model.embedding
    before = embedding.exchange
    embedding.exchange = lead
    try:
        with world.beating():
            work(lead.save)
            lead.say(_END)
    finally:
        embedding.exchange = before


class _Lead(RowExchange):
    """Says what is to be done before it is."""

    def __init__(self, world: World, run: Run, model: DMoE) -> None:
        super().__init__(world, [table.layout for table in model.embedding.row_tables()])
        self.run, self.model, self.said = run, model, 0

    def say(self, what: str) -> None:
        self.world.say(f"end/{self.said}", what)
        self.said += 1

    def request(self, rows: Sequence[Tensor], counts: Sequence[Tensor | None]) -> list[Request]:
        self.say(_ROWS)
        return super().request(rows, counts)

    def save(self) -> None:
        self.say(_SAVE)
        self._save()

    def _save(self) -> None:
        save_together(self.run, self.model.state_dict(), table_layouts(self.model), self.world)

    def serve(self) -> None:
        embedding = self.model.embedding
        assert embedding.exchange is not None
        nothing_BC = torch.zeros(0, sum(field.length for field in embedding.fields), dtype=torch.int32)
        while (what := self.world.hear(f"end/{self.said}")) != _END:
            self.said += 1
            if what == _SAVE:
                self._save()
            else:
                embedding.fetched(nothing_BC, embedding.exchange)
