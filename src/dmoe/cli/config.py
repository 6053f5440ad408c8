"""`dmoe config`."""

from typing import Annotated

import typer

from dmoe.cli import completion

HELP = """Print a resolved run configuration, every default spelled out.

Without a name it lists the presets that ship with dmoe.

\b
Examples:
  dmoe config
  dmoe config --preset d-moe > run.yaml
  dmoe config --preset d-moe training.epochs=3
"""


def command(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[OVERRIDES]...", help="key.path=value")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A preset's name, or a YAML file to resolve and check.", autocompletion=completion.configurations
        ),
    ] = None,
) -> None:
    from dmoe.config.run import load_config, preset_summary, presets
    from dmoe.nn.experts.options import check_experts

    if preset is None and not overrides:
        for name in presets():
            typer.echo(f"{name:20} {preset_summary(name)}")
        return
    config = load_config(preset, overrides or [])
    check_experts(config.model.experts, preset or "configuration")
    typer.echo(config.to_yaml(), nl=False)
