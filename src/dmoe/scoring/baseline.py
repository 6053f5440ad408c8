"""Raw rows in, a baseline's probabilities out."""

from pathlib import Path

import torch
from torch import Tensor

from dmoe.baselines.folder import Baseline
from dmoe.scoring.predictor import EncodedScorer


class BaselineScorer(EncodedScorer):
    """A fitted baseline with the vocabularies that raw rows need; made by `dmoe.load`."""

    def __init__(self, baseline: Baseline) -> None:
        super().__init__(baseline.path, baseline.schema)
        self.outputs = self.outputs[:1]  # a baseline is of the main label
        self._model = baseline.load_model()

    @staticmethod
    def open(folder: Path) -> "BaselineScorer":
        """Raises: DataError if it is no folder of `dmoe baseline`."""
        return BaselineScorer(Baseline.open(folder))

    def _probabilities(self, ids_BC: Tensor, numeric_BN: Tensor) -> dict[str, Tensor]:
        logits_B = torch.from_numpy(self._model.logits(ids_BC.numpy(), numeric_BN.numpy()))
        return {self.outputs[0].probability: torch.sigmoid(logits_B).float()}
