"""`dmoe experiment`."""

from pathlib import Path
from typing import Annotated

import typer

from dmoe.cli import completion
from dmoe.cli.common import JsonOption, print_json, show_path, stderr

HELP = """Repeat the paper's tables and figures on a data set, several seeds each.

NAMES are table1, table2, fig1, fig5, fig6, fig7, fig8, or all for these seven; and, beyond the paper, norms, controls,
alpha, experts, products, planted, or beyond for these six; growth is by itself. Each is a grid of runs; a run that
several of them need is made once. Where a model has a de-correlation loss, its alpha is searched on the validation
split.

growth trains SE, ME, ME with the loss and the single experts on the latest rows of one log, from few to all, each part
by the recipe that `training.recipe: auto` chooses for it (--size: by a fixed one), and shows what is gained against the
number of training rows. Valid and test stay the same rows.

tasks and domains are for data of several labels or domains: a model for each label by itself, Shared-Bottom, MMoE, PLE,
STEM, ESMM, Crocodile and D-MoE, each without a loss and with each of two, in a table for each label or domain.

A call that was interrupted, killed or ran out of budget is continued by the same call. At the end FOLDER holds
results.parquet and results.csv, tables, figures and report.html.

\b
Examples:
  dmoe experiment table1 --data DATA --output experiments/criteo --seeds 5
  dmoe experiment all beyond --data DATA --output experiments/criteo --seeds 5 --budget 8
  dmoe experiment growth --data DATA --output experiments/growth --rows 20000 --rows 200000 --rows 2000000 --seeds 3
  dmoe experiment tasks --data DATA --output experiments/tasks --seeds 5
  dmoe experiment planted --data DATA --truth log.truth.json --output experiments/planted
"""


def command(
    names: Annotated[
        list[str], typer.Argument(metavar="NAMES...", help="Experiments to run.", autocompletion=completion.experiments)
    ],
    data: Annotated[Path, typer.Option(help="Data set folder made by `dmoe prepare`, with all three splits.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, or to continue.")],
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="Seeds 1 to N for every cell.")] = 5,
    size: Annotated[
        str,
        typer.Option(
            help="Size of models and recipe: tiny, small, medium, movielens-100k, paper-avazu, paper-criteo, or recipe "
            "for what the log's rows choose; auto is small, or the paper's for logs of more than five million rows, "
            "and recipe for growth.",
            autocompletion=completion.sizes,
        ),
    ] = "auto",
    rows: Annotated[
        list[int] | None,
        typer.Option(
            "--rows",
            min=1,
            help="Training rows of a part that growth takes, the latest ones; may be repeated. "
            "Default: 10000, 30000, 100000 and so on, and all.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of every cell; may be repeated."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cells to run at once. Default: processors / threads.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a cell; results depend on it a little.")] = 1,
    memory: Annotated[
        float | None,
        typer.Option(min=0.0, help="GiB that cells may use together. Default: 80% of what there is for it."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0.0, help="Core-hours that this call may use; the next call goes on.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="truth.json of a generated log, to see whether experts recover its structures.")
    ] = None,
    keep_weights: Annotated[bool, typer.Option("--keep-weights", help="Keep the weights of finished cells.")] = False,
    as_json: JsonOption = False,
) -> None:
    from dmoe.errors import ConfigError, DmoeError
    from dmoe.experiments.display import TerminalDisplay
    from dmoe.experiments.results import write_results
    from dmoe.experiments.runner import Limits, Runner
    from dmoe.experiments.start import start
    from dmoe.experiments.summary import ExperimentSummary
    from dmoe.machine.limits import memory_bytes, usable_threads
    from dmoe.report.experiment import write_experiment_report
    from dmoe.report.experiment_tables import scores

    folder = start(
        names, data=data, output=output, seeds=seeds, size=size, parts=rows or (), changes=changes or (), truth=truth
    )
    available = memory_bytes() if memory is None else int(memory * 2**30)
    if available is None:
        raise ConfigError("this system does not say how much memory there is; pass --memory")
    limits = Limits(
        jobs=jobs or max(usable_threads() // threads, 1),
        threads=threads,
        memory=available if memory is not None else int(0.8 * available),
        core_seconds=budget * 3600 if budget is not None else None,
        keep_weights=keep_weights,
    )
    with TerminalDisplay(stderr, folder) as display:
        state = Runner(folder, limits, display).run()
    with stderr.status("computing statistics"):
        summary = ExperimentSummary(folder)
        write_results(summary)
        write_experiment_report(folder.path, folder.path / "report.html", summary)
    if as_json:
        print_json(
            {
                "folder": str(folder.path),
                "cells": state.expected,
                "finished": len(state.done),
                "failed": state.failed,
                "report": str(folder.path / "report.html"),
            }
        )
    else:
        for table in summary.tables:
            typer.echo(scores(table).markdown())
        page = show_path(folder.path / "report.html")
        typer.echo(f"{len(state.done)} of {state.expected} cells finished; report: {page}")
        if state.out_of_budget:
            typer.echo("the budget is used up; the same command continues")
    if state.failed:
        reasons = sorted(set(state.failed.values()))
        raise DmoeError(f"{len(state.failed)} cells failed and are tried again next time: {'; '.join(reasons)}")
