"""Scores and figures of a cell by label, joint label and domain: what the tables of a family show.

Shape suffixes: R rows of a split.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from dmoe.evaluation.tasks import SplitRows
from dmoe.experiments.families import Slice
from dmoe.metrics.joint import joint_labels, joint_logits
from dmoe.schema import Schema

_KEPT = ("rows", "positives", "auc", "logloss", "predicted_to_observed")


def task_columns(rows: SplitRows) -> dict[str, Any]:
    """Labels (null where unknown) and logits of each of several labels, and the domain; nothing of a plain label."""
    schema = rows.schema
    if len(schema.tasks) == 1 and schema.domain is None:
        return {}
    columns: dict[str, Any] = {}
    for task in range(len(schema.tasks)):
        columns[f"label_{task}"] = pa.array(rows.labels_R(task) > 0, mask=~rows.known_R(task))
        columns[f"logit_{task}"] = rows.logits_R(task).astype(np.float32)
    if schema.domain is not None:
        columns["domain"] = rows.domains_R().astype(np.int32)
    return columns


def task_figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures of each label that tables show."""
    if "tasks" not in evaluation:
        return {}

    def kept(one: Mapping[str, Any]) -> dict[str, Any]:
        return {key: one[key] for key in _KEPT}

    return {
        "tasks": {
            name: kept(task)
            | ({"joint": kept(task["joint"])} if "joint" in task else {})
            | {key: {name: kept(one) for name, one in task[key].items()} for key in ("domains",) if key in task}
            | ({"macro_auc": task["macro"]["auc"]} if "macro" in task else {})
            for name, task in evaluation["tasks"].items()
        }
    }


def slice_figures(test: Mapping[str, Any], of: Slice, schema: Schema) -> dict[str, Any]:
    """Those of one table."""
    task = test["tasks"][schema.tasks[of.task].name]
    if of.joint:
        task = task["joint"]
    if of.domain is not None and schema.domain is not None:
        task = task["domains"][schema.domain.names[of.domain]]
    return {key: value for key, value in task.items() if not isinstance(value, dict)}


def read_slice(path: Path, of: Slice, schema: Schema) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels and logits of the test rows that one table is of."""
    chain = schema.chain(schema.tasks[of.task].name) if of.joint else (of.task,)
    names = [f"{what}_{link}" for link in chain for what in ("label", "logit")]
    columns = [*names, *(["domain"] if of.domain is not None else [])]
    table = parquet.read_table(path, columns=columns, filters=[("split", "=", "test")])
    labels = [table[f"label_{link}"] for link in chain]
    known = [one.is_valid().to_numpy() for one in labels]
    positive = [one.fill_null(pa.scalar(False)).to_numpy() for one in labels]
    all_R, known_R = joint_labels(np.stack(positive, axis=1), np.stack(known, axis=1))
    if of.domain is not None:
        known_R &= table["domain"].to_numpy() == of.domain
    logits = [table[f"logit_{link}"].to_numpy().astype(np.float64) for link in chain]
    logits_R = joint_logits(logits) if of.joint else logits[0]
    return all_R[known_R], logits_R[known_R]
