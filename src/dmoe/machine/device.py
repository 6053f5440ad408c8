"""How a device computes: which one launched kernels go to, and with how many bits."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Inside, kernels that are launched go to `device`: those of Triton go to the current one, wherever tensors are."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


@contextmanager
def matrix_products(*, tf32: bool) -> Iterator[None]:
    """Inside, float32 products of matrices take inputs of 10 bits of mantissa on CUDA if `tf32`, else of all 23."""
    before, wanted = torch.get_float32_matmul_precision(), "high" if tf32 else "highest"
    if before == wanted:
        yield
        return
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
