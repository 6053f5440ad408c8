"""Count-aware embeddings: rare tokens are shrunk towards the unseen one of their field while a model trains.

A token that train holds n times is read as n/(n+k) of its own row and k/(n+k) of row 1, the one of unseen tokens: the
posterior mean of a normal prior around that row, whose variance is 1/k of that of one observation.

Shape suffixes: B rows, P id columns of one bank, V table rows, D width of a table.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dmoe.nn.tables.lookup import TableRows
from dmoe.nn.tables.table import MultiTableEmbedding
from dmoe.schema import FIRST_TOKEN_ID, OOV_ID


class Shrinkage(nn.Module):
    """What one `MultiTableEmbedding` gives, shrunk; both rows get their share of the gradient.

    Row 1 is read once a batch for each id column, however many tokens are shrunk.

    Args:
        counts: for each vocabulary of the table, how often train holds each of its ids; None for one that is not
            shrunk.
        k: the count at which a token is half its own, above 0.
    """

    kept_V: Tensor

    def __init__(self, tables: MultiTableEmbedding, counts: Sequence[npt.NDArray[np.int64] | None], k: float) -> None:
        super().__init__()
        kept_V = torch.ones(tables.num_rows, dtype=torch.get_default_dtype())
        for vocabulary, counts_V in enumerate(counts):
            if counts_V is not None:
                tokens = torch.from_numpy(counts_V[FIRST_TOKEN_ID:]).double()
                kept_V[tables.field_rows(vocabulary)][FIRST_TOKEN_ID:] = tokens / (tokens + k)
        # Not of the weights: it follows from the log.
        self.register_buffer("kept_V", kept_V, persistent=False)

    def read_ids(self, ids_BP: Tensor) -> Tensor:
        """The ids that are looked up for a batch: its own, and id 1 of each column."""
        return torch.cat([ids_BP, ids_BP.new_full((1, ids_BP.shape[1]), OOV_ID)])

    def forward(
        self, tables: MultiTableEmbedding, ids_BP: Tensor, numeric_BN: Tensor | None, rows: TableRows | None
    ) -> tuple[Tensor, ...]:
        """As `tables(ids_BP, numeric_BN, rows)`, with the `rows` of `read_ids`."""
        columns = ids_BP.shape[1]
        if numeric_BN is not None:
            numeric_BN = torch.cat([numeric_BN, numeric_BN.new_zeros(1, numeric_BN.shape[1])])
        kept_BP1 = self.kept_V[ids_BP + tables.offsets_C].unsqueeze(-1)
        outputs = []
        for output_BFD in tables(self.read_ids(ids_BP), numeric_BN, rows):
            own_BPD, unseen_PD = output_BFD[:-1, :columns], output_BFD[-1, :columns]
            kept = kept_BP1.to(output_BFD.dtype)
            mixed_BPD = kept * own_BPD + (1 - kept) * unseen_PD
            outputs.append(torch.cat([mixed_BPD, output_BFD[:-1, columns:]], dim=1))
        return tuple(outputs)

    @torch.no_grad()
    def folded(self, tables: MultiTableEmbedding, weight_LS: Tensor, unseen_KS: Tensor) -> Tensor:
        """Rows that give by themselves what `forward` gives, made of those that this process holds of `tables` and of
        the row of unseen values of each of their K vocabularies."""
        found_LS = weight_LS.clone()
        for vocabulary, own_S in enumerate(unseen_KS.to(torch.get_default_dtype())):
            rows = tables.field_rows(vocabulary)
            tokens = slice(min(rows.start + FIRST_TOKEN_ID, rows.stop), rows.stop)
            if not bool((self.kept_V[tokens] < 1).any()):
                continue
            held_U: Any = tokens
            if tables.layout.size > 1:
                rows_U, held_U = map(torch.from_numpy, tables.layout.held_of(tokens.start, tokens.stop))
                kept_U1 = self.kept_V[rows_U.to(self.kept_V.device)].unsqueeze(1).to(own_S)
            else:
                kept_U1 = self.kept_V[tokens].unsqueeze(1).to(own_S)
            own_US = weight_LS[held_U].to(own_S.dtype)
            found_LS[held_U] = (kept_U1 * own_US + (1 - kept_U1) * own_S).to(weight_LS.dtype)
        return found_LS
