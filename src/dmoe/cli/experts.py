"""`dmoe experts`."""

import inspect
from importlib.metadata import entry_points
from typing import Any

import typer

from dmoe.cli.common import JsonOption, print_json

HELP = """List the experts: what each computes and the options that `model.experts` may set."""


def command(as_json: JsonOption = False) -> None:
    from dmoe.nn.experts import EXPERTS, expert_class

    kinds = sorted({*EXPERTS, *(entry.name for entry in entry_points(group="dmoe.experts"))})
    listed: list[dict[str, Any]] = []
    for kind in kinds:
        cls = expert_class(kind)
        options = {
            name: {
                "type": inspect.formatannotation(parameter.annotation).replace("collections.abc.", ""),
                "default": parameter.default,
            }
            for name, parameter in cls.options().items()
        }
        listed.append({"kind": kind, "summary": (inspect.getdoc(cls) or "").split("\n")[0], "options": options})
    if as_json:
        print_json({"experts": listed})
        return
    for expert in listed:
        typer.echo(f"{expert['kind']}: {expert['summary']}")
        for name, option in expert["options"].items():
            typer.echo(f"    {name}: {option['type']} = {option['default']!r}")
