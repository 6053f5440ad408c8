"""Triton's kernels compile for a device, which needs none: the interpreter takes code that the compiler does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton runs on Linux only")

COMPILES = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from dmoe.kernels import row_triton_kernels
from dmoe.optim import deferred_triton_kernels
from dmoe.kernels.row_triton import options

TYPES = {name: "*i64" for name in ("offsets", "order", "rows", "clock", "condition")}
TYPES |= {name: "*i32" for name in ("ids", "keys", "segments", "inverse", "starts", "lasts")}
TYPES |= {name: "*fp64" for name in ("numbers", "grad_scale", "rates", "sums")}
NUMBERS = {"total", "columns", "room", "width", "whole_width", "first", "num_powers"}
NUMBERS |= {"out_row", "row_stride", "field_stride", "stride"}
SWITCHES = {"BLOCK": 256, "COLUMNS": 16, "GROUP": 8, "CHUNK_SIZE": 64, "JOINED": 16, "SCALED": True}
SWITCHES |= {"WITH_GRADIENT": True}

storage, whole = int(sys.argv[1]), bool(int(sys.argv[2]))
stored, worked = ("i16" if storage else "fp32"), "fp32"
if len(sys.argv) > 3:
    stored = worked = "fp64"
modules = [deferred_triton_kernels] if storage or whole else [row_triton_kernels, deferred_triton_kernels]
count = 0
for module in modules:
    for name, kernel in vars(module).items():
        if not isinstance(kernel, JITFunction) or kernel.fn.__module__ != module.__name__ or name.startswith("_"):
            continue
        signature, switches = {}, {}
        for place, argument in enumerate(kernel.arg_names):
            if argument.isupper():
                signature[argument] = "constexpr"
                own = {**SWITCHES, "STORAGE": storage, "WHOLE": whole, "GIVES": not whole, "CONDITIONAL": whole}
                switches[(place,)] = own[argument]
            elif argument in NUMBERS:
                signature[argument] = "i32"
            else:
                signature[argument] = TYPES.get(argument, "*" + (stored if argument == "weights" else worked))
        source = ASTSource(kernel, signature, switches)
        assert compile(source, target=GPUTarget("cuda", 90, 32), options=options()).asm["cubin"]
        count += 1
assert count >= 5
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["0", "0"],
        pytest.param(["1", "1"], marks=pytest.mark.slow),
        pytest.param(["2", "0"], marks=pytest.mark.slow),
        pytest.param(["0", "1"], marks=pytest.mark.slow),
        pytest.param(["0", "0", "float64"], marks=pytest.mark.slow),
    ],
)
def test_each_kernel_compiles_for_a_hopper(arguments: list[str], tmp_path: Path) -> None:
    compiled = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-c", COMPILES, *arguments],
        env=compiled | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
