"""A model folder that is replaced, or cannot be read, while it is opened: nothing is of two versions."""

import asyncio
import errno
import os
import shutil
from pathlib import Path

import pytest

from dmoe.disk.exchange import exchange
from dmoe.errors import DataError, DmoeError
from dmoe.export.manifest import Manifest
from dmoe.export.onnx_model import Graph, OnnxModel
from dmoe.serving.served import Slot


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot exchange two names")
@pytest.mark.parametrize("moment", ["verify", "Graph"])
def test_a_folder_replaced_while_it_is_opened_is_read_again(
    tmp_path: Path, in_graph: Path, looked_up: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path, other = (Path(shutil.copytree(one, tmp_path / one.name)) for one in (in_graph, looked_up))
    versions = [Manifest.read(one).version for one in (path, other)]
    assert len(set(versions)) == 2
    owner, name = (Manifest, "verify") if moment == "verify" else (Graph, "__init__")
    original, times = getattr(owner, name), 1

    def replaced(*arguments: object) -> None:
        nonlocal times
        if times:
            times -= 1
            exchange(path, other)
        original(*arguments)

    monkeypatch.setattr(owner, name, replaced)
    model = OnnxModel.open(path)
    assert model.manifest.version == versions[1]
    model.manifest.verify(path)
    times = 9
    with pytest.raises(DataError, match="is replaced while it is read, 3 times in a row"):
        OnnxModel.open(path)


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError(errno.EIO, "Input/output error"), "cannot be read: Input/output error"), (MemoryError(), "no memory")],
)
def test_what_cannot_be_read_leaves_the_present_version(
    in_graph: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    slot = Slot(in_graph)
    present = slot.current

    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(Manifest, "verify", failing)
    with pytest.raises(DmoeError, match=said):
        asyncio.run(slot.reload())
    assert slot.current is present
