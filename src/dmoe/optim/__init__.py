"""Optimisers of the embedding tables: `make_embedding_optimiser` and the classes behind its names."""

from typing import Any

from torch import Tensor

from dmoe.errors import ConfigError, nearest
from dmoe.optim.base import EmbeddingOptimiser
from dmoe.optim.deferred import DeferredAdam
from dmoe.optim.dense import DenseAdam
from dmoe.optim.row_clip import RowClip
from dmoe.optim.sparse import LazyAdam, RowwiseAdagrad
from dmoe.row_parallel import HALF_DTYPES

EMBEDDING_OPTIMISERS: dict[str, type[EmbeddingOptimiser]] = {
    optimiser.kind: optimiser for optimiser in (DeferredAdam, DenseAdam, LazyAdam, RowwiseAdagrad)
}

__all__ = [
    "EMBEDDING_OPTIMISERS",
    "DeferredAdam",
    "DenseAdam",
    "EmbeddingOptimiser",
    "LazyAdam",
    "RowClip",
    "RowwiseAdagrad",
    "make_embedding_optimiser",
]


def make_embedding_optimiser(kind: str, weight: Tensor, **settings: Any) -> EmbeddingOptimiser:
    """The optimiser called `kind`; `settings` as in its class.

    A table that is not on the CPU gets `dense` for `deferred`: the same model, and there the faster form.

    Raises: ConfigError naming the nearest known kind, or if the table's dtype is one that the kind cannot train.
    """
    if kind not in EMBEDDING_OPTIMISERS:
        raise ConfigError(f"no embedding optimiser '{kind}'{nearest(kind, EMBEDDING_OPTIMISERS)}")
    half = weight.dtype in HALF_DTYPES
    if half and (kind != DeferredAdam.kind or weight.device.type != "cpu"):
        raise ConfigError(
            f"model.embedding_storage: a table in {str(weight.dtype).removeprefix('torch.')} is trained by "
            f"'deferred' on the CPU only, not by '{kind}' on {weight.device.type}; use float32"
        )
    if kind == DeferredAdam.kind and weight.device.type != "cpu":
        kind = DenseAdam.kind
    return EMBEDDING_OPTIMISERS[kind](weight, **settings)
