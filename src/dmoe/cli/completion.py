"""What a shell completes beside commands, options and files: names of what ships with dmoe.

Nothing else of dmoe is imported for it, as a shell waits for the answer at each press of a key.
"""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

Completion = Callable[[str], list[str]]


def shipped(folder: str, *, files_too: bool = False) -> Completion:
    """Completes names of the YAML files in a folder of the package, with `files_too` also YAML files from here."""

    def complete(incomplete: str) -> list[str]:
        names = sorted(
            entry.name.removesuffix(".yaml")
            for entry in (files("dmoe") / folder).iterdir()
            if entry.name.endswith(".yaml")
        )
        found = [name for name in names if name.startswith(incomplete)]
        return [*found, *_yaml_files(incomplete)] if files_too else found

    return complete


def words(*known: str) -> Completion:
    """Completes some words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in known if word.startswith(incomplete)]

    return complete


def _yaml_files(incomplete: str) -> list[str]:
    """Files, and folders to go on in."""
    folder, _, start = incomplete.rpartition("/")
    place = Path(folder or ("/" if incomplete.startswith("/") else "."))
    try:
        entries = sorted(place.iterdir())
    except OSError:
        return []
    ahead = incomplete[: len(incomplete) - len(start)]
    return [
        f"{ahead}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(start)
        and (not entry.name.startswith(".") or start)
        and (entry.is_dir() or entry.suffix in (".yaml", ".yml"))
    ]


presets = shipped("config/presets")
configurations = shipped("config/presets", files_too=True)
recipes = shipped("prepare/recipes")
experiments = shipped("experiments/grids")
sizes = shipped("experiments/sizes")
logs = words("avazu", "criteo", "domains", "production", "tasks", "toy")
spaces = shipped("tuning/spaces", files_too=True)
baselines = words("logistic", "lightgbm")
trackers = words("tensorboard", "mlflow")
splits = words("train", "valid", "test")
