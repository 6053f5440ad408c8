"""Writing weights: whole or absent, and an error that says why."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmoe.weights.run import load_tensors, save_tensors

# In a process of its own: the limit holds for every file, and the tests' own output may be one.
WRITE_MORE_THAN_FITS = """
import resource, sys
from pathlib import Path
import torch
from dmoe.weights.run import save_tensors

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_tensors(Path(sys.argv[1]), {"weight": torch.ones(10_000)}, {})
except OSError as error:
    sys.stdout.write(f"{error.errno} {error.filename}")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_whoever_may_read_the_run_may_read_its_weights(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "model.safetensors", {"weight": torch.ones(4)}, {})
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    modes = {one.name: one.stat().st_mode & 0o777 for one in tmp_path.iterdir()}
    assert modes == {"model.safetensors": 0o666 & ~umask, "plain": 0o666 & ~umask}


def test_weights_that_do_not_fit_are_an_os_error_and_leave_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.ones(4)}, {})
    command = [sys.executable, "-c", WRITE_MORE_THAN_FITS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{errno.EFBIG} {path}"), done.stderr
    assert torch.equal(load_tensors(path)["weight"], torch.ones(4))
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]
