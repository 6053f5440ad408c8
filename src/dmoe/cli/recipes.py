"""`dmoe recipes`."""

from typing import Annotated, Any

import typer

from dmoe.cli import completion
from dmoe.cli.common import JsonOption, print_json

HELP = """List the data recipes that ship with dmoe, or print one.

A recipe is a data.yaml for a public log: print it, change it, and give it to dmoe prepare --config.

\b
Examples:
  dmoe recipes
  dmoe recipes avazu_x4 > mine.yaml
"""


def command(
    name: Annotated[
        str | None, typer.Argument(help="Recipe to print.", show_default=False, autocompletion=completion.recipes)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    from dmoe.prepare.recipes import read_recipe, recipe_names, recipe_text

    if name is not None:
        if as_json:
            print_json(read_recipe(name).model_dump(mode="json"))
        else:
            typer.echo(recipe_text(name), nl=False)
        return
    entries = {known: _entry(known) for known in recipe_names()}
    if as_json:
        print_json(entries)
        return
    for known, entry in entries.items():
        typer.echo(f"{known}: {entry['description']}")
        typer.echo(
            f"    {entry['format']}; {entry['numeric']} numeric and {entry['categorical']} categorical fields, "
            f"min count {entry['min_count']}; split {entry['split']}"
        )


def _entry(name: str) -> dict[str, Any]:
    from dmoe.prepare.recipes import read_recipe
    from dmoe.tokens.fields import categorical_names, numeric_names

    config = read_recipe(name)
    delimiter = {"\t": "tab", ",": "comma"}.get(config.format.delimiter, config.format.delimiter)
    header = "with header" if config.format.header else "without header"
    return {
        "description": config.description,
        "format": f"text, delimiter {delimiter}, {header}",
        "numeric": len(numeric_names(config)),
        "categorical": len(categorical_names(config)),
        "min_count": config.fields.min_count,
        "split": config.split.kind,
    }
