"""A model card as Hugging Face has it: README.md with YAML in front, from what a run folder knows."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dmoe.config.data import HELD_OUT
from dmoe.errors import ConfigError, DataError
from dmoe.evaluation.baseline import read_beside, run_faults
from dmoe.runs.records import (
    EvaluationRecord,
    FinalMetrics,
    TaskRecord,
    read_evaluations,
    read_final_metrics,
    read_warnings,
)
from dmoe.shards.folder import DataFolder
from dmoe.weights.run import Run

CARD = "README.md"
# What Hugging Face calls a licence that nobody named.
UNKNOWN_LICENSE = "unknown"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_Z95 = 1.959964


def check_license(name: str) -> str:
    """Raises: ConfigError if it is not written as an identifier of Hugging Face."""
    if not _LICENSE.fullmatch(name):
        raise ConfigError(f"--license: '{name}' is no identifier; write it as in apache-2.0, cc-by-4.0 or other")
    return name


def model_card(run: Run, data: Path, name: str, license_name: str = UNKNOWN_LICENSE) -> str:
    """The card of a finished run that is exported to a folder called `name`.

    Raises: DataError if the run has not been evaluated.
    """
    found = read_evaluations(run.path)
    evaluations = {split: found[split] for split in HELD_OUT if split in found}
    if not evaluations:
        raise DataError(f"{run.path}: has no evaluation; `dmoe evaluate {run.path}` makes one")
    source = Path(str(run.environment.get("data") or data)).name
    front = {
        "library_name": "dmoe",
        "license": license_name,
        "pipeline_tag": "tabular-classification",
        "tags": ["click-through-rate", "recommendation", "mixture-of-experts", "onnx"],
        "model-index": [{"name": name, "results": _results(run, evaluations, source)}],
    }
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1 << 30)
    sections = "\n".join(_body(run, DataFolder.read(data), evaluations, name, license_name, source))
    return f"---\n{text}---\n\n{sections}\n"


def auc_interval(auc: float, positives: int, negatives: int) -> tuple[float, float] | None:
    """The 95% interval of an AUC by Hanley and McNeil (1982), which needs no scores of rows; None without a class."""
    if not positives or not negatives:
        return None
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (first - auc**2) + (negatives - 1) * (second - auc**2)
    half = _Z95 * math.sqrt(max(variance, 0.0) / (positives * negatives))
    return max(0.0, auc - half), min(1.0, auc + half)


Evaluations = Mapping[str, EvaluationRecord]


def _labels(run: Run, evaluation: EvaluationRecord) -> Iterator[tuple[str, EvaluationRecord | TaskRecord]]:
    """Each label with its figures."""
    yield from evaluation.tasks.items() if evaluation.tasks else [(run.schema.label, evaluation)]


def _results(run: Run, evaluations: Evaluations, source: str) -> list[dict[str, Any]]:
    kind = re.sub(r"[^a-z0-9]+", "-", source.lower()).strip("-") or "log"
    return [
        {
            "task": {"type": "tabular-classification", "name": label},
            "dataset": {"name": source, "type": kind, "split": split},
            "metrics": [
                {"type": metric, "name": shown, "value": round(value, 6)}
                for metric, shown, value in (("roc_auc", "AUC", found.auc), ("log_loss", "logloss", found.logloss))
                if value is not None
            ],
        }
        for split, evaluation in evaluations.items()
        for label, found in _labels(run, evaluation)
        if found.auc is not None
    ]


def _body(
    run: Run, data: DataFolder, evaluations: Evaluations, name: str, license_name: str, source: str
) -> Iterator[str]:
    config, schema = run.config, run.schema
    labels = ", ".join(_plain(task.name) for task in schema.tasks)
    experts = ", ".join(str(one["kind"]) for one in config.model.mixed(schema))
    yield f"# {_plain(name)}\n"
    yield (
        f"Predicts {labels} of a row of a log: a mixture of {len(config.model.mixed(schema))} experts ({experts}) by "
        "[dmoe](https://arxiv.org/abs/2505.17925). It takes the fields as they stand in the log.\n"
    )
    yield "## Use\n"
    yield f"```bash\ndmoe predict {name} log.csv -o predictions.parquet\ndmoe serve {name}\n```\n"
    yield "## Data\n"
    yield f"Data set {_plain(source)}. Rows:\n"
    yield "| split | rows | rate of 1 |\n|---|---|---|"
    for split, one in data.summary["splits"].items():
        yield f"| {split} | {one['rows']:,} | {one['click_rate']:.4f} |"
    yield (
        f"\n{len(schema.categorical)} categorical and {len(schema.numeric)} numeric fields: "
        f"{', '.join(f'{_plain(field.name)}' for field in schema.fields)}.\n"
    )
    yield "## Metrics\n"
    yield "AUC with its 95 % interval (Hanley and McNeil 1982).\n"
    yield "| label | split | rows | AUC | 95 % interval | logloss | predicted / observed |"
    yield "|---|---|---|---|---|---|---|"
    for split, evaluation in evaluations.items():
        for label, found in _labels(run, evaluation):
            yield _metrics_row(label, split, found)
    yield from _beside(run)
    yield from _calibration(run, evaluations)
    yield "\n## Limits\n"
    yield (
        "- It was trained on the rows above. On rows of another time, place or placement its probabilities may be "
        "wrong: `dmoe drift` and `dmoe evaluate` show it."
    )
    last = list(evaluations.values())[-1]
    if last.unseen is not None:
        share = last.unseen.any.with_unseen.rows / max(last.rows, 1)
        yield f"- {share:.1%} of the last held-out rows have a value that training never saw or kept."
    yield from (f"- {_plain(fault)}." for fault in run_faults(run.path))
    yield from (f"- {_plain(text)}." for text in read_warnings(run.path) or ())
    yield "- What the log does not hold, the model does not know: whom it shows worse or better was not examined.\n"
    yield "## Training\n"
    final = read_final_metrics(run.path) or FinalMetrics(splits={})
    went = [
        *([] if final.parameters is None else [f"{final.parameters:,} parameters"]),
        *([] if final.steps is None else [f"{final.steps:,} steps of {config.training.batch_size:,} rows"]),
        *([] if final.seconds is None else [f"{final.seconds:,.0f} s"]),
        *([] if final.best_epoch is None else [f"best epoch {final.best_epoch:g}"]),
        f"seed {config.training.seed}",
        *(f"{_plain(str(key))} {_plain(str(value))}" for key, value in run.environment.get("versions", {}).items()),
    ]
    yield f"{', '.join(went)}.\n"
    yield "## Licence\n"
    yield "Not named." if license_name == UNKNOWN_LICENSE else f"{license_name}"


def _metrics_row(label: str, split: str, found: EvaluationRecord | TaskRecord) -> str:
    ratio = found.predicted_to_observed if isinstance(found, TaskRecord) else None
    if ratio is None and found.calibration is not None:
        ratio = found.calibration.predicted_to_observed
    auc, positives = found.auc, found.positives
    interval = None if auc is None else auc_interval(auc, positives, found.rows - positives)
    cells = [
        _plain(label),
        split,
        f"{found.rows:,}",
        "-" if auc is None else f"{auc:.4f}",
        "-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
        "-" if found.logloss is None else f"{found.logloss:.4f}",
        "-" if ratio is None else f"{ratio:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _beside(run: Run) -> Iterator[str]:
    beside = read_beside(run.path)
    if beside is None:
        return
    yield f"\nBeside a {beside['name']} on the same rows, the model minus it, with 95 % intervals:\n"
    yield "| label | split | AUC | logloss |\n|---|---|---|---|"
    for label, splits in (beside.get("tasks") or {run.schema.label: beside["splits"]}).items():
        for split, one in splits.items():
            cells = [
                f"{one[key]['difference']:+.4f} ({one[key]['low']:+.4f} to {one[key]['high']:+.4f})"
                for key in ("auc", "logloss")
            ]
            yield f"| {_plain(label)} | {split} | {cells[0]} | {cells[1]} |"


def _calibration(run: Run, evaluations: Evaluations) -> Iterator[str]:
    split, evaluation = list(evaluations.items())[-1]
    yield "\n## Calibration"
    for label, found in _labels(run, evaluation):
        calibration = found.calibration
        if calibration is None or calibration.expected_calibration_error is None:
            continue
        error = calibration.expected_calibration_error
        yield f"\n{_plain(label)} on {split}, expected calibration error {error:.4f}:\n"
        yield "| predicted | observed | rows |\n|---|---|---|"
        for one in calibration.bins:
            if one.mean_predicted is not None and one.click_rate is not None:
                yield f"| {one.mean_predicted:.4f} | {one.click_rate:.4f} | {one.rows:,} |"


def _plain(text: str) -> str:
    """Text of a log in a line or cell of Markdown: it makes no table, code, link or HTML of its own."""
    printable = "".join(one if one.isprintable() else "?" for one in text)
    return re.sub(r"([|`\[\]*_\\])", r"\\\1", printable.replace("&", "&amp;").replace("<", "&lt;"))
