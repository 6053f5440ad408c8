"""From a raw log to an HTML report: what `make quickstart` runs.

Generates a log whose best possible AUC is known, prepares it, trains SE-MoE, ME-MoE and D-MoE (ME + de-correlation
loss) of CIN + CrossNet, evaluates them, and prints a table, with the logistic regression that each has to beat, and
where the report is. Each step is a `dmoe` command, printed as it runs, to be pasted and changed.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

MODELS = {
    "SE": ["se-moe"],
    "ME": ["me-moe"],
    "ME+Loss": ["d-moe"],
}
# The same sizes for all three, whatever `training.recipe: auto` would choose for the number of rows.
SMALLER = ["model.embedding_dim=8", "model.experts.0.units=[64]", "training.batch_size=2000", "training.epochs=4"]


def dmoe(*arguments: str) -> str:
    """Runs one command, shown first; its standard output is returned."""
    print("\n$ dmoe " + shlex.join(arguments), flush=True)
    command = [sys.executable, "-c", "from dmoe.cli.main import main; main()", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("quickstart"), help="folder to write")
    parser.add_argument("--rows", type=int, default=400_000, help="rows of the generated log")
    options = parser.parse_args()
    began = time.monotonic()
    folder: Path = options.output
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)

    log, data = folder / "log.csv", folder / "data"
    dmoe("generate", str(log), "--rows", str(options.rows), "--preset", "toy", "--seed", "0")
    dmoe("prepare", "--config", str(folder / "log.data.yaml"), "--input", str(log), "--output", str(data))
    runs = {}
    for name, preset in MODELS.items():
        runs[name] = folder / "runs" / preset[0]
        dmoe("train", *preset, *SMALLER, "--data", str(data), "--output", str(runs[name]), "--json")
    found = {
        name: json.loads(dmoe("evaluate", str(run), "--split", "test", "--json"))["test"] for name, run in runs.items()
    }
    report = folder / "report.html"
    dmoe("report", *map(str, runs.values()), "-o", str(report))

    best = json.loads((folder / "log.truth.json").read_text())["splits"]["test"]
    table = Table(title="Test split of the generated log")
    for column, justify in (("model", "left"), ("AUC", "right"), ("logloss", "right"), ("CEC", "right")):
        table.add_column(column, justify=justify)
    beside = json.loads((runs["SE"] / "comparison.json").read_text())
    paired = beside["splits"]["test"]
    table.add_row(beside["name"], f"{paired['auc']['first']:.4f}", f"{paired['logloss']['first']:.4f}", "")
    for name, one in found.items():
        cec = one["correlation"]["output"]["total"]
        table.add_row(name, f"{one['auc']:.4f}", f"{one['logloss']:.4f}", f"{cec:.4f}")
    table.add_row("best possible", f"{best['bayes_auc']:.4f}", f"{best['bayes_logloss']:.4f}", "")
    console = Console()
    console.print(table)
    console.print(f"report: {report}")
    console.print(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
