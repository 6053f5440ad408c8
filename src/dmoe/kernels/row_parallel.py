"""Compiled loops over rows, run by a few threads with results that do not depend on how many.

Each chunk writes its own rows, and what the chunks return comes back in the order of the chunks, whichever
thread ran them. numba's own parallel loops are not used: their thread layers
either abort when a second thread enters (workqueue) or when the process forks afterwards (OpenMP).
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import update_wrapper
from threading import RLock
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

# Dtypes that a table may be stored in, beside those of the arithmetic.
HALF_DTYPES = (torch.bfloat16, torch.float16)

# Up to as many rows torch and numpy copy instead, to the same bits: no more is to be had than loading numba takes.
FEW_ROWS = 64

_compiling = RLock()
_executors: dict[int, ThreadPoolExecutor] = {}


def kernel(function: FunctionT) -> FunctionT:
    """Compiles a loop at its first call, releases the interpreter lock while it runs, and caches the code.

    Only the contraction of a product and a sum into one rounding is allowed; no other reordering of floats.
    """
    return cast(FunctionT, _Loop(function, {"contract"}))


def sum_kernel(function: FunctionT) -> FunctionT:
    """A `kernel` whose sums may be taken in several lanes; the order is fixed when it is compiled."""
    return cast(FunctionT, _Loop(function, {"contract", "reassoc"}))


class _Loop:
    """A function that is compiled when it is first called: loading numba takes longer than loading a model."""

    def __init__(self, function: Callable[..., Any], fastmath: set[str]) -> None:
        update_wrapper(self, function)
        self._function, self._fastmath = function, fastmath
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        return (self._compiled or self._compile())(*arguments)

    def _compile(self) -> Callable[..., Any]:
        import numba

        with _compiling:
            if self._compiled is None:
                names = self._function.__globals__
                for name in self._function.__code__.co_names:
                    if isinstance(names.get(name), _Loop):  # which it calls: numba knows its own functions only
                        names[name] = names[name]._compile()
                options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": self._fastmath}
                try:
                    self._compiled = numba.njit(cache=True, **options)(self._function)
                except RuntimeError:
                    # Neither the package folder nor the user's cache folder can be written: compile in every process.
                    self._compiled = numba.njit(**options)(self._function)
        return self._compiled


def map_chunks(total: int, chunk: int, work: Callable[[int, int], Any]) -> list[Any]:
    """`work(start, stop)` for each chunk of [0, total), on up to `torch.get_num_threads()` threads.

    Returns what `work` returned, in the order of the chunks.
    """
    chunks = [(start, min(start + chunk, total)) for start in range(0, total, chunk)]
    workers = min(torch.get_num_threads(), len(chunks))
    if workers <= 1:
        return [work(*part) for part in chunks]
    results: list[Any] = [None] * len(chunks)
    remaining = deque(range(len(chunks)))  # its pops are atomic, with an interpreter lock or without

    def drain() -> None:
        while True:
            try:
                index = remaining.popleft()
            except IndexError:
                return
            results[index] = work(*chunks[index])

    helpers = [_executor(workers - 1).submit(drain) for _ in range(workers - 1)]
    drain()
    for helper in helpers:
        helper.result()
    return results


def _executor(workers: int) -> ThreadPoolExecutor:
    if workers not in _executors:
        _executors[workers] = ThreadPoolExecutor(workers, thread_name_prefix="dmoe-rows")
    return _executors[workers]


if hasattr(os, "register_at_fork"):  # where processes fork
    # A forked child inherits the executors but none of their threads.
    os.register_at_fork(after_in_child=_executors.clear)


def empty_table(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU matrix on huge pages where the system grants them.

    Random row access to hundreds of megabytes is bound by address translation on 4 KiB pages; numpy asks for
    huge pages (madvise), torch's allocator does not.
    """
    if dtype in HALF_DTYPES:  # numpy has no bfloat16
        return torch.from_numpy(np.empty((rows, columns), dtype=np.uint16)).view(dtype)
    return torch.from_numpy(np.empty((rows, columns), dtype=numpy_dtype(dtype)))


def compiled_loops_serve(tensor: Tensor) -> bool:
    """Whether loops over memory may take the place of torch's operations.

    On the CPU, where nothing traces them, and not in half precision, which numpy's loops do not know.
    """
    in_memory = tensor.device.type == "cpu" and tensor.dtype not in HALF_DTYPES
    return in_memory and not torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The numpy equal of a torch dtype that the kernels support: float32 or float64.

    Raises: ValueError for any other.
    """
    if dtype == torch.float32:
        return np.dtype(np.float32)
    if dtype == torch.float64:
        return np.dtype(np.float64)
    raise ValueError(f"row kernels work in float32 or float64, not {dtype}")
