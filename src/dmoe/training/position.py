"""Where a training is, as its checkpoint says it beside the tensors."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from dmoe.training.step_values import StepLoss


@dataclass(slots=True)
class Position:
    """Where training is: all that is not a tensor."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    evaluations: int = 0
    lr: float = 0.0
    best: float | None = None
    best_step: int = 0
    best_epoch: int = 0
    failures: int = 0
    finished: bool = False
    seconds: float = 0.0
    # Sums over the steps since the last evaluation.
    rows: int = 0
    total: float = 0.0
    logloss: float = 0.0
    decorrelation: float = 0.0
    training_seconds: float = 0.0
    all_rows: int = 0
    all_training_seconds: float = 0.0

    @staticmethod
    def read(values: dict[str, Any], epochs: int, batches: int, most_lr: float) -> "Position":
        """Raises: TypeError or ValueError for what no training of so many epochs and batches in each wrote."""
        found = Position(**values)
        TypeAdapter(Position).validate_json(json.dumps(asdict(found)), strict=True)
        counts = (value for name, value in asdict(found).items() if name != "best")
        if min(counts) < 0 or found.epoch > epochs or found.batch > batches or found.step > epochs * batches:
            raise ValueError("its state.json counts below 0, or beyond the last step")
        if found.lr > most_lr:
            raise ValueError(f"its state.json has a learning rate of {found.lr:g}, above the {most_lr:g} to start with")
        return found

    def add(self, loss: StepLoss, rows: int) -> None:
        self.rows += rows
        self.all_rows += rows
        self.total += loss.total * rows
        self.logloss += loss.logloss * rows
        self.decorrelation += loss.decorrelation * rows

    def add_seconds(self, seconds: float) -> None:
        self.seconds += seconds
        self.training_seconds += seconds
        self.all_training_seconds += seconds

    def restart_sums(self) -> None:
        self.rows = 0
        self.total = self.logloss = self.decorrelation = self.training_seconds = 0.0
