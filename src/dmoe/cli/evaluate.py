"""`dmoe evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dmoe.cli import completion
from dmoe.cli.common import JsonOption, cec_text, cka_text, print_json, warn

HELP = """AUC, logloss, calibration, cross-expert correlation, gate and expert statistics of a run.

Writes RUN/evaluation/SPLIT.json, which `dmoe report` shows.

\b
Examples:
  dmoe evaluate runs/first
  dmoe evaluate runs/first --split test --split train --json
  dmoe evaluate runs/first --group user
"""


def command(
    run: Annotated[Path, typer.Argument(help="Run folder or baseline.")],
    split: Annotated[
        list[str] | None,
        typer.Option(help="Split to evaluate; may be repeated. Default: all.", autocompletion=completion.splits),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data set folder, if it has moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    group: Annotated[
        str | None,
        typer.Option(help="Field whose values are groups, such as users: also the mean AUC inside them (GAUC)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    from dmoe.baselines.folder import Baseline, evaluate_baseline
    from dmoe.errors import UserError
    from dmoe.evaluation.evaluate import evaluate_run
    from dmoe.tokens.unseen import Finding
    from dmoe.weights.run import Run

    if Baseline.is_one(run):
        if group is not None:
            raise UserError(f"{run}: is a baseline, and --group is for runs; leave it out")
        found = evaluate_baseline(Baseline.open(run), splits=split, data=data)
    else:
        found = evaluate_run(Run.open(run), splits=split, data=data, device=device, group=group)
    for name, one in found.items():
        for finding in (one.get("unseen") or {}).get("far_above", ()):
            warn(f"{name}: {Finding(**finding).text()}")
    if as_json:
        print_json(found)
        return
    for name, one in found.items():
        typer.echo(
            f"{name}: {one['rows']} rows, AUC {one['auc']:.6f}, logloss {one['logloss']:.6f}, "
            f"calibration error {one['calibration']['expected_calibration_error']:.4f}, "
            f"predicted/observed {one['calibration']['predicted_to_observed']:.3f}"
        )
        for line in [*task_lines(one), *group_lines(one)]:
            typer.echo(f"  {line}")
        if not one.get("gate"):
            continue
        output = one["correlation"]["output"]
        cka = cka_text(one["similarity"]["output"]["mean"])
        typer.echo(f"  {cec_text(output['total'], output['total_noise_floor'])}, {cka}")
        for index, expert in enumerate(one["experts"]):
            removed, alone = one["removal"][index], one["alone"][index]
            typer.echo(
                f"  {expert['name']:14} gate {one['gate']['mean'][index]:.3f} ± {one['gate']['std'][index]:.3f}, "
                f"AUC without it {removed['auc']:.4f}, alone {alone['auc']:.4f}, "
                f"dead units {output['dead_columns'][index]} of {output['columns'][index]}"
            )


def task_lines(evaluation: dict[str, Any]) -> list[str]:
    """A line for each task, and for each of its domains."""
    from dmoe.schema import links

    lines = []
    tasks = evaluation.get("tasks", {})
    given = {name: task.get("given") for name, task in tasks.items()}
    for name, task in tasks.items():
        on = f" given {task['given']}" if "given" in task else ""
        lines += _part(f"{name}{on}", task)
        if "joint" in task:
            lines += _part(" and ".join(links(given, name)), task["joint"])
    return lines


def _part(title: str, one: dict[str, Any]) -> list[str]:
    lines = [f"{title}: {_scores(one)}"]
    lines += [f"  {domain}: {_scores(scores)}" for domain, scores in one.get("domains", {}).items()]
    if "macro" in one:
        macro = one["macro"]
        out = f", without {', '.join(macro['left_out'])}" if macro["left_out"] else ""
        lines.append(f"  mean of domains{out}: AUC {_figure(macro['auc'])}, logloss {_figure(macro['logloss'])}")
    return lines


def group_lines(evaluation: dict[str, Any]) -> list[str]:
    """AUC inside groups, a line for each task."""
    grouped = evaluation.get("grouped_auc")
    if grouped is None:
        return []
    lines = []
    for name, one in grouped["tasks"].items():
        what = f"{name}: AUC inside {grouped['field']}"
        if one is None:
            lines.append(f"{what}: no value has rows of both classes")
            continue
        lines.append(
            f"{what} {one['auc']:.6f} ({one['groups']:,} groups, {one['rows']:,} rows; {one['skipped_rows']:,} rows in "
            f"groups of one class, {grouped['rows_without_group']:,} of no known value)"
        )
    return lines


def _scores(one: dict[str, Any]) -> str:
    return (
        f"{one['rows']:,} rows, {one['positives']:,} positive, AUC {_figure(one['auc'])}, "
        f"logloss {_figure(one['logloss'])}, predicted/observed {_figure(one['predicted_to_observed'], 3)}"
    )


def _figure(value: float | None, digits: int = 6) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
