"""Writing weights: whole or absent, and an error that says why."""

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dmoe.training.run import load_tensors, save_tensors


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """No file may grow beyond 4,096 bytes: what a full disk does, but at a place of our choosing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files_only")
def test_weights_that_do_not_fit_are_an_os_error_and_leave_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.ones(4)}, {})
    with pytest.raises(OSError, match=r"model\.safetensors") as caught:
        save_tensors(path, {"weight": torch.ones(10_000)}, {})
    assert caught.value.errno == errno.EFBIG
    assert torch.equal(load_tensors(path)["weight"], torch.ones(4))
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]
