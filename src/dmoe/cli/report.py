"""`dmoe report`."""

from pathlib import Path
from typing import Annotated

import typer

from dmoe.cli.common import JsonOption, print_json, show_path

HELP = """One self-contained HTML page about one run or several, side by side, or about an experiment or a study.

Differences are to the first run. The page shows what the folders hold and needs no network to be read. Of a folder
of `dmoe experiment` its tables (Markdown, LaTeX) and figures (SVG, PNG) are written into the folder as well.

\b
Examples:
  dmoe report runs/me -o me.html
  dmoe report runs/se runs/me runs/me-loss -o comparison.html
  dmoe report experiments/criteo -o experiments.html
  dmoe report experiments/criteo -o experiments.md
  dmoe report studies/criteo -o study.html
"""


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Run folders made by `dmoe train`, or one made by `dmoe experiment` or `dmoe tune`."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page to write; ends in .html, or .md of an experiment.")
    ] = Path("report.html"),
    as_json: JsonOption = False,
) -> None:
    from dmoe.errors import ConfigError
    from dmoe.experiments.folder import Folder
    from dmoe.report import write_report
    from dmoe.report.experiment import write_experiment_report
    from dmoe.report.tuning import write_study_report
    from dmoe.tuning.folder import StudyFolder

    for is_one, write, name in (
        (Folder.is_one, write_experiment_report, "an experiment"),
        (StudyFolder.is_one, write_study_report, "a study"),
    ):
        if any(is_one(run) for run in runs):
            if len(runs) > 1:
                raise ConfigError(f"the folder of {name} stands alone in a report; name it without other folders")
            write(runs[0], output)
            break
    else:
        write_report(runs, output)
    if as_json:
        print_json({"report": str(output)})
    else:
        typer.echo(f"report: {show_path(output)}")
