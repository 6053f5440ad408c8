"""results.parquet and results.csv, comparisons.csv and search.csv: what others may want to compute with."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from pyarrow import parquet

from dmoe.disk.files import written_aside
from dmoe.experiments.plan import CHOSEN_BY
from dmoe.experiments.summary import ExperimentSummary

_TYPES = {"text": pa.string(), "number": pa.float64(), "count": pa.int64(), "yes/no": pa.bool_()}


def _schema(columns: dict[str, str]) -> pa.Schema:
    return pa.schema([pa.field(name, _TYPES[kind]) for name, kind in columns.items()])


_RESULTS = _schema(
    {
        **dict.fromkeys(("experiment", "model", "variant"), "text"),
        "seed": "count",
        "alpha": "number",
        **dict.fromkeys(("cell", "split", "metric"), "text"),
        "value": "number",
    }
)
_COMPARISONS = _schema(
    {
        **dict.fromkeys(("experiment", "row", "better", "than", "metric"), "text"),
        **dict.fromkeys(("difference", "low", "high", "p", "holm_p"), "number"),
        "seeds": "count",
        **dict.fromkeys(("seed_std", "rows_low", "rows_high", "rows_p"), "number"),
        **dict.fromkeys(("verdict", "claim"), "text"),
    }
)
_SEARCH = _schema(
    {
        **dict.fromkeys(("experiment", "model", "variant"), "text"),
        "seed": "count",
        **dict.fromkeys(("alpha", "score"), "number"),
        "score_is": "text",
        "chosen": "yes/no",
    }
)


def write_results(summary: ExperimentSummary) -> list[Path]:
    """Writes the files into the experiment folder and names them.

    `results` has one row for each experiment, model, variant, seed, split and metric; a run that several experiments
    share comes once for each, with the same `cell`.
    """
    folder = summary.folder.path
    results = pa.Table.from_pylist(_rows(summary), schema=_RESULTS)
    with written_aside(folder / "results.parquet") as aside:
        parquet.write_table(results, aside)
    written = [folder / "results.parquet"]
    for name, table in (
        ("results.csv", results),
        ("comparisons.csv", pa.Table.from_pylist(_comparisons(summary), schema=_COMPARISONS)),
        ("search.csv", pa.Table.from_pylist(_searches(summary), schema=_SEARCH)),
    ):
        with written_aside(folder / name) as aside:
            pa.csv.write_csv(table, aside)
        written.append(folder / name)
    return written


def _rows(summary: ExperimentSummary) -> list[dict[str, Any]]:
    found = []
    for table in summary.tables:
        for place in table.places.values():
            for seed, key in place.cells.items():
                known = {
                    "experiment": table.name,
                    "model": place.model,
                    "variant": place.variant,
                    "seed": seed,
                    "alpha": place.alpha,
                    "cell": key,
                }
                by_split = {"test": place.runs[seed]}
                if key in summary.finished:
                    cell = summary.finished[key]
                    by_split = {**cell["metrics"], "train": {"seconds": cell["seconds"], "steps": cell["steps"]}}
                    by_split["train"]["parameters"] = cell["parameters"]
                for split, metrics in by_split.items():
                    found += [
                        {**known, "split": split, "metric": metric, "value": float(value)}
                        for metric, value in metrics.items()
                        if isinstance(value, int | float)
                    ]
    return found


def _comparisons(summary: ExperimentSummary) -> list[dict[str, Any]]:
    found = []
    for table in summary.tables:
        for one in (*table.decided, *table.pooled, *table.slopes):
            compared = one.compared
            found.append(
                {
                    "experiment": table.name,
                    "row": one.row,
                    "better": one.better,
                    "than": one.than,
                    "metric": one.metric,
                    "difference": compared.difference,
                    "low": compared.low,
                    "high": compared.high,
                    "p": compared.p,
                    "holm_p": one.adjusted,
                    "seeds": compared.seeds,
                    "seed_std": compared.seed_std,
                    "rows_low": compared.rows_low,
                    "rows_high": compared.rows_high,
                    "rows_p": compared.rows_p,
                    "verdict": one.verdict,
                    "claim": one.claim,
                }
            )
    return found


def _searches(summary: ExperimentSummary) -> list[dict[str, Any]]:
    return [
        {
            "experiment": search.arm.experiment,
            "model": search.arm.model,
            "variant": search.arm.variant,
            "seed": search.seed,
            "alpha": alpha,
            "score": score,
            "score_is": CHOSEN_BY,
            "chosen": alpha == search.chosen,
        }
        for search in summary.searches()
        for alpha, score in search.tried
    ]
