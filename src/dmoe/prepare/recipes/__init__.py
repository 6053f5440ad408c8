"""The data recipes that ship with dmoe: `data.yaml` files for public logs."""

from importlib import resources

from dmoe.config.data import DataConfig
from dmoe.errors import ConfigError, nearest
from dmoe.validation import validate
from dmoe.yaml_text import parse_yaml

_FOLDER = resources.files("dmoe.prepare.recipes")


def recipe_names() -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML text of a recipe.

    Raises: ConfigError naming the nearest recipe.
    """
    names = recipe_names()
    if name not in names:
        raise ConfigError(f"no recipe '{name}'{nearest(name, names)} (`dmoe recipes` lists them)")
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def read_recipe(name: str) -> DataConfig:
    """The data configuration of a recipe.

    Raises: ConfigError naming the nearest recipe.
    """
    return validate(DataConfig, parse_yaml(recipe_text(name), f"recipe {name}"), f"recipe {name}")
