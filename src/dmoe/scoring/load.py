"""One way to open a run or an exported model, and to score files with it."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import csv, parquet

from dmoe.disk.files import written_aside
from dmoe.errors import ConfigError, DataError, UserError
from dmoe.export.manifest import is_model_folder
from dmoe.outputs import probabilities
from dmoe.sources.inputs import check_outside
from dmoe.sources.kept_columns import check_types
from dmoe.tokens.scorer import Scorer
from dmoe.tokens.unseen import ValueCounts


def load(folder: Path | str, *, device: str = "auto", precision: Literal["float32", "bfloat16"] = "float32") -> Scorer:
    """The scorer of a run folder, one of `dmoe baseline`, or a model folder that `dmoe export` made.

    Args:
        device: where a run is scored; model folders are scored on the CPU.
        precision: of a run's matrix products. Processors with bfloat16 units score several times faster by it, and
            probabilities move in their third digit.
    Raises: DataError if it is neither, is not whole, or training has not finished its first evaluation.
    """
    folder = Path(folder)
    # Each way imports its own engine: an ONNX model is scored without torch.
    if not is_model_folder(folder):
        if (folder / "baseline.json").is_file() and not (folder / "config.yaml").is_file():
            from dmoe.scoring.baseline import BaselineScorer

            return BaselineScorer.open(folder)
        from dmoe.scoring.predictor import Predictor

        return Predictor.open(folder, device, precision)
    if precision != "float32":
        raise ConfigError(f"{folder}: a model folder has the precision of its export; leave --precision out")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"{folder}: a model folder is scored on the CPU, not on {device}; leave --device out")
    from dmoe.export.onnx_model import OnnxModel

    return OnnxModel.open(folder)


@dataclass(frozen=True, slots=True)
class Predictions:
    """How many rows were written, and which values they had."""

    rows: int
    counts: ValueCounts


def write_predictions(
    scorer: Scorer, inputs: Sequence[Path], output: Path, *, keep: Sequence[str] = (), strict: bool = False
) -> Predictions:
    """Scores raw files into the columns `keep` of the input and a column `probability`, in order, batch by batch; of
    several labels one column each (`probability.click`), and of a conditional one also the joint probability
    (`probability.click+watch`).

    Args:
        keep: raw columns to write beside the scores, as they are read: text of delimited files, else their own type.
        strict: refuse rows of which far more values are unseen or missing than training showed.
    Raises: UserError if the output's ending is neither .parquet nor .csv, or `keep` names a column of the scores or
    one twice; DataError if an input cannot be read or lacks a column, a kept column has two types or one that CSV
    cannot hold, rows are refused, or `output` is one of the inputs. Nothing is left at `output` unless all rows were
    scored.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise UserError(f"{output}: predictions are written as .parquet or .csv")
    check_outside(output, [str(path) for path in inputs])
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: no such folder to write {output.name} to")
    scores = pa.schema([(name, pa.float32()) for name in probabilities(scorer.outputs)])
    for index, name in enumerate(keep):
        if name in scores.names:
            raise UserError(f"--keep {name}: is the name of the scores' own column; rename the column of the input")
        if name in keep[:index]:
            raise UserError(f"--keep {name}: is given twice")
    counts = scorer.value_counts()
    rows = 0
    with written_aside(output) as aside:
        with ExitStack() as stack:
            writer, first = None, pa.schema([])
            for scored in scorer.stream(list(inputs), keep=keep, counts=counts):
                kept = pa.table({}) if scored.kept is None else scored.kept
                if writer is None:
                    first = kept.schema
                    writer = stack.enter_context(_writer(aside, kept.schema, scores, output.suffix))
                check_types(first, kept.schema)
                columns = [pa.array(scored.probabilities[name]) for name in scores.names]
                writer.write_table(pa.table([*kept.columns, *columns], [*keep, *scores.names]))
                rows += len(scored)
            if writer is None:  # not even a header was there
                texts = pa.schema([(name, pa.string()) for name in keep])
                stack.enter_context(_writer(aside, texts, scores, output.suffix))
        findings = counts.findings() if strict else []
        if findings:
            others = f"; {len(findings) - 1} more such fields" if len(findings) > 1 else ""
            raise DataError(f"{findings[0].text()}{others} (--strict: nothing was written)")
    return Predictions(rows, counts)


def _writer(path: Path, kept: pa.Schema, scores: pa.Schema, suffix: str) -> Any:
    schema = pa.schema([*kept, *scores])
    if suffix == ".parquet":
        return parquet.ParquetWriter(path, schema)
    for column in kept:
        if pa.types.is_nested(column.type):
            raise DataError(f"--keep {column.name}: CSV has no way to write {column.type}; write .parquet")
    return csv.CSVWriter(path, schema)
