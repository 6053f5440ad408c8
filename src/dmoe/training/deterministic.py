"""`training.deterministic`: torch's own operations in the form that repeats to the bit, or an error."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.utils.deterministic as memory

from dmoe.errors import ConfigError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# What cuBLAS repeats its results with (cuBLAS, section "Results reproducibility").
_REPEATS = (":4096:8", ":16:8")


@contextmanager
def repeatable(strict: bool) -> Iterator[None]:
    """Inside, if `strict`, torch takes only operations that give equal bits for equal input, and cuBLAS its own room.

    Everything is afterwards as it was.

    Raises: ConfigError if the environment forbids it, or for an operation that torch has in no such form.
    """
    if not strict:
        yield
        return
    room = os.environ.get(_WORKSPACE)
    if room not in (None, *_REPEATS):
        raise ConfigError(
            f"training.deterministic needs {_WORKSPACE}={_REPEATS[0]}, and the environment has '{room}'; unset it there"
        )
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled, benchmark = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark  # type: ignore[attr-defined]
    os.environ.setdefault(_WORKSPACE, _REPEATS[0])
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        said = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise ConfigError(f"training.deterministic: {said}; set it to false for this model") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark
        if room is None:
            del os.environ[_WORKSPACE]
