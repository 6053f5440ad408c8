"""What is measured of a finished cell, beyond what `dmoe train` leaves: one pass over the held-out splits.

Shape suffixes: R rows of a split, M experts, V table rows, D width.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from dmoe.config.data import HELD_OUT
from dmoe.decorrelation import LinearCKA
from dmoe.disk.files import read_json, written_aside
from dmoe.evaluation.evaluate import scored_batches
from dmoe.evaluation.tasks import SplitRows
from dmoe.experiments import planted
from dmoe.experiments.similarity import error_correlation, information_abundance
from dmoe.experiments.slices import task_columns, task_figures
from dmoe.metrics.scores import auc
from dmoe.nn.model import DMoE
from dmoe.schema import FIRST_TOKEN_ID, Schema, vocabulary_path
from dmoe.shards.batch import SCORING_ROWS
from dmoe.shards.reader import read_once
from dmoe.weights.run import Run

# Fields of which the page says that they decide the gate.
GATE_FIELDS = 3


def analyse(run: Run, data: Path, scores: Path, truth: planted.Truth | None) -> dict[str, Any]:
    """Figures by split and of the tables; every row's label and logits go to the Parquet file `scores`."""
    model = run.load_model()
    metrics: dict[str, Any] = {}
    tables: list[pa.Table] = []
    outputs: dict[str, list[planted.Floats]] = {}
    for split in HELD_OUT:
        rows, alone, cka, kept = _scored(model, data, split, keep=truth is not None)
        outputs[split] = kept
        evaluation = read_json(run.path / "evaluation" / f"{split}.json")
        known_R = rows.known_R()
        of_main = [one_R[known_R] for one_R in alone]
        metrics[split] = _figures(evaluation, rows.of_task().labels_R > 0, of_main, cka) | task_figures(evaluation)
        tables.append(
            pa.table(
                {
                    "split": pa.array([split] * len(known_R)).dictionary_encode(),
                    "label": pa.array(rows.labels_R() > 0, mask=~known_R),
                    "logit": rows.logits_R().astype(np.float32),
                    **task_columns(rows),
                    **{f"alone_{index}": one_R for index, one_R in enumerate(alone)},
                }
            )
        )
    with written_aside(scores) as aside:
        parquet.write_table(pa.concat_tables(tables, promote_options="default").unify_dictionaries(), aside)
    found: dict[str, Any] = {"metrics": metrics, "tables": table_figures(model, run)}
    if truth is not None and model.num_experts > 1:
        parts = {split: truth.parts(split) for split in HELD_OUT}
        found["planted"] = planted.recovered(outputs["valid"], parts["valid"], outputs["test"], parts["test"])
        metrics["test"]["separation"] = found["planted"]["separation"]
    return found


def _scored(
    model: DMoE, data: Path, split: str, *, keep: bool
) -> tuple[SplitRows, list[Any], LinearCKA | None, list[planted.Floats]]:
    """Labels and logits, the logits of each expert alone, CKA of the outputs, and the outputs of the first rows."""
    reader = read_once(data, split, batch_size=SCORING_ROWS)
    several = model.num_experts > 1
    cka = LinearCKA(model.num_experts) if several else None
    found = SplitRows(reader.schema)
    alone: list[list[Any]] = [[] for _ in range(model.num_experts if several else 0)]
    kept: list[list[Any]] = [[] for _ in alone]
    rows = 0
    for batch, output in scored_batches(model, reader.batches(), torch.device("cpu")):
        found.update(batch, output)
        if cka is not None:
            cka.update(output.expert_outputs)
            for index, one in enumerate(output.expert_outputs):
                alone[index].append(model.calibrated(model.predict(one, output), output.linear).float().numpy())
        if keep and rows < planted.MAX_ROWS:
            for index, one in enumerate(output.expert_outputs[: len(kept)]):
                kept[index].append(one[: planted.MAX_ROWS - rows].double().numpy())
        rows += len(batch)
    joined = [np.concatenate(one) for one in kept if one]
    return found, [np.concatenate(one) for one in alone], cka, joined


def _figures(
    evaluation: Mapping[str, Any], labels_R: Any, alone: Sequence[Any], cka: LinearCKA | None
) -> dict[str, Any]:
    calibration = evaluation["calibration"]
    found: dict[str, Any] = {
        "rows": evaluation["rows"],
        "positives": evaluation["positives"],
        "auc": evaluation["auc"],
        "logloss": evaluation["logloss"],
        "relative_information_gain": evaluation["relative_information_gain"],
        "calibration_error": calibration["expected_calibration_error"],
        "predicted_to_observed": calibration["predicted_to_observed"],
    }
    if cka is None:
        return found
    output, gate = evaluation["correlation"]["output"], evaluation["gate"]
    logits = [one_R.astype(np.float64) for one_R in alone]
    aucs = [auc(labels_R, one_R) for one_R in logits]
    pairs = [value for row in cka.compute().matrix for value in row if value is not None]
    return found | {
        "cec": output["total"],
        "cec_noise_floor": output["total_noise_floor"],
        "cec_before_relu": evaluation["correlation"]["pre-activation"]["total"],
        "cec_matrix": output["matrix"],
        "cka": math.fsum(pairs) / len(pairs) if pairs else None,
        "dead_columns": output["dead_columns"],
        "dead_share": sum(output["dead_columns"]) / sum(output["columns"]),
        "gate_mean": gate["mean"],
        # 1: equal weights in every row; 0: one expert in every row.
        "gate_entropy": gate["mean_entropy"] / math.log(len(gate["mean"])),
        "gate_fields": [{"field": one["field"], "spread": one["spread"]} for one in gate["by_field"][:GATE_FIELDS]],
        "alone_auc": aucs,
        "best_alone_auc": max(aucs),
        "mean_alone_auc": auc(labels_R, np.mean(logits, axis=0)),
        "error_correlation": error_correlation(labels_R, logits),
    }


def table_figures(model: DMoE, run: Run) -> list[dict[str, Any]]:
    """Information abundance of every table, the gate's last: mean over fields of at least as many tokens as columns.

    `abundance` counts each token once, `weighted` as often as it comes in the training rows; both relative to the
    table's width, so that 1 is a table without collapse.
    """
    tables = []
    for index, width in enumerate(model.embedding.widths):
        plain: list[float] = []
        weighted: list[float] = []
        for number in range(len(run.schema.categorical)):
            rows_VD = model.embedding.rows_of(number, index)
            if rows_VD is None or len(rows_VD) - FIRST_TOKEN_ID < rows_VD.shape[1]:
                continue
            tokens_VD = rows_VD[FIRST_TOKEN_ID:].double().numpy()
            counts_V = _counts(run.path, run.schema, number)
            for found, value in (
                (plain, information_abundance(tokens_VD)),
                (weighted, information_abundance(tokens_VD, counts_V)),
            ):
                if value is not None:
                    found.append(value / tokens_VD.shape[1])
        reads = [expert for expert, table in enumerate(model.table_of_expert) if table == index]
        tables.append(
            {
                "table": index,
                "experts": reads,
                "width": width,
                "fields": len(plain),
                "abundance": float(np.mean(plain)) if plain else None,
                "weighted": float(np.mean(weighted)) if weighted else None,
            }
        )
    return tables


def _counts(folder: Path, schema: Schema, number: int) -> planted.Floats:
    path = vocabulary_path(folder, schema.categorical[number].vocabulary_name)
    counts = parquet.read_table(path, columns=["count"])["count"]
    return np.asarray(counts.to_numpy(), dtype=np.float64)
