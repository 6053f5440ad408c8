"""`dmoe experiment tasks` on random folds of a log of several labels, beside each label's logistic regression.

    python -m benchmarks.task_folds LOG --config data.yaml --output FOLDER [--folds 5] [--threads 1]

LOG is a text log with a header, a row a line. Its rows are shuffled once and cut into folds; each is the test split of
one data set, a tenth of all rows, drawn from the rest, its valid split, on which the alphas of that fold are chosen.
One run a cell. What FOLDER holds already is not repeated. Writes folds.md there: for each label test AUC and logloss,
mean and standard deviation over folds, and the differences of AUC from the single-task model and from the same model
without a loss, with 95 % intervals by Student's t over the folds. Folds share training rows: the interval is a little
too narrow.
"""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch

from benchmarks.folds import data_sets, fold_parser
from dmoe.baselines.folder import fit_baseline
from dmoe.disk.files import read_json
from dmoe.experiments.families import Slice, family
from dmoe.experiments.statistics import Spread, compare_values
from dmoe.schema import Schema

REGRESSION = "logistic regression"
# By table, model and loss: the value of each fold.
Values = dict[tuple[str, str, str], list[float]]


def main() -> None:
    options = fold_parser("task_folds", __doc__).parse_args()
    torch.set_num_threads(options.threads)
    folders = [options.output / f"experiment-{number}" for number in range(1, options.folds + 1)]
    for number, (data, folder) in enumerate(zip(data_sets(options), folders, strict=True), 1):
        command = [sys.executable, "-m", "dmoe", "experiment", "tasks", "--data", str(data), "--output", str(folder)]
        command += ["--seeds", "1", "--size", "recipe", "--jobs", "1", "--threads", str(options.threads)]
        subprocess.run(command, check=True)
        for task in Schema.read(data).tasks:
            baseline = options.output / f"regression-{task.name}-{number}"
            if not (baseline / "metrics.json").is_file():
                fit_baseline("logistic", data, baseline, label=task.name)
    schema = Schema.read(options.output / "data-1")
    found = {metric: values_of(folders, metric) for metric in ("auc", "logloss")}
    for metric, values in found.items():
        for place, task in enumerate(schema.tasks):
            metrics = [
                read_json(options.output / f"regression-{task.name}-{n}" / "metrics.json")["test"]
                for n in range(1, options.folds + 1)
            ]
            values[Slice(place).suffix, REGRESSION, "plain"] = [one[metric] for one in metrics]
    (options.output / "folds.md").write_text(tables(found["auc"], found["logloss"], schema))


def values_of(folders: list[Path], metric: str) -> Values:
    """A figure of the test split from every experiment, a fold each."""
    found: Values = {}
    for folder in folders:
        for row in pq.read_table(folder / "results.parquet").to_pylist():
            if row["split"] == "test" and row["metric"] == metric and row["experiment"].startswith("tasks-"):
                key = (row["experiment"].removeprefix("tasks-"), row["model"], row["variant"])
                found.setdefault(key, []).append(row["value"])
    return found


def tables(auc: Values, logloss: Values, schema: Schema) -> str:
    """Markdown: a table a label."""
    spec = family("tasks")
    lines: list[str] = []
    for suffix in dict.fromkeys(table for table, _, _ in auc):
        lines += [
            f"## {Slice.read(suffix).title(schema)}",
            "",
            "| model | AUC | logloss | AUC over single task | AUC over no loss |",
        ]
        lines.append("|---" * 5 + "|")
        for model in (REGRESSION, *spec.models):
            for loss in spec.losses:
                own = auc.get((suffix, model, loss))
                if own is None:
                    continue
                spread, losses = Spread.of(own), Spread.of(logloss[suffix, model, loss])
                cells = [model if loss == "plain" else f"{model}, {loss}"]
                cells += [f"{one.mean:.4f} ± {one.std or 0:.4f}" for one in (spread, losses)]
                for other in ((suffix, "Single task", "plain"), (suffix, model, "plain")):
                    than = None if other == (suffix, model, loss) else auc.get(other)
                    compared = None if than is None else compare_values(than, own)
                    cells.append(
                        f"{compared.difference:+.4f} [{compared.low:+.4f}, {compared.high:+.4f}]" if compared else ""
                    )
                lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
