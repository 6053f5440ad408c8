"""`dmoe predict`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dmoe.cli.common import JsonOption, print_json, show_path, warn

HELP = """Score raw rows with a run or an exported model: one probability a row, in the order of the input.

The input has the format that the data was prepared from; the label may be absent. A value never seen in training,
or a missing one, is scored as such. Where far more values of a field are unseen or missing than in training's
held-out rows, a warning names it; with --strict nothing is written then, and the exit code is 2.

\b
Examples:
  dmoe predict runs/first new.csv -o predictions.parquet
  dmoe predict models/first new.parquet -o predictions.parquet
  dmoe predict runs/first day1.csv.gz day2.csv.gz -o predictions.csv
  dmoe predict models/first new.parquet -o predictions.parquet --keep request_id --keep ad --strict
"""


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="Run folder, or model folder of `dmoe export`.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="Raw logs, folders of them or glob patterns, read in this order."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="predictions.parquet or .csv to write.")] = ...,  # type: ignore[assignment]
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Column of the input to write before the scores, as it is; may be repeated."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Write nothing if a field has far more unseen or missing values.")
    ] = False,
    device: Annotated[str, typer.Option(help="For a run: auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="For a run: of matrix products; bfloat16 is faster where the processor has units for it."),
    ] = "float32",
    as_json: JsonOption = False,
) -> None:
    from dmoe.scoring.load import load, write_predictions

    scorer = load(run, device=device, precision=precision)
    done = write_predictions(scorer, inputs, output, keep=keep or [], strict=strict)
    for finding in done.counts.findings():
        warn(finding.text())
    if as_json:
        print_json({"predictions": str(output), "rows": done.rows, "fields": done.counts.values()})
    else:
        typer.echo(f"{done.rows} predictions: {show_path(output)}")
