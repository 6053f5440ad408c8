"""Model folders made by others, checksums and all: nothing in them runs or reaches outside."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import dmoe
from dmoe.errors import DataError
from dmoe.export.manifest import checksums


class Shell:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def pickled(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(pickle.dumps(Shell(f"touch {folder.parent / 'ran'}")))


def weights_elsewhere(location: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder.parent / "outside.data").write_bytes((folder / "model.onnx.data").read_bytes())
        graph = onnx.load(folder / "model.onnx", load_external_data=False)
        for one in graph.graph.initializer:
            for entry in one.external_data:
                if entry.key == "location":
                    entry.value = location.format(folder.parent / "outside.data")
        (folder / "model.onnx").write_bytes(graph.SerializeToString())

    return change


def unknown_operator(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    graph.graph.node[0].domain = "evil"
    graph.opset_import.append(onnx.helper.make_opsetid("evil", 1))
    (folder / "model.onnx").write_bytes(graph.SerializeToString())


@pytest.mark.parametrize(
    "change", [pickled, weights_elsewhere("../outside.data"), weights_elsewhere("{}"), unknown_operator]
)
def test_a_crafted_graph_is_refused_and_nothing_runs(
    in_graph: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(in_graph, folder)
    change(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: one for name, one in checksums(folder).items() if name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="ONNX Runtime refuses the graph"):
        dmoe.load(folder)
    assert not (tmp_path / "ran").exists()


def test_files_outside_the_folder_and_the_former_torch_programs_are_refused(in_graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(in_graph, folder)
    (tmp_path / "outside").write_bytes(b"x")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("../outside", str(tmp_path / "outside")):
        changed = {**manifest, "files": {**manifest["files"], name: {"bytes": 1, "sha256": "0"}}}
        (folder / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match="no such file"):
            dmoe.load(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 1, "format": "torch"}))
    (folder / "model.pt2").write_bytes(pickle.dumps(Shell(f"touch {tmp_path / 'ran'}")))
    with pytest.raises(DataError, match="format version 1"):
        dmoe.load(folder)
    assert not (tmp_path / "ran").exists()
