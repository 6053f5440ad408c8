"""What an expert is, and the registry that makes it one word of configuration.

An expert maps the field embeddings of a row to one vector. It knows nothing of tables, gates or losses.
Shape suffixes: B rows, F fields, D embedding width, W output width of the expert.
"""

import inspect
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from dmoe.errors import ConfigError, nearest

# What the model fixes for every expert; all other constructor arguments are the user's options. (What a
# configuration may say of every expert, `kind`, `fields`, `count` and `per`, is not passed to it.)
FIXED_ARGUMENTS = ("num_fields", "embedding_dim")


class Expert(nn.Module):
    """Base of all feature-interaction experts (eq. 2, 7 of arXiv 2505.17925, before the alignment layer).

    A subclass sets `out_features` and implements either `forward_with_intermediates`, when it has inner
    layers that a de-correlation loss may be placed on, or `forward` alone.

    Shape: input ``embeddings_BFD`` (B, F, D); result ``(B, out_features)``.
    """

    kind: ClassVar[str] = ""
    out_features: int
    # In the benchmark form (docs/benchmark-form.md): leading outputs that enter the logit as they are, and whether a
    # first-order term comes beside them.
    summed_features: int = 0
    first_order: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.forward is Expert.forward and cls.forward_with_intermediates is Expert.forward_with_intermediates:
            raise TypeError(f"{cls.__name__} must implement forward or forward_with_intermediates")

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        return self.forward_with_intermediates(embeddings_BFD)[0]

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output and the inner layers that this expert names, each (B, width of that layer)."""
        return self.forward(embeddings_BFD), ()

    def intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, ...]:
        """The inner layers alone, in the order of depth."""
        return self.forward_with_intermediates(embeddings_BFD)[1]

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The options that a configuration may set: name to parameter (default, annotation)."""
        parameters = inspect.signature(cls.__init__).parameters
        return {
            name: parameter for name, parameter in parameters.items() if name != "self" and name not in FIXED_ARGUMENTS
        }


def layer_by_layer(layers: Iterable[nn.Module], embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Layers of vectors one on top of the other: the last one flattened, and every one flattened, by depth."""
    vectors_BVD, flattened = embeddings_BFD, []
    for layer in layers:
        vectors_BVD = layer(vectors_BVD)
        flattened.append(vectors_BVD.flatten(1))
    return flattened[-1], tuple(flattened)


EXPERTS: dict[str, type[Expert]] = {}

ExpertT = TypeVar("ExpertT", bound=type[Expert])


def register(kind: str) -> Callable[[ExpertT], ExpertT]:
    """Class decorator: makes an expert known under `kind`.

    Raises: ValueError if the name is taken.
    """

    def decorate(cls: ExpertT) -> ExpertT:
        if kind in EXPERTS:
            raise ValueError(f"expert '{kind}' is already registered by {EXPERTS[kind].__module__}")
        cls.kind = kind
        EXPERTS[kind] = cls
        return cls

    return decorate


def expert_class(kind: str) -> type[Expert]:
    """The class registered under `kind`, third-party entry points included.

    Raises: ConfigError naming the nearest known expert.
    """
    if kind not in EXPERTS:
        for entry in entry_points(group="dmoe.experts", name=kind):
            loaded = entry.load()
            if EXPERTS.get(kind) is not loaded:
                register(kind)(loaded)
    if kind not in EXPERTS:
        known = {*EXPERTS, *(entry.name for entry in entry_points(group="dmoe.experts"))}
        raise ConfigError(f"no expert '{kind}'{nearest(kind, known)}")
    return EXPERTS[kind]
