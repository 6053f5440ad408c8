"""The optional libraries of export and serving, with one clear line when they are absent."""

from importlib import import_module
from typing import Any

from dmoe.errors import MissingExtraError


def require(module: str, extra: str) -> Any:
    """The imported module.

    Raises: MissingExtraError naming the extra that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.split(".")[0]):
            raise
        raise MissingExtraError(f"{module} is not installed; pip install 'dmoe[{extra}]'") from None
