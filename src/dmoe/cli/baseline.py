"""`dmoe baseline`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dmoe.cli import completion
from dmoe.cli.common import JsonOption, print_json, show_path, stderr
from dmoe.errors import Interrupted

HELP = """Fit a simple model on the splits of a data set: what a D-MoE has to beat.

`logistic` is a logistic regression on one-hot ids (hashed above 4 million) and binned numbers, its L2 chosen on the
valid split; `lightgbm` gradient-boosted trees with native categories (needs `pip install 'dmoe[baselines]'`).
`dmoe report`, `compare`, `evaluate` and `predict` take the folder like that of a run.

\b
Examples:
  dmoe baseline DATA --output runs/logistic
  dmoe baseline DATA --kind lightgbm --output runs/trees
  dmoe compare runs/logistic runs/first
"""


def command(
    data: Annotated[Path, typer.Argument(help="Data set folder made by `dmoe prepare`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    kind: Annotated[str, typer.Option(help="logistic or lightgbm.", autocompletion=completion.baselines)] = "logistic",
    seed: Annotated[int, typer.Option(min=0, help="Of the trees' samples; the regression draws nothing.")] = 2025,
    memory_gb: Annotated[float, typer.Option(min=0.1, help="Memory for the rows; the latest that fit are used.")] = 4.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the baseline that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    from dmoe.baselines.folder import fit_baseline
    from dmoe.baselines.models import KINDS, NAMES
    from dmoe.disk.files import read_json
    from dmoe.errors import ConfigError, nearest

    known = next((one for one in KINDS if one == kind), None)
    if known is None:
        raise ConfigError(f"--kind {kind}: must be {' or '.join(KINDS)}{nearest(kind, KINDS)}")
    try:
        found = fit_baseline(
            known, data, output, seed=seed, overwrite=overwrite, memory_gb=memory_gb, tell=stderr.print
        )
    except KeyboardInterrupt:
        raise Interrupted(f"{output}: interrupted; the same command starts again") from None
    metrics = read_json(found.path / "metrics.json")
    if as_json:
        print_json({"baseline": str(found.path), "kind": known, **metrics})
        return
    print_scores(metrics)
    typer.echo(f"{NAMES[known]}: {show_path(found.path)} ({metrics['seconds']:.0f} s)")


def print_scores(metrics: dict[str, Any]) -> None:
    for split in ("valid", "test"):
        if split in metrics:
            typer.echo(f"{split:5} AUC {metrics[split]['auc']:.4f}  logloss {metrics[split]['logloss']:.4f}")
