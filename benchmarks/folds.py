"""`dmoe train d-moe` with no other option on random folds of a log, beside the two simple models of `dmoe baseline`.

    python -m benchmarks.folds LOG --config data.yaml --output FOLDER [--folds 5] [--seeds 1,2,3] [--threads 1]

LOG is a text log with a header, a row a line. Its rows are shuffled once and cut into folds; each is the test split of
one data set, a tenth of all rows, drawn from the rest, its valid split. What FOLDER holds already is not repeated.
Writes folds.md there: test AUC and logloss of each fold (mean over seeds), and the difference from each simple model
with its 95 % interval by Student's t over the folds. Folds share training rows: the interval is a little too narrow.
"""

import argparse
import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.arguments import positive
from dmoe.baselines.folder import fit_baseline
from dmoe.config.data import SplitRule, read_data_config
from dmoe.config.run import load_config
from dmoe.disk.files import read_json
from dmoe.experiments.statistics import Spread, compare_values
from dmoe.prepare.prepare import prepare
from dmoe.training.loop import train

MODELS = {"d-moe": "`dmoe train d-moe`", "logistic": "logistic regression", "lightgbm": "LightGBM"}
_VALID = 0.1
_SHUFFLE_SEED = 1


def main() -> None:
    parser = fold_parser("folds", __doc__)
    parser.add_argument("--seeds", default="1,2,3")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in MODELS}
    ratios = []
    for number, data in enumerate(data_sets(options), 1):
        runs = []
        for seed in map(int, options.seeds.split(",")):
            run = options.output / f"run-{number}-{seed}"
            if not (run / "metrics.json").is_file():
                print(f"fold {number}, seed {seed}", flush=True)
                train(load_config("d-moe", [f"training.seed={seed}"]), data, run, resume=run.is_dir())
            runs.append(run)
            after = read_json(run / "calibration.json")["splits"]["test"]["after"]
            ratios.append(after["predicted_to_observed"])
        scores["d-moe"].append(mean_score(runs))
        for kind in ("logistic", "lightgbm"):
            folder = options.output / f"{kind}-{number}"
            if not (folder / "metrics.json").is_file():
                fit_baseline(kind, data, folder)
            scores[kind].append(mean_score([folder]))
    (options.output / "folds.md").write_text(table(scores, ratios))


def fold_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark on folds, which `data_sets` reads."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("log", type=Path)
    parser.add_argument("--config", type=Path, required=True, help="data.yaml of the log; its split is replaced")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folds", type=positive, default=5)
    parser.add_argument("--threads", type=positive, default=1)
    return parser


def data_sets(options: argparse.Namespace) -> Iterator[Path]:
    """The data set of each fold, prepared if it is not there."""
    config = read_data_config(options.config)
    config = config.model_copy(update={"split": SplitRule(kind="given")})
    for number, inputs in enumerate(written(options.log, options.output / "rows", options.folds), 1):
        data = options.output / f"data-{number}"
        if not data.is_dir():
            prepare(config, inputs, data)
        yield data


def written(log: Path, folder: Path, folds: int) -> list[list[str]]:
    """The inputs of `prepare` for each fold, their rows as the log has them."""
    with gzip.open(log, "rb") if log.suffix == ".gz" else log.open("rb") as file:
        header, *rows = file.read().splitlines(keepends=True)
    folder.mkdir(parents=True, exist_ok=True)
    order_R = np.random.default_rng(_SHUFFLE_SEED).permutation(len(rows))
    parts = np.array_split(order_R, folds)
    inputs = []
    for number, test in enumerate(parts, 1):
        rest_R = np.concatenate(parts[number:] + parts[: number - 1])
        valid, kept = np.split(rest_R, [round(_VALID * len(rows))])
        files = []
        for split, members in (("train", kept), ("valid", valid), ("test", test)):
            path = folder / f"{number}-{split}.csv"
            path.write_bytes(header + b"".join(rows[row].rstrip(b"\r\n") + b"\n" for row in members))
            files.append(f"{split}={path}")
        inputs.append(files)
    return inputs


def mean_score(folders: list[Path]) -> tuple[float, float]:
    """Test AUC and logloss, mean over runs."""
    found = [read_json(folder / "metrics.json")["test"] for folder in folders]
    return float(np.mean([one["auc"] for one in found])), float(np.mean([one["logloss"] for one in found]))


def table(scores: dict[str, list[tuple[float, float]]], ratios: list[float]) -> str:
    folds = range(1, len(scores["d-moe"]) + 1)
    lines = ["| | " + " | ".join(f"fold {fold}" for fold in folds) + " | mean ± sd | `d-moe` minus this |"]
    lines.append("|---" * (len(folds) + 3) + "|")
    for name, title in MODELS.items():
        for place, metric in enumerate(("AUC", "logloss")):
            own = [one[place] for one in scores[name]]
            spread = Spread.of(own)
            cells = [f"{value:.4f}" for value in own] + [f"{spread.mean:.4f} ± {spread.std or 0:.4f}"]
            found = compare_values(own, [one[place] for one in scores["d-moe"]]) if name != "d-moe" else None
            cells.append(f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]" if found else "")
            lines.append(f"| {title}, {metric} | " + " | ".join(cells) + " |")
    lines.append(f"\npredicted/observed: {np.mean(ratios):.3f} ± {np.std(ratios, ddof=1):.3f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
