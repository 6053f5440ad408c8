"""`dmoe drift`."""

from pathlib import Path
from typing import Annotated

import typer

from dmoe.cli.common import JsonOption, print_json, show_path, warn

HELP = """One HTML page on how validation, test and later rows differ from the first training rows.

For every field the shift of its distribution and the rate of unseen values, and the label rate along the rows; the
rows of each dmoe prepare --update stand apart. Fields with far more unseen or missing values than the first training
and validation rows are named, as dmoe prepare --update and dmoe predict name them.

\b
Examples:
  dmoe drift data -o drift.html
"""


def command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Data set folder made by `dmoe prepare`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write; ends in .html.")] = Path(
        "drift.html"
    ),
    as_json: JsonOption = False,
) -> None:
    from dmoe.report.drift import write_drift_report

    found = write_drift_report(data, output)
    if as_json:
        print_json({"report": str(output), **found})
        return
    for group in found["groups"]:
        first = found.get("label_rates", {"": found["label_rate"]})
        for label, rate in group.get("label_rates", {"": group["label_rate"]}).items():
            what = f"rate of {label}" if label else "label rate"
            typer.echo(f"{group['name']}: {what} {_rate(rate)} ({_rate(first[label])} in the first)")
        for field in group["fields"][:3]:
            unseen = "" if field["unseen"] is None else f", unseen {field['unseen']:.2%}"
            typer.echo(f"  {field['name']}: shift {field['shift']:.4f} bits (chance {field['chance']:.4f}){unseen}")
    for one in found["far_above"]:
        warn(f"{one['group']}: {one['text']}")
    typer.echo(f"drift report: {show_path(output)}")


def _rate(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate:.4f}"
