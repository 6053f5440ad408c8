"""A model folder that is replaced, or cannot be read, while it is opened: nothing is of two versions."""

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dmoe.disk.exchange import exchange
from dmoe.errors import DataError, DmoeError
from dmoe.export.manifest import Manifest
from dmoe.export.onnx_model import Graph, OnnxModel
from dmoe.export.write import export
from dmoe.serving.served import Slot
from dmoe.weights.run import Run
from tests.serving.conftest import rows


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


def swaps(folder: Path, run: Run, in_graph: Path, moments: int) -> list[dict[str, Any]]:
    """Attempts of tests/serving/swaps.py, each checked: one whole version is served, before and after."""
    shutil.copytree(in_graph, folder / "old")
    for name, tables in (("new", "float16"), ("other", "int8")):
        export(run, folder / name, tables=tables)
    table = pa.Table.from_pandas(rows(50), preserve_index=False)
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    expected: dict[str, tuple[str, Any]] = {}
    for name in ("old", "new", "other"):
        model = OnnxModel.open(folder / name)
        logits_R = model.score(model.featuriser(model.raw_rows(table, "rows")), ["logit"])["logit"][:, 0]
        expected[model.manifest.version] = name, logits_R
    assert len(expected) == 3
    command = [sys.executable, "-m", "tests.serving.swaps", str(folder), str(folder / "rows.arrow"), str(moments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for one in found:
        if one["how"] == "kill":
            assert (one["code"], len(one)) == (-signal.SIGKILL, 3), one
            continue
        assert (one["code"], "failure" in one) == (0, False), one
        name, logits_R = expected[one["version"]]
        np.testing.assert_allclose(one["scores"], logits_R, atol=1e-5)
        if one["how"] in ("full", "broken"):
            assert one["error"] is not None, one
            assert name == "old", one
        else:
            assert one["error"] is None, one
            assert name == ("new" if one["how"] == "nothing" else "other"), one
        then, logits_R = expected[one["then"]]
        assert then == ("other" if one["how"] == "replaced" else "new"), one
        np.testing.assert_allclose(one["then_scores"], logits_R, atol=1e-5)
    for name in ("old", "new", "other"):
        Manifest.read(folder / name).verify(folder / name)
    return found


@pytest.mark.slow
def test_an_exchange_disturbed_at_thirty_moments_serves_one_whole_version(
    run: Run, in_graph: Path, tmp_path: Path
) -> None:
    found = swaps(tmp_path, run, in_graph, 32)
    assert {one["how"] for one in found} == {"nothing", "kill", "full", "broken", "replaced"}
    assert len(found) > 30
