"""What each measure of the automatic recipe brings on prepared logs: a table of ablations over seeds.

    python -m benchmarks.real_logs DATA… --output FOLDER [--settings all,none] [--seeds 1,2,3] [--threads 1] [OVERRIDE…]

DATA are data set folders of `dmoe prepare`. Runs that FOLDER holds already are not repeated. Writes real-logs.json and
real-logs.md there: AUC, logloss and predicted/observed of the test split, and the difference from the first setting
with its 95 % interval over rows and seeds.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import positive
from dmoe.config.run import load_config
from dmoe.disk.files import read_json, write_json
from dmoe.evaluation.scored import score_rows
from dmoe.experiments.statistics import CellScores, Spread, compare_auc, compare_logloss
from dmoe.metrics.scores import probability_of
from dmoe.training.loop import train
from dmoe.weights.run import Run

# How each measure of the recipe is left out.
MEASURES = {
    "unseen tokens": ["training.unseen=0"],
    "base rate": ["training.base_rate=false"],
    "calibration": ["training.calibration=none"],
    "linear part": ["model.linear=false"],
    "field vectors": ["model.field_std=0"],
    "late loss": ["decorrelation.0.start_step=0", "decorrelation.0.warmup_steps=0"],
}


def left_out(*measures: str) -> tuple[str, list[str]]:
    """The preset without these measures."""
    return "d-moe", [word for measure in measures for word in MEASURES[measure]]


# Preset and overrides of each setting; the first that is asked for is what the others are compared with.
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "all": left_out(),
    **{f"without {name}": left_out(name) for name in MEASURES},
    "none": left_out(*MEASURES),
    **{f"only {name}": left_out(*(other for other in MEASURES if other != name)) for name in MEASURES},
    "without loss": ("d-moe", ["decorrelation=[]"]),
    "paper": ("paper", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_logs", description=__doc__)
    parser.add_argument("words", nargs="+", metavar="DATA|OVERRIDE", help="data set folders, and key.path=value words")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", default=",".join(SETTINGS), help=f"of: {', '.join(SETTINGS)}")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--threads", type=positive, default=1)
    options = parser.parse_args()
    names = options.settings.split(",")
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        parser.error(f"no setting '{unknown[0]}'; known: {', '.join(SETTINGS)}")
    torch.set_num_threads(options.threads)
    overrides = [word for word in options.words if "=" in word]
    logs = [Path(word) for word in options.words if "=" not in word]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    found = {log.name: measure_log(log, names, seeds, overrides, options.output) for log in logs}
    write_json(options.output / "real-logs.json", found)
    (options.output / "real-logs.md").write_text("\n".join(table(log, rows) for log, rows in found.items()))


def measure_log(
    log: Path, names: list[str], seeds: list[int], overrides: list[str], output: Path
) -> dict[str, dict[str, Any]]:
    """The figures of each setting on one log."""
    scores: dict[str, dict[int, CellScores]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        runs = [run_of(log, name, seed, overrides, output) for seed in seeds]
        scores[name] = {}
        for seed, run in zip(seeds, runs, strict=True):
            labels_R, logits_R, known_R = score_rows(run, [], "test", log).of((run.schema.label,))
            scores[name][seed] = CellScores(labels_R[known_R], logits_R[known_R])
        own = list(scores[name].values())
        metrics = [read_json(run.path / "metrics.json") for run in runs]
        figures[name] = {
            "auc": asdict(Spread.of([one.auc for one in own])),
            "logloss": asdict(Spread.of([float(one.losses_R.mean()) for one in own])),
            "predicted_to_observed": [float(probability_of(one.logits_R).mean() / one.labels_R.mean()) for one in own],
            "dead_columns": [one["test"]["dead_columns"] for one in metrics],
            "seconds": [one["seconds"] for one in metrics],
        }
        if name != names[0]:
            pairs = [(seed, scores[names[0]][seed], scores[name][seed]) for seed in seeds]
            figures[name]["auc_difference"] = asdict(compare_auc(pairs))
            figures[name]["logloss_difference"] = asdict(compare_logloss(pairs))
    return figures


def run_of(log: Path, name: str, seed: int, overrides: list[str], output: Path) -> Run:
    """The finished run of one setting and seed."""
    folder = output / "runs" / f"{log.name}-{name.replace(' ', '-')}-{seed}"
    if (folder / "metrics.json").is_file():
        return Run.open(folder)
    preset, own = SETTINGS[name]
    config = load_config(preset, [*own, *overrides, f"training.seed={seed}"])
    print(f"{log.name}: {name}, seed {seed}", flush=True)
    return train(config, log, folder, resume=folder.is_dir(), overwrite=False)


def table(log: str, figures: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"## {log}\n",
        "| setting | AUC | logloss | predicted/observed | difference of AUC | difference of logloss | dead units |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in figures.items():
        ratios = ", ".join(f"{ratio:.3f}" for ratio in row["predicted_to_observed"])
        dead = ", ".join("+".join(map(str, one or [])) for one in row["dead_columns"])
        cells = [f"{row[metric]['mean']:.4f} ± {row[metric]['std'] or 0:.4f}" for metric in ("auc", "logloss")]
        changes = [interval(row.get(f"{metric}_difference")) for metric in ("auc", "logloss")]
        lines.append("| " + " | ".join([name, *cells, ratios, *changes, dead]) + " |")
    return "\n".join(lines) + "\n"


def interval(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


if __name__ == "__main__":
    main()
