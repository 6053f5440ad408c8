"""`dmoe quickstart`."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dmoe.errors import UserError

HELP = """From a generated log through trained models to an HTML report.

Generates a log whose best possible AUC is known, prepares it, trains SE-MoE, ME-MoE and D-MoE (ME + de-correlation
loss) of CIN + CrossNet, evaluates them, and prints a table, with the logistic regression that each has to beat, and
where the report is. Each step is a `dmoe` command, printed as it runs, to be pasted and changed.

\b
Examples:
  dmoe quickstart
  dmoe quickstart --output tried --rows 50000
"""

_MODELS = {"SE": "se-moe", "ME": "me-moe", "ME+Loss": "d-moe"}
# The same sizes for all three, whatever `training.recipe: auto` would choose for the number of rows.
_SMALLER = ["model.embedding_dim=8", "model.experts.0.units=[64]", "training.batch_size=2000", "training.epochs=4"]
_MADE_HERE = "log.truth.json"


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("quickstart"),
    rows: Annotated[int, typer.Option(min=1000, help="Rows of the generated log.")] = 400_000,
) -> None:
    from rich.table import Table

    from dmoe.cli.common import show_path, stdout

    began = time.monotonic()
    if output.exists():
        if not (output / _MADE_HERE).is_file():
            raise UserError(
                f"{output} exists and was not made by dmoe quickstart; remove it or choose another --output"
            )
        shutil.rmtree(output)
    output.mkdir(parents=True)
    log, data = output / "log.csv", output / "data"
    _dmoe("generate", str(log), "--rows", str(rows), "--preset", "toy", "--seed", "0")
    _dmoe("prepare", "--config", str(output / "log.data.yaml"), "--input", str(log), "--output", str(data))
    runs = {name: output / "runs" / preset for name, preset in _MODELS.items()}
    for name, preset in _MODELS.items():
        _dmoe("train", preset, *_SMALLER, "--data", str(data), "--output", str(runs[name]), "--json")
    found = {
        name: json.loads(_dmoe("evaluate", str(run), "--split", "test", "--json"))["test"] for name, run in runs.items()
    }
    report = output / "report.html"
    _dmoe("report", *map(str, runs.values()), "-o", str(report))

    best = json.loads((output / _MADE_HERE).read_text(encoding="utf-8"))["splits"]["test"]
    table = Table(title="Test split of the generated log")
    table.add_column("model")
    for column in ("AUC", "logloss", "CEC"):
        table.add_column(column, justify="right")
    beside = json.loads((runs["SE"] / "comparison.json").read_text(encoding="utf-8"))
    paired = beside["splits"]["test"]
    table.add_row(beside["name"], f"{paired['auc']['first']:.4f}", f"{paired['logloss']['first']:.4f}", "")
    for name, one in found.items():
        cec = one["correlation"]["output"]["total"]
        table.add_row(name, f"{one['auc']:.4f}", f"{one['logloss']:.4f}", f"{cec:.4f}")
    table.add_row("best possible", f"{best['bayes_auc']:.4f}", f"{best['bayes_logloss']:.4f}", "")
    stdout.print(table)
    stdout.print(f"report: {show_path(report)}")
    stdout.print(f"done in {time.monotonic() - began:.0f} s")


def _dmoe(*arguments: str) -> str:
    """Runs one command, shown first; its standard output is returned."""
    typer.echo("\n$ dmoe " + shlex.join(arguments))
    done = subprocess.run(
        [sys.executable, "-m", "dmoe", *arguments], stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise typer.Exit(done.returncode)
    return done.stdout
