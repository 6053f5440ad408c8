"""`dmoe generate`: a planted click log."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dmoe.cli import completion
from dmoe.cli.common import JsonOption, print_json, show_path, stderr

HELP = """Write a planted click log whose Bayes-optimal AUC and logloss are known.

Beside OUT come .truth.json (what the best possible model reaches on each split), .truth.parquet (the click
probability of every row) and .data.yaml (for dmoe prepare); with preset production also .vectors.parquet, the
vectors of a pretrained field. The suffix of OUT chooses the format: .csv, .tsv or .txt, each also with .gz, or
.parquet.

Presets tasks and domains have several labels, related as far as --relatedness says, and domains also domains
that are alike as far as --similarity says; the truth of each task and domain is in .truth.json too.

Examples:

  dmoe generate toy.csv --rows 400000 --preset toy

  dmoe prepare --config toy.data.yaml --input toy.csv --output data

  dmoe generate tasks.parquet --rows 400000 --preset tasks --relatedness 0.5
"""


def command(
    out: Annotated[Path, typer.Argument(help="The log to write.", show_default=False)],
    rows: Annotated[int, typer.Option(help="Number of rows, at least 100.")] = 1_000_000,
    preset: Annotated[
        str,
        typer.Option(
            help="Shape of the log: avazu, criteo, domains, production, tasks or toy.", autocompletion=completion.logs
        ),
    ] = "toy",
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.")] = 0,
    relatedness: Annotated[
        float | None,
        typer.Option(
            help="Of the further labels' logits with the first one's: 0 unrelated, 1 the same; else the preset's."
        ),
    ] = None,
    similarity: Annotated[
        float | None,
        typer.Option(help="Of what makes a click in each domain: 0 nothing in common, 1 the same; else the preset's."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    from dmoe.synthetic.generate import generate

    with stderr.status(f"generating {rows:,} rows"):
        files, truth = generate(
            out, rows=rows, preset=preset, seed=seed, relatedness=relatedness, similarity=similarity
        )
    if as_json:
        print_json({"files": {name: str(path) for name, path in asdict(files).items() if path is not None}, **truth})
        return
    typer.echo(f"{show_path(files.log)}: {rows:,} rows of preset {preset}, seed {seed}")
    for split, figures in truth["splits"].items():
        typer.echo(_line(split, figures, "click rate", figures["click_rate"]))
    for name, task in list(truth.get("tasks", {}).items())[1:]:
        figures = task["splits"]["test"]
        told = f"{name} given {task['given']}" if task["given"] is not None else name
        typer.echo(_line(f"test, {told}", figures, "rate", figures.get("rate", 0.0)))
    typer.echo(f"next: dmoe prepare --config {show_path(files.config)} --input {show_path(out)} --output data")


def _line(of: str, figures: dict[str, Any], rate: str, value: float) -> str:
    auc = figures.get("bayes_auc")
    logloss = figures.get("bayes_logloss")
    return (
        f"  {of}: {figures['rows']:,} rows, {rate} {value:.4f}, best possible "
        f"AUC {'none (one class)' if auc is None else f'{auc:.6f}'}, "
        f"logloss {'none (no rows)' if logloss is None else f'{logloss:.6f}'}"
    )
