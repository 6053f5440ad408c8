"""Two configurations, several seeds of each: what the second is better by on test, with both kinds of chance counted.

    python -m benchmarks.seeds --first runs/single-* --second runs/d-moe-*

The runs of either stand in the order of their seeds. Statistics: docs/experiments.md.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from dmoe.evaluation.evaluate import scored_rows
from dmoe.experiments.statistics import CellScores, Compared, Spread, compare_auc, compare_logloss
from dmoe.shards.batch import SCORING_ROWS
from dmoe.shards.reader import read_once
from dmoe.weights.run import Run


def scores_of(run: Run) -> CellScores:
    """Labels and logits of the test rows."""
    reader = read_once(run.data_folder(), "test", batch_size=SCORING_ROWS)
    rows = scored_rows(run.load_model(), reader, torch.device("cpu")).of_task()
    return CellScores(rows.labels_R > 0, rows.logits_R)


def line(name: str, values: list[float]) -> str:
    spread = Spread.of(values)
    deviation = "" if spread.std is None else f" ± {spread.std:.5f}"
    return f"| {name} | {spread.mean:.5f}{deviation} |"


def difference(name: str, found: Compared) -> str:
    return f"| {name} | {found.difference:+.5f} | {found.low:+.5f} to {found.high:+.5f} | {found.p:.2g} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__)
    parser.add_argument("--first", type=Path, nargs="+", required=True)
    parser.add_argument("--second", type=Path, nargs="+", required=True)
    options = parser.parse_args()
    runs = [[Run.open(path) for path in paths] for paths in (options.first, options.second)]
    seeds = [[run.config.training.seed for run in each] for each in runs]
    if seeds[0] != seeds[1]:
        parser.error(f"the seeds of the two differ: {seeds[0]} and {seeds[1]}")
    first, second = ([scores_of(run) for run in each] for each in runs)
    for name, each in (("first", first), ("second", second)):
        print(line(f"{name}, test AUC", [one.auc for one in each]))
        print(line(f"{name}, test logloss", [float(np.mean(one.losses_R)) for one in each]))
    pairs = list(zip(seeds[0], first, second, strict=True))
    print(difference("AUC", compare_auc(pairs)))
    print(difference("logloss", compare_logloss(pairs)))


if __name__ == "__main__":
    main()
