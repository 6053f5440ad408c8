"""`dmoe generate`: a planted click log."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dmoe.cli.common import JsonOption, print_json, show_path, stderr

HELP = """Write a planted click log whose Bayes-optimal AUC and logloss are known.

Beside OUT come .truth.json (what the best possible model reaches on each split), .truth.parquet (the click
probability of every row) and .data.yaml (for dmoe prepare); with preset production also .vectors.parquet, the
vectors of a pretrained field. The suffix of OUT chooses the format: .csv, .tsv or .txt, each also with .gz, or
.parquet.

Examples:

  dmoe generate toy.csv --rows 400000 --preset toy

  dmoe prepare --config toy.data.yaml --input toy.csv --output data
"""


def command(
    out: Annotated[Path, typer.Argument(help="The log to write.", show_default=False)],
    rows: Annotated[int, typer.Option(help="Number of rows, at least 100.")] = 1_000_000,
    preset: Annotated[str, typer.Option(help="Shape of the log: avazu, criteo, production or toy.")] = "toy",
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.")] = 0,
    as_json: JsonOption = False,
) -> None:
    from dmoe.synthetic.generate import generate

    with stderr.status(f"generating {rows:,} rows"):
        files, truth = generate(out, rows=rows, preset=preset, seed=seed)
    if as_json:
        print_json({"files": {name: str(path) for name, path in asdict(files).items() if path is not None}, **truth})
        return
    typer.echo(f"{show_path(files.log)}: {rows:,} rows of preset {preset}, seed {seed}")
    for split, figures in truth["splits"].items():
        typer.echo(_line(split, figures))
    typer.echo(f"next: dmoe prepare --config {show_path(files.config)} --input {show_path(out)} --output data")


def _line(split: str, figures: dict[str, Any]) -> str:
    auc = figures["bayes_auc"]
    return (
        f"  {split}: {figures['rows']:,} rows, click rate {figures['click_rate']:.4f}, best possible "
        f"AUC {'none (one class)' if auc is None else f'{auc:.6f}'}, logloss {figures['bayes_logloss']:.6f}"
    )
