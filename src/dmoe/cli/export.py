"""`dmoe export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dmoe.cli.common import JsonOption, print_json, show_path, stderr
from dmoe.errors import ConfigError

HELP = """Export a run as a model folder that scores raw rows, and prove that it is the same model.

The folder holds an ONNX graph that takes the fields as they are in the log (text, numbers, missing values), its
memory-mapped weights, and manifest.json: inputs, the largest difference from the run on its test split, the AUC of
both, and the checksum of every file. `dmoe serve` and `dmoe predict` take it.

\b
Examples:
  dmoe export runs/first -o models/first
  dmoe export runs/first -o models/small --tables int8
  dmoe export runs/first -o models/first --card --license apache-2.0
"""


class Tables(StrEnum):
    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


def command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")] = ...,  # type: ignore[assignment]
    tables: Annotated[Tables, typer.Option(help="How embedding weights are stored.")] = Tables.float32,
    max_graph_tokens: Annotated[
        int, typer.Option(help="A field with a larger vocabulary is looked up outside the graph, memory-mapped.")
    ] = 200_000,
    data: Annotated[Path | None, typer.Option(help="Data set folder, if it has moved.")] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write a model card too: README.md, as Hugging Face has it.")
    ] = False,
    license_name: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="The card's licence, as in apache-2.0; by default unknown.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model folder that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    from dmoe.evaluation.baseline import run_faults
    from dmoe.export.card import UNKNOWN_LICENSE, check_license
    from dmoe.export.write import export
    from dmoe.weights.run import Run

    if license_name is not None and not card:
        raise ConfigError("--license is of the model card; give --card too")
    licence = check_license(license_name or UNKNOWN_LICENSE) if card else None
    manifest = export(
        Run.open(run),
        output,
        tables=tables.value,
        max_graph_tokens=max_graph_tokens,
        data=data,
        overwrite=overwrite,
        card=licence,
    )
    faults = run_faults(run)
    if as_json:
        parity = manifest.parity.model_dump(exclude_none=True)
        outputs = {name: one.parity.model_dump(exclude_none=True) for name, one in manifest.outputs.items()}
        of_outputs = {"outputs": outputs} if outputs else {}
        print_json({"model": str(output), "version": manifest.version, **parity, **of_outputs, "faults": faults})
        return
    for line in faults:
        stderr.print(f"warning: {line}")
    for name, found in {name: one.parity for name, one in manifest.outputs.items()}.items() or [
        ("probability", manifest.parity)
    ]:
        typer.echo(
            f"{found.split}: {found.rows} rows, largest difference in {name} {found.max_abs_probability:.1e}, "
            f"AUC {found.auc_export:.6f} (run {found.auc_torch:.6f})"
        )
    typer.echo(f"model: {show_path(output)} (version {manifest.version})")
