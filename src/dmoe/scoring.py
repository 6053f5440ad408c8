"""One way to open a run or an exported model, and to score files with it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv, parquet

from dmoe.errors import ConfigError, DataError, UserError
from dmoe.export.manifest import Manifest, is_model_folder
from dmoe.files import written_aside


class Scorer(Protocol):
    """What `load` gives."""

    def predict_proba(self, rows: Any) -> NDArray[np.float32]:
        """Click probability of each raw row, (R,), in order.

        Args:
            rows: a pandas, polars or pyarrow table with the raw columns, or the path of a raw log (or several).
        Raises: DataError if a column is missing or a row cannot be read.
        """

    def stream(self, rows: Any) -> Iterator[NDArray[np.float32]]:
        """The same, piece by piece; memory does not grow with the number of rows in files."""


def load(folder: Path | str, *, device: str = "auto", precision: Literal["float32", "bfloat16"] = "float32") -> Scorer:
    """The scorer of a run folder, or of a model folder that `dmoe export` made.

    Args:
        device: where a run is scored; model folders are scored on the CPU.
        precision: of a run's matrix products. Processors with bfloat16 units score several times faster by it, and
            probabilities move in their third digit.
    Raises: DataError if it is neither, is not whole, or training has not finished its first evaluation.
    """
    folder = Path(folder)
    # Each way imports its own engine: an ONNX model is scored without torch.
    if not is_model_folder(folder):
        from dmoe.prediction import Predictor

        return Predictor.open(folder, device, precision)
    if precision != "float32":
        raise ConfigError(f"{folder}: a model folder has the precision of its export; leave --precision out")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"{folder}: a model folder is scored on the CPU, not on {device}; leave --device out")
    if Manifest.read(folder).format == "torch":
        from dmoe.export.torch_model import TorchModel

        return TorchModel.open(folder)
    from dmoe.export.onnx_model import OnnxModel

    return OnnxModel.open(folder)


def write_predictions(scorer: Scorer, inputs: Sequence[Path], output: Path) -> int:
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
        for scores in scorer.stream(list(inputs)):
            writer.write_table(pa.table({"probability": scores}, schema=schema))
            rows += len(scores)
    return rows
