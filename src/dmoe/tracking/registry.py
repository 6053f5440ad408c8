"""From the words of `--track` to callbacks."""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points

from dmoe.errors import ConfigError, DmoeError, nearest
from dmoe.training.callbacks import Callback

# Third-party packages list theirs under this group: name = module:factory.
GROUP = "dmoe.trackers"
Factory = Callable[[str], Callback]
_OURS = {"tensorboard": "dmoe.tracking.tensorboard:tracker", "mlflow": "dmoe.tracking.mlflow:tracker"}


def make_trackers(words: Sequence[str]) -> list[Callback]:
    """A callback for each word: a tracker's name, and after a colon what it is told, as a URI.

    Raises: ConfigError for an unknown tracker, one named twice, or what one does not take; MissingExtraError if its
        package is absent.
    """
    found: dict[str, Callback] = {}
    for word in words:
        name, _, argument = word.partition(":")
        if name in found:
            raise ConfigError(f"--track {word}: {name} is named twice; name it once")
        try:
            found[name] = _factory(name)(argument)
        except DmoeError:
            raise
        except Exception as error:  # a plug-in's
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"--track {name}: cannot be made ({type(error).__name__}: {reason})") from error
    return list(found.values())


def _factory(name: str) -> Factory:
    if name in _OURS:
        module, _, function = _OURS[name].partition(":")
        factory: Factory = getattr(import_module(module), function)
        return factory
    for entry in entry_points(group=GROUP, name=name):
        loaded: Factory = entry.load()
        return loaded
    known = {*_OURS, *(entry.name for entry in entry_points(group=GROUP))}
    raise ConfigError(f"--track: no tracker '{name}'{nearest(name, known)}")
