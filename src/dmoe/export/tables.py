"""The trained model as a plain function of ids and numbers, its tables in float32, float16 or int8.

Shape suffixes: B rows, C id columns, N numeric fields, F fields, T tables, D width of one table,
S summed width, V summed vocabulary sizes.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dmoe.export.manifest import TableType
from dmoe.nn.model import DMoE
from dmoe.nn.tables.bank import FrozenTable
from dmoe.nn.tables.table import MultiTableEmbedding
from dmoe.outputs import TaskOutputs
from dmoe.weights.served import served_logits, served_probabilities

# Numbers of a table that are in memory at once.
_BLOCK_NUMBERS = 1 << 22


class StoredEmbedding(nn.Module):
    """The lookup of trained tables in operations that every exporter knows.

    float16 rounds each weight; int8 stores round(w / s) with one s = max|w| / 127 a row and table. The rows themselves
    are not held: `table` and `scale_VT` are two rows that stand for those of `blocks` while the graph is made, and tell
    one table from the others by the number in them.

    Shape: ``ids_BC`` int64, ``numeric_BN`` float32 to a tuple of T tensors (B, F, D_t), or to `copies` of one.
    """

    first_row_C: Tensor
    table: Tensor
    scale_VT: Tensor
    numeric_weight: Tensor

    def __init__(self, tables: MultiTableEmbedding | FrozenTable, stored: TableType, number: int) -> None:
        super().__init__()
        weight_VS = tables.weight.detach()
        self._weight = [weight_VS]  # in a list, which no exporter looks into
        self.widths = list(tables.widths) if isinstance(tables, MultiTableEmbedding) else [weight_VS.shape[1]]
        self.copies = 1 if isinstance(tables, MultiTableEmbedding) else tables.copies
        self.stored = stored
        self.register_buffer("first_row_C", tables.offsets_C.clone())
        for name, block in self._stored(weight_VS[:2]).items():
            self.register_buffer(name, block.new_full((2, block.shape[1]), number + 1))
        numeric = tables.numeric_weight.detach() if isinstance(tables, MultiTableEmbedding) else weight_VS[:0]
        self.register_buffer("numeric_weight", numeric)

    @property
    def rows(self) -> int:
        return len(self._weight[0])

    def blocks(self) -> Iterator[dict[str, Tensor]]:
        """What the buffers `table` and, with int8, `scale_VT` stand for, a range of rows after the other."""
        weight_VS = self._weight[0]
        length = max(1, _BLOCK_NUMBERS // weight_VS.shape[1])
        for start in range(0, self.rows, length):
            yield self._stored(weight_VS[start : start + length])

    def _stored(self, weight_VS: Tensor) -> dict[str, Tensor]:
        if self.stored != "int8":
            return {"table": weight_VS.half() if self.stored == "float16" else weight_VS}
        parts = torch.split(weight_VS, self.widths, dim=1)
        scale_VT = torch.stack([part.abs().amax(1) for part in parts], dim=1) / 127
        scale_VT[scale_VT == 0] = 1
        rounded = [(part / scale_VT[:, [table]]).round() for table, part in enumerate(parts)]
        return {"table": torch.cat(rounded, dim=1).to(torch.int8), "scale_VT": scale_VT}

    def forward(self, ids_BC: Tensor, numeric_BN: Tensor | None = None) -> tuple[Tensor, ...]:
        num_categorical, num_numeric = len(self.first_row_C), len(self.numeric_weight)
        numeric: tuple[Tensor, ...] = ()
        if num_numeric and numeric_BN is not None:
            numeric = torch.split(numeric_BN.unsqueeze(-1) * self.numeric_weight, self.widths, dim=-1)
        if not num_categorical:
            return numeric
        rows_BC = ids_BC + self.first_row_C
        looked_up = torch.split(nn.functional.embedding(rows_BC, self.table).float(), self.widths, dim=-1)
        if self.stored == "int8":
            scale_BCT = nn.functional.embedding(rows_BC, self.scale_VT)
            looked_up = tuple(part * scale_BCT[..., [table]] for table, part in enumerate(looked_up))
        if not num_numeric:
            return looked_up * self.copies
        return tuple(torch.cat(pair, dim=1) for pair in zip(looked_up, numeric, strict=True))


class ScoringModel(nn.Module):
    """ids and numbers to all outputs of the tasks: probabilities (B, 1), logits (B, 1), gate weights (B, M)."""

    def __init__(self, model: DMoE, stored: TableType, tasks: Sequence[TaskOutputs]) -> None:
        super().__init__()
        for number, bank in enumerate(model.embedding.each_bank()):
            bank.add_module("tables", StoredEmbedding(bank.tables, stored, number))
        self.model = model.eval()
        self.tasks = tasks
        self.eval()

    def forward(self, ids_BC: Tensor, numeric_BN: Tensor) -> tuple[Tensor, ...]:
        output = self.model(ids_BC, numeric_BN)
        logits = [one.unsqueeze(1) for one in served_logits(self.model, [task.logit for task in output.tasks])]
        found = served_probabilities(logits, self.tasks)
        return *found.values(), *logits, *(task.gate_weights for task in output.tasks)
