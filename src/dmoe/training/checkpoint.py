"""The exact state of a run in progress: weights, optimiser, position and random streams.

`checkpoint/<step>/` holds `state.safetensors` and `state.json`; `checkpoint/latest` names the one to use. A new
state is whole before `latest` points to it, so a kill at any moment leaves a state to resume from.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmoe.errors import DataError
from dmoe.files import read_json, write_json, write_text, written_aside
from dmoe.training.run import load_tensors, save_tensors


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`tensors` by name, and `position`: everything else, as JSON."""

    tensors: dict[str, Tensor]
    position: dict[str, Any]


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    folder = run / "checkpoint"
    folder.mkdir(exist_ok=True)
    name = f"{checkpoint.position['step']:09d}-{checkpoint.position['evaluations']:05d}"
    if not (folder / name).exists():
        with written_aside(folder / name) as aside:
            aside.mkdir()
            tensors = {**checkpoint.tensors, "random.cpu": torch.get_rng_state()}
            if torch.cuda.is_available():
                tensors["random.cuda"] = torch.cuda.get_rng_state()
            save_tensors(aside / "state.safetensors", tensors, {})
            write_json(aside / "state.json", checkpoint.position)
    write_text(folder / "latest", name + "\n")
    for other in folder.iterdir():
        if other.is_dir() and other.name != name:
            shutil.rmtree(other)


def load_checkpoint(run: Path) -> Checkpoint | None:
    """The state to resume from, its random streams put back; None before the first one was written.

    Raises: DataError if it is damaged.
    """
    latest = run / "checkpoint" / "latest"
    if not latest.is_file():
        return None
    folder = run / "checkpoint" / latest.read_text(encoding="utf-8").strip()
    if not folder.is_dir():
        raise DataError(f"{latest}: points to {folder.name}, which is not there; train again with --overwrite")
    tensors = load_tensors(folder / "state.safetensors")
    torch.set_rng_state(tensors.pop("random.cpu"))
    cuda_state = tensors.pop("random.cuda", None)
    if cuda_state is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda_state)
    return Checkpoint(tensors, read_json(folder / "state.json"))


def remove_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoint", ignore_errors=True)
