"""`dmoe compare`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dmoe.cli.common import JsonOption, print_json, show_path, stderr, warn

HELP = """Compare two runs on the same labelled rows, to decide which one to serve.

AUC and logloss of both with the 95% interval of their paired difference (AUC: DeLong), calibration, and a table by
the values of fields. Of several labels these are of the first one's main label, and each label that both predict
follows with its own figures. Differences are SECOND minus FIRST. Runs that were trained on different data sets, such
as two days, are compared on a raw log that neither has seen (--log).

\b
Examples:
  dmoe compare runs/first runs/second --segment site
  dmoe compare runs/monday runs/tuesday --log wednesday.csv --json
"""


def command(
    first: Annotated[Path, typer.Argument(help="Run folder or baseline, the one in use.")],
    second: Annotated[Path, typer.Argument(help="Run folder or baseline, the candidate.")],
    log: Annotated[
        list[Path] | None,
        typer.Option(help="Raw labelled log to compare on, or folder of them; may be repeated. Default: a split."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set that both were trained on.")] = "test",
    data: Annotated[Path | None, typer.Option(help="Data set folder, if it has moved.")] = None,
    segment: Annotated[
        list[str] | None, typer.Option(help="Categorical field to break the figures down by; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    from dmoe.evaluation.compare import compare_runs, worse_segments
    from dmoe.evaluation.scored import open_scored
    from dmoe.metrics.paired import SIGNIFICANCE
    from dmoe.tokens.unseen import Finding

    found = compare_runs(
        open_scored(first), open_scored(second), logs=log or (), split=split, data=data, segments=segment or ()
    )
    worse = worse_segments(found)
    for run, findings in zip((first, second), found["far_above"], strict=True):
        for one in findings:
            warn(f"{show_path(run)}: {Finding(**one).text()}")
    if as_json:
        print_json({**found, "worse_segments": worse})
        return
    typer.echo(f"{found['rows']} rows, {found['positives']} clicks")
    for name, sign in (("auc", 1), ("logloss", -1)):
        one = found[name]
        typer.echo(f"{name:8} {_text(one)}: {_verdict(one, sign, SIGNIFICANCE)}")
    for name in ("expected_calibration_error", "predicted_to_observed"):
        values = " -> ".join(f"{one[name]:.4f}" for one in found["calibration"])
        typer.echo(f"{name.replace('_', ' ')}: {values}")
    for task, scores in found.get("tasks", {}).items():
        typer.echo(f"\n{task}: {scores['rows']} rows, {scores['positives']} of them 1")
        if scores["auc"] is None:
            typer.echo("  not compared: these rows are not of two classes")
            continue
        for name, sign in (("auc", 1), ("logloss", -1)):
            one = scores[name]
            typer.echo(f"  {name:8} {_text(one)}: {_verdict(one, sign, SIGNIFICANCE)}")
        values = " -> ".join(f"{one['predicted_to_observed']:.4f}" for one in scores["calibration"])
        typer.echo(f"  predicted to observed: {values}")
    for field, table in found["segments"].items():
        typer.echo(f"\n{field}")
        for row in table:
            auc = "no AUC: one class" if row["auc"] is None else f"AUC {row['auc']['difference']:+.4f}"
            typer.echo(
                f"  {row['value'][:24]:24} {row['rows']:>9} rows  click rate {row['click_rate']:.4f}  predicted "
                f"{row['predicted'][0]:.4f} -> {row['predicted'][1]:.4f}  logloss {_text(row['logloss'])}  {auc}"
            )
    for place, run, faults in zip(("FIRST", "SECOND"), (first, second), found["faults"], strict=True):
        for line in faults:
            stderr.print(f"warning: {place}, {show_path(run)}: {line}")
    if found["segments"]:
        named = ", ".join(f"{field} {value}" for field, value in worse)
        typer.echo(f"\nsegments with worse logloss beyond chance: {named or 'none'}")


def _text(one: dict[str, Any]) -> str:
    return (
        f"{one['first']:.5f} -> {one['second']:.5f}  {one['difference']:+.5f} "
        f"[{one['low']:+.5f}, {one['high']:+.5f}] p {one['p']:.2g}"
    )


def _verdict(one: dict[str, Any], sign: int, significance: float) -> str:
    if one["p"] >= significance:
        return "not resolved on these rows"
    return "SECOND is better" if one["difference"] * sign > 0 else "SECOND is worse"
