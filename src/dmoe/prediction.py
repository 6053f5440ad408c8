"""Raw rows in, probabilities out."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow import csv, parquet

from dmoe.data.encode import RawBatch, RawEncoder
from dmoe.errors import DataError, UserError
from dmoe.files import written_aside
from dmoe.nn.model import DMoE
from dmoe.schema import Schema
from dmoe.training.evaluation import SCORING_ROWS
from dmoe.training.run import Run, choose_device


class Predictor:
    """A trained model together with the vocabularies that raw rows need; made by `dmoe.load`."""

    def __init__(self, folder: Path, schema: Schema, model: DMoE, device: torch.device) -> None:
        self.folder, self.schema, self.device = folder, schema, device
        self.model = model.to(device).eval()
        self.encoder = RawEncoder(folder)

    def predict_proba(self, rows: Any) -> NDArray[np.float32]:
        """Click probability of each raw row, (R,), in order.

        Args:
            rows: a pandas, polars or pyarrow table with the raw columns, or the path of a raw log (or several).
        Raises: DataError if a column is missing or a row cannot be read.
        """
        parts = list(self._scores(self._batches(rows)))
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def _batches(self, rows: Any) -> Iterable[RawBatch]:
        if isinstance(rows, str | Path):
            rows = [rows]
        if isinstance(rows, Sequence) and rows and all(isinstance(one, str | Path) for one in rows):
            return self.encoder.encode_files([Path(one) for one in rows], batch_size=SCORING_ROWS)
        whole = self.encoder.encode_table(rows)
        return (
            RawBatch(whole.ids_BC[start : start + SCORING_ROWS], whole.numeric_BN[start : start + SCORING_ROWS])
            for start in range(0, len(whole.ids_BC), SCORING_ROWS)
        )

    def _scores(self, batches: Iterable[RawBatch]) -> Iterator[NDArray[np.float32]]:
        with torch.inference_mode():
            for batch in batches:
                output = self.model(batch.ids_BC.to(self.device), batch.numeric_BN.to(self.device))
                yield torch.sigmoid(output.logit.float()).cpu().numpy()


def load(folder: Path | str, *, device: str = "auto") -> Predictor:
    """The predictor of a run folder.

    Raises: DataError if it is not one or training has not finished its first evaluation.
    """
    run = Run.open(Path(folder))
    return Predictor(run.path, run.schema, run.load_model(), choose_device(device))


def write_predictions(predictor: Predictor, inputs: Sequence[Path], output: Path) -> int:
    """Scores raw files into one column `probability`, in order, batch by batch; the number of rows written.

    Raises: UserError if the output's ending is neither .parquet nor .csv; DataError if an input cannot be read
    or `output` is one of the inputs. Nothing is left at `output` unless all rows were scored.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise UserError(f"{output}: predictions are written as .parquet or .csv")
    if output.resolve() in [path.resolve() for path in inputs]:
        raise DataError(f"{output}: is an input; choose another --output")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: no such folder to write {output.name} to")
    schema = pa.schema([("probability", pa.float32())])
    open_writer = parquet.ParquetWriter if output.suffix == ".parquet" else csv.CSVWriter
    rows = 0
    with written_aside(output) as aside, open_writer(aside, schema) as writer:
        for scores in predictor._scores(predictor._batches(list(inputs))):
            writer.write_table(pa.table({"probability": scores}, schema=schema))
            rows += len(scores)
    return rows
