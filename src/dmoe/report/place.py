"""Where a page may be written."""

from collections.abc import Sequence
from pathlib import Path

from dmoe.errors import ConfigError

HTML = (".html", ".htm")


def check_page(output: Path, endings: Sequence[str] = HTML) -> None:
    """Raises: ConfigError if `output` is a folder, has another ending, or lies in a folder that is not there."""
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name a file, for example {output / f'report{endings[0]}'}")
    if output.suffix not in endings:
        named = " or ".join(one for one in endings if one != ".htm")
        raise ConfigError(f"{output}: a page is written there; give it a name that ends in {named}")
    if not output.parent.is_dir():
        raise ConfigError(f"{output}: folder {output.parent} does not exist; make it first")
