"""How a gate spreads its weight: over all rows, and for the frequent values of each field.

Shape suffixes: B rows of a batch, M experts.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pyarrow.parquet import ParquetFile
from torch import Tensor

from dmoe.schema import FIRST_TOKEN_ID, MISSING_ID, OOV_ID, MultiValuedField, Schema, vocabulary_path
from dmoe.shards.batch import Batch

# Field values shown one by one: missing, out of vocabulary and the most frequent tokens.
SHOWN_VALUES = 12


class GateUsage:
    """How the gate spreads its weight: over all rows, and for the frequent values of each field."""

    def __init__(self, schema: Schema, num_experts: int) -> None:
        # Of a multi-valued field a row has several values: its weight belongs to none of them alone.
        columns = zip(schema.categorical, schema.id_columns, strict=True)
        self.fields = [(field, ids.start) for field, ids in columns if not isinstance(field, MultiValuedField)]
        self.rows = 0
        self.sum_M = np.zeros(num_experts)
        self.sum_of_squares_M = np.zeros(num_experts)
        self.argmax_M = np.zeros(num_experts, dtype=np.int64)
        self.entropy = 0.0
        # Tokens are numbered by falling count, so the first ids are the frequent values; the last slot is the rest.
        self.slots = [min(field.vocabulary_size, SHOWN_VALUES + FIRST_TOKEN_ID) for field, _ in self.fields]
        self.counts = [np.zeros(slots + 1, dtype=np.int64) for slots in self.slots]
        self.clicks = [np.zeros(slots + 1) for slots in self.slots]
        self.known = [np.zeros(slots + 1, dtype=np.int64) for slots in self.slots]
        self.weights = [np.zeros((num_experts, slots + 1)) for slots in self.slots]

    def update(self, batch: Batch, gate_BM: Tensor) -> None:
        weights_BM = gate_BM.cpu().double().numpy()
        labels_B = batch.labels_B.numpy()
        known_B = None if batch.known_BT is None else batch.known_BT[:, 0].numpy()
        self.rows += len(labels_B)
        self.sum_M += weights_BM.sum(0)
        self.sum_of_squares_M += (weights_BM**2).sum(0)
        self.argmax_M += np.bincount(weights_BM.argmax(1), minlength=weights_BM.shape[1])
        self.entropy -= float((weights_BM * np.log(np.maximum(weights_BM, 1e-300))).sum())
        for column, slots in enumerate(self.slots):
            slot_B = np.minimum(batch.ids_BC[:, self.fields[column][1]].numpy(), slots)
            self.counts[column] += np.bincount(slot_B, minlength=slots + 1)
            self.known[column] += np.bincount(slot_B if known_B is None else slot_B[known_B], minlength=slots + 1)
            self.clicks[column] += np.bincount(slot_B, weights=labels_B, minlength=slots + 1)
            for expert in range(weights_BM.shape[1]):
                self.weights[column][expert] += np.bincount(slot_B, weights=weights_BM[:, expert], minlength=slots + 1)

    def result(self, folder: Path) -> dict[str, Any]:
        mean_M = self.sum_M / self.rows
        variance_M = np.maximum(self.sum_of_squares_M / self.rows - mean_M**2, 0.0)
        fields = [self._field(column, folder) for column in range(len(self.slots))]
        return {
            "mean": mean_M.tolist(),
            "std": np.sqrt(variance_M).tolist(),
            "mean_entropy": self.entropy / self.rows,
            "argmax_share": (self.argmax_M / self.rows).tolist(),
            "by_field": sorted(fields, key=lambda field: -float(field["spread"])),
        }

    def _field(self, column: int, folder: Path) -> dict[str, Any]:
        field, _ = self.fields[column]
        count = self.counts[column]
        seen = count > 0
        mean_MS = self.weights[column][:, seen] / count[seen]
        overall_M = self.weights[column].sum(1) / self.rows
        spread = np.sqrt((count[seen] * (mean_MS - overall_M[:, None]) ** 2).sum() / self.rows)
        names = {
            MISSING_ID: "(missing)",
            OOV_ID: "(out of vocabulary)",
            self.slots[column]: "(all other values)",
        }
        tokens = _first_tokens(folder, field.name, self.slots[column] - FIRST_TOKEN_ID)
        names |= {FIRST_TOKEN_ID + index: value for index, value in enumerate(tokens)}
        return {
            "field": field.name,
            "spread": float(spread),
            "values": [
                {
                    "value": names[slot],
                    "rows": int(count[slot]),
                    "click_rate": float(self.clicks[column][slot] / self.known[column][slot])
                    if self.known[column][slot]
                    else None,
                    "mean_weights": (self.weights[column][:, slot] / count[slot]).tolist(),
                }
                for slot in range(len(count))
                if count[slot]
            ],
        }


def _first_tokens(folder: Path, field: str, count: int) -> list[str]:
    """The `count` most frequent values of a field."""
    if count == 0:
        return []
    with ParquetFile(vocabulary_path(folder, field)) as file:
        first = next(file.iter_batches(batch_size=count, columns=["value"]))
    return [str(value) for value in first["value"].to_pylist()]
