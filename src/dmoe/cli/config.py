"""`dmoe config`."""

from pathlib import Path
from typing import Annotated

import typer

from dmoe.cli import completion
from dmoe.errors import UserError

HELP = """Print a resolved run configuration, every default spelled out.

Without a name it lists the presets that ship with dmoe.

\b
Examples:
  dmoe config
  dmoe config --preset d-moe > run.yaml
  dmoe config --preset d-moe training.epochs=3
  dmoe config --preset ple --drawing ple.svg > ple.yaml
"""


def command(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[OVERRIDES]...", help="key.path=value")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A preset's name, or a YAML file to resolve and check.", autocompletion=completion.configurations
        ),
    ] = None,
    drawing: Annotated[Path | None, typer.Option(help="Draw the model into this SVG file too.", dir_okay=False)] = None,
) -> None:
    from dmoe.config.run import load_config, preset_summary, presets
    from dmoe.nn.experts.options import check_experts

    if preset is None and not overrides and drawing is None:
        for name in presets():
            typer.echo(f"{name:20} {preset_summary(name)}")
        return
    config = load_config(preset, overrides or [])
    check_experts(config.model.experts, preset or "configuration")
    if drawing is not None:
        from dmoe.disk.files import written_aside
        from dmoe.report.drawing import model_drawing

        if drawing.suffix != ".svg":
            raise UserError(f"{drawing}: a drawing is written as .svg")
        with written_aside(drawing) as aside:
            aside.write_text(model_drawing(config), encoding="utf-8")
    typer.echo(config.to_yaml(), nl=False)
