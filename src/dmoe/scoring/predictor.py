"""Raw rows in, probabilities out."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dmoe.machine.device import on_device
from dmoe.nn.model import DMoE
from dmoe.outputs import probabilities, task_outputs
from dmoe.schema import Schema
from dmoe.shards.batch import SCORING_ROWS
from dmoe.sources.kept_columns import ScoredRows
from dmoe.sources.tables import as_paths
from dmoe.tokens.encoder import RawBatch, RawEncoder
from dmoe.tokens.scorer import Scorer
from dmoe.tokens.unseen import ValueCounts
from dmoe.weights.run import Run, choose_device
from dmoe.weights.served import served_logits, served_probabilities

_NONE = np.empty(0, dtype=np.float32)

Precision: TypeAlias = Literal["float32", "bfloat16"]


class EncodedScorer(Scorer):
    """Raw rows, encoded with the vocabularies of `folder`, through a function of ids and numbers."""

    def __init__(self, folder: Path, schema: Schema) -> None:
        self.folder, self.schema = folder, schema
        self.encoder = RawEncoder(folder)
        self.outputs = task_outputs(schema)

    def stream(self, rows: Any, *, keep: Sequence[str] = (), counts: ValueCounts | None = None) -> Iterator[ScoredRows]:
        """See `Scorer`."""
        with torch.inference_mode():
            for batch in self._batches(rows, keep, counts):
                if not len(batch):
                    yield ScoredRows(dict.fromkeys(probabilities(self.outputs), _NONE), batch.kept)
                    continue
                found = self._probabilities(batch.ids_BC, batch.numeric_BN)
                yield ScoredRows({name: one.cpu().numpy() for name, one in found.items()}, batch.kept)

    def _batches(self, rows: Any, keep: Sequence[str], counts: ValueCounts | None) -> Iterable[RawBatch]:
        paths = as_paths(rows)
        if paths is not None:
            return self.encoder.encode_files(paths, batch_size=SCORING_ROWS, keep=keep, counts=counts)
        whole = self.encoder.encode_table(rows, counts=counts)
        return (
            RawBatch(whole.ids_BC[start : start + SCORING_ROWS], whole.numeric_BN[start : start + SCORING_ROWS])
            for start in range(0, len(whole.ids_BC), SCORING_ROWS)
        )

    def _probabilities(self, ids_BC: Tensor, numeric_BN: Tensor) -> dict[str, Tensor]:
        """(B,) float32 each, by the names of `outputs`."""
        raise NotImplementedError


class Predictor(EncodedScorer):
    """A trained model together with the vocabularies that raw rows need; made by `dmoe.load`."""

    def __init__(
        self, folder: Path, schema: Schema, model: DMoE, device: torch.device, precision: Precision = "float32"
    ) -> None:
        super().__init__(folder, schema)
        self.device, self.precision = device, precision
        self.model = model.to(device).eval()

    @staticmethod
    def open(folder: Path, device: str, precision: Precision = "float32") -> "Predictor":
        """Raises: DataError if it is no run folder or training has not finished its first evaluation."""
        run = Run.open(folder)
        return Predictor(run.path, run.schema, run.load_model(), choose_device(device), precision)

    def _probabilities(self, ids_BC: Tensor, numeric_BN: Tensor) -> dict[str, Tensor]:
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with half, on_device(self.device):
            output = self.model(ids_BC.to(self.device), numeric_BN.to(self.device))
        logits = served_logits(self.model, [task.logit.float() for task in output.tasks])
        return served_probabilities(logits, self.outputs)
