"""`dmoe evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from dmoe.cli.common import JsonOption, cec_text, cka_text, print_json, warn

HELP = """AUC, logloss, calibration, cross-expert correlation, gate and expert statistics of a run.

Writes RUN/evaluation/SPLIT.json, which `dmoe report` shows.

\b
Examples:
  dmoe evaluate runs/first
  dmoe evaluate runs/first --split test --split train --json
"""


def command(
    run: Annotated[Path, typer.Argument(help="Run folder or baseline.")],
    split: Annotated[list[str] | None, typer.Option(help="Split to evaluate; may be repeated. Default: all.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set folder, if it has moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    from dmoe.baselines.folder import Baseline, evaluate_baseline
    from dmoe.evaluation.evaluate import evaluate_run
    from dmoe.tokens.unseen import Finding
    from dmoe.weights.run import Run

    if Baseline.is_one(run):
        found = evaluate_baseline(Baseline.open(run), splits=split, data=data)
    else:
        found = evaluate_run(Run.open(run), splits=split, data=data, device=device)
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
