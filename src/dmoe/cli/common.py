"""What every command shares: where messages and results go."""

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

# Results on stdout, everything else on stderr, so that `--json` can be piped.
stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one machine-readable JSON object on stdout.")]
PositiveOption = Annotated[
    list[str] | None,
    typer.Option(
        "--positive",
        metavar="VALUE",
        help="A value of the main label that is a click, where it does not hold 0 and 1; may be given again.",
        show_default=False,
    ),
]


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def cec_text(total: float | None, floor: float) -> str:
    """Cross-expert correlation beside what chance alone would show."""
    return "CEC undefined" if total is None else f"CEC {total:.4f} (noise floor {floor:.4f})"


def cka_text(mean: float | None) -> str:
    """Linear CKA, unbiased, averaged over pairs of experts."""
    return f"linear CKA {'undefined' if mean is None else f'{mean:.4f}'}"


def print_json(value: Any) -> None:
    typer.echo(json.dumps(finite(value), default=str))


def warn(text: str) -> None:
    """One line on stderr."""
    stderr.print(f"warning: {text}", markup=False)


def show_path(path: Path) -> str:
    """The path as short as it can be said from here."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
