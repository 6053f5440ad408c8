"""`dmoe correlation`."""

from pathlib import Path
from typing import Annotated

import typer

from dmoe.cli.common import JsonOption, cec_text, cka_text, print_json

HELP = """Cross-expert correlation of a run (eq. 13-14): matrix per location, noise floor, dead units; and linear CKA.

\b
Examples:
  dmoe correlation runs/first
  dmoe correlation runs/first --split valid --json
"""


def command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "test",
    data: Annotated[Path | None, typer.Option(help="Data set folder, if it has moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    from dmoe.evaluation.evaluate import correlate_run
    from dmoe.weights.run import Run

    found = correlate_run(Run.open(run), split=split, data=data, device=device)
    if as_json:
        print_json(found)
        return
    names = found["experts"]
    typer.echo(f"split {split}, {found['rows']} rows, noise floor {found['noise_floor']:.5f}")
    for location, one in found["correlation"].items():
        typer.echo(f"\n{location}: {cec_text(one['total'], one['total_noise_floor'])}, summed over pairs")
        _show(names, one["matrix"])
        dead = ", ".join(
            f"{name} {count} of {width}"
            for name, count, width in zip(names, one["dead_columns"], one["columns"], strict=True)
        )
        typer.echo(f"  dead units: {dead}")
    similar = found["similarity"]["output"]
    typer.echo(f"\noutput: {cka_text(similar['mean'])} (unbiased), averaged over pairs")
    _show(names, similar["matrix"])


def _show(names: list[str], matrix: list[list[float | None]]) -> None:
    """One line for each expert, with its value for each expert before it."""
    for row in range(1, len(names)):
        values = [(names[column], matrix[row][column]) for column in range(row)]
        cells = "  ".join(f"{name} {'undefined' if value is None else f'{value:.5f}'}" for name, value in values)
        typer.echo(f"  {names[row]:14} with {cells}")
