"""The model that is being served, and its exchange for a new one while requests run."""

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmoe.errors import DmoeError
from dmoe.export.fields import Features
from dmoe.export.onnx_model import OnnxModel
from dmoe.outputs import PROBABILITY, all_outputs
from dmoe.serving.metrics import Drift
from dmoe.serving.rows import RowReader
from dmoe.serving.unseen import UnseenWatch


@dataclass(frozen=True, slots=True)
class Served:
    """One opened version: everything that a request needs, so that it never meets half of another."""

    model: OnnxModel
    reader: RowReader
    version: str
    drift: Drift
    unseen: UnseenWatch

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names that a request can ask for."""
        return all_outputs(self.model.outputs)

    @staticmethod
    def open(path: Path) -> "Served":
        """Verifies, loads and tries the model folder.

        Raises: DataError if it is not whole; DmoeError if it cannot be read, or cannot score a row of missing values.
        """
        try:
            model = OnnxModel.open(path)
        except OSError as error:
            raise DmoeError(f"{path}: cannot be read: {error.strerror or error}") from None
        except MemoryError:
            raise DmoeError(f"{path}: there is no memory for it") from None
        row = _missing_row(model)
        logits = [task.logit for task in model.outputs]
        for _ in range(3):  # the first calls allocate
            if not all(math.isfinite(float(one[0, 0])) for one in model.graph.run(row, logits).values()):
                raise DmoeError(f"{path}: does not score a row of missing values; export the run again")
        manifest = model.manifest
        references = {name: proof.reference_scores for name, proof in manifest.outputs.items()}
        drift = Drift(references or {PROBABILITY: manifest.reference_scores})
        return Served(model, RowReader(model), model.manifest.version, drift, UnseenWatch(model))


def _missing_row(model: OnnxModel) -> Features:
    values = {"text": (object, None), "number": (np.float64, math.nan), "id": (np.int64, 0)}
    row: Features = {}
    for one in model.inputs:
        dtype, value = values[one.kind]
        row[one.name] = np.array([[one.null if one.kind == "text" else value] * one.width], dtype=dtype)
    return row


class Slot:
    """Where the present version stands; `path` may be a link that is pointed elsewhere before `reload`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._one_at_a_time = asyncio.Lock()
        self.current = Served.open(path)

    async def reload(self) -> Served:
        """Opens what `path` now leads to and serves it from the next request on.

        Raises: DmoeError if it cannot be opened; the present version then stays.
        """
        async with self._one_at_a_time:
            opened = await asyncio.to_thread(Served.open, self._path)
            self.current = opened
            return opened
