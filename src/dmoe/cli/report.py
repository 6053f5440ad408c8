"""`dmoe report`."""

from pathlib import Path
from typing import Annotated

import typer

from dmoe.cli.common import JsonOption, print_json, show_path

HELP = """One self-contained HTML page about one run or several, side by side.

Differences are to the first run. The page shows what the run folders hold and needs no network to be read.

\b
Examples:
  dmoe report runs/me -o me.html
  dmoe report runs/se runs/me runs/me-loss -o comparison.html
"""


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders made by `dmoe train`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write; ends in .html.")] = Path(
        "report.html"
    ),
    as_json: JsonOption = False,
) -> None:
    from dmoe.report import write_report

    write_report(runs, output)
    if as_json:
        print_json({"report": str(output)})
    else:
        typer.echo(f"report: {show_path(output)}")
