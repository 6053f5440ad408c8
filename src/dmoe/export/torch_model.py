"""A model folder that holds a `torch.export` program."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dmoe.data.batch import Batch
from dmoe.errors import DataError
from dmoe.export.manifest import Manifest
from dmoe.prediction import EncodedScorer
from dmoe.schema import Schema


class Program:
    """`model.pt2` of a folder: ids and numbers to probability, logit and gate weights, on the CPU."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            # torch's own loader meets its deprecations.
            warnings.simplefilter("ignore")
            self._module = torch.export.load(folder / "model.pt2").module()

    def run(self, ids_BC: torch.Tensor, numeric_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(probability_B1, logit_B1, gate_weights_BM)`."""
        with torch.inference_mode():
            probability_B1, logit_B1, gate_BM = self._module(ids_BC.long(), numeric_BN)
        return probability_B1, logit_B1, gate_BM

    def score(self, batch: Batch) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Probability and logit of encoded rows, each (B,)."""
        probability_B1, logit_B1, _ = self.run(batch.ids_BC, batch.numeric_BN)
        return probability_B1[:, 0].double().numpy(), logit_B1[:, 0].double().numpy()


class TorchModel(EncodedScorer):
    """A model folder of `dmoe export --format torch`, verified against its checksums; made by `dmoe.load`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__(folder, Schema.read(folder))
        self.manifest = manifest
        self.program = Program(folder)

    @staticmethod
    def open(folder: Path) -> "TorchModel":
        """Raises: DataError if a file is absent or was changed, or the folder holds another format."""
        manifest = Manifest.read(folder)
        manifest.verify(folder)
        if manifest.format != "torch":
            raise DataError(f"{folder}: is in format {manifest.format}, not torch")
        return TorchModel(folder, manifest)

    def _probability(self, ids_BC: torch.Tensor, numeric_BN: torch.Tensor) -> torch.Tensor:
        return self.program.run(ids_BC, numeric_BN)[0][:, 0]
