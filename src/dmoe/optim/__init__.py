"""Optimisers of the embedding tables: `make_embedding_optimiser` and the classes behind its names."""

from typing import Any

from torch import Tensor

from dmoe.errors import ConfigError, nearest
from dmoe.kernels import row_access
from dmoe.kernels.row_parallel import HALF_DTYPES
from dmoe.optim.base import EmbeddingOptimiser
from dmoe.optim.deferred import DeferredAdam
from dmoe.optim.dense import DenseAdam
from dmoe.optim.row_clip import RowClip
from dmoe.optim.row_storage import Numbering
from dmoe.optim.sparse import LazyAdam, RowwiseAdagrad

EMBEDDING_OPTIMISERS: dict[str, type[EmbeddingOptimiser]] = {
    optimiser.kind: optimiser for optimiser in (DeferredAdam, DenseAdam, LazyAdam, RowwiseAdagrad)
}

__all__ = [
    "EMBEDDING_OPTIMISERS",
    "DeferredAdam",
    "DenseAdam",
    "EmbeddingOptimiser",
    "LazyAdam",
    "Numbering",
    "RowClip",
    "RowwiseAdagrad",
    "make_embedding_optimiser",
]


def make_embedding_optimiser(kind: str, weight: Tensor, **settings: Any) -> EmbeddingOptimiser:
    """The optimiser called `kind`; `settings` as in its class.

    On a CUDA device `deferred` needs triton, which torch for CUDA brings along on Linux; without it, and on other
    devices, a table gets `dense` for it: the same model.

    Raises: ConfigError naming the nearest known kind, or if the table's dtype is one that the kind cannot train.
    """
    if kind not in EMBEDDING_OPTIMISERS:
        raise ConfigError(f"no embedding optimiser '{kind}'{nearest(kind, EMBEDDING_OPTIMISERS)}")
    device = weight.device.type
    is_deferred = kind == DeferredAdam.kind
    by_kernels = is_deferred and row_access.kernels_serve(weight)
    if weight.dtype in HALF_DTYPES and not (by_kernels or (is_deferred and device == "cpu")):
        missing = "; install dmoe[gpu]" if is_deferred and device == "cuda" else ""
        raise ConfigError(
            f"model.embedding_storage: a table in {str(weight.dtype).removeprefix('torch.')} is trained by 'deferred' "
            f"on the CPU or, with triton, on CUDA, not by '{kind}' on {device}{missing}; use float32"
        )
    if by_kernels:
        from dmoe.optim.deferred_device import DeferredAdamOnDevice  # needs triton

        return DeferredAdamOnDevice(weight, **settings)
    if is_deferred and device != "cpu":
        kind = DenseAdam.kind
    return EMBEDDING_OPTIMISERS[kind](weight, **settings)
