"""`dmoe experts`."""

import inspect
import re
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer

from dmoe.cli.common import JsonOption, print_json

HELP = """List the experts: equation, source, options of `model.experts`, and cost; or describe one in full.

Cost is that of one row and of the options' defaults, without the alignment layer; a multiply-add is two operations.

\b
Examples:
  dmoe experts
  dmoe experts crossnet --fields 39 --dim 10
"""

# The last parenthesis of a docstring's first paragraph, if it names a year or a preprint.
_SOURCE = re.compile(r" \(([^()]*(?:(?:19|20)\d\d|arXiv)[^()]*)\)\.?$")


def command(
    kind: Annotated[str | None, typer.Argument(help="Expert to describe.", show_default=False)] = None,
    fields: Annotated[int, typer.Option(min=1, help="Number of fields for the cost.")] = 24,
    dim: Annotated[int, typer.Option(min=1, help="Width of the table for the cost.")] = 16,
    as_json: JsonOption = False,
) -> None:
    from dmoe.nn.experts import EXPERTS, expert_class

    known = sorted({*EXPERTS, *(entry.name for entry in entry_points(group="dmoe.experts"))})
    listed = [_describe(expert_class(one), one, fields, dim) for one in ([kind] if kind is not None else known)]
    if as_json:
        print_json({"fields": fields, "dim": dim, "experts": listed})
        return
    for expert in listed:
        typer.echo(f"{expert['kind']}: {expert['equation']}")
        if expert["source"]:
            typer.echo(f"    source: {expert['source']}")
        for name, option in expert["options"].items():
            typer.echo(f"    {name}: {option['type']} = {option['default']!r}")
        cost = expert["cost"]
        if cost:
            typer.echo(
                f"    {fields} fields of width {dim}: {cost['parameters']:,} parameters, {cost['flops']:,} operations "
                f"a row, {cost['out_features']:,} outputs"
            )
        else:
            typer.echo(f"    {fields} fields of width {dim}: {expert['unfit']}")
    if kind is not None:
        typer.echo(f"\n{listed[0]['documentation']}")


def _type_text(annotation: Any) -> str:
    """An option's type, as short as it can be written."""
    text = inspect.formatannotation(annotation).replace("collections.abc.", "").replace("typing.", "")
    return re.sub(r"Optional\[(.*)\]$", r"\1 | None", text)


def _describe(cls: Any, kind: str, fields: int, dim: int) -> dict[str, Any]:
    from dmoe.nn.cost import cost_of

    text = inspect.getdoc(cls) or ""
    summary = " ".join(text.split("\n\n")[0].split())
    source = _SOURCE.search(summary)
    cost, unfit = None, None
    try:
        expert = cls(fields, dim)
        cost = {**cost_of(expert, fields, dim)._asdict(), "out_features": expert.out_features}
    except ValueError as error:
        unfit = str(error)
    return {
        "kind": kind,
        "equation": summary[: source.start()] if source else summary.removesuffix("."),
        "source": source.group(1) if source else None,
        "options": {
            name: {
                "type": _type_text(parameter.annotation),
                "default": parameter.default,
            }
            for name, parameter in cls.options().items()
        },
        "cost": cost,
        "unfit": unfit,
        "documentation": text,
    }
