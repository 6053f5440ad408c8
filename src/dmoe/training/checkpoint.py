"""The exact state of a run in progress: weights, optimiser, position and the random streams of every device.

`checkpoint/<step>/` holds `state.safetensors` and `state.json`; `checkpoint/latest` names the one to use. A new
state is whole before `latest` points to it, so a kill at any moment leaves a state to resume from. The state of a
run that only its final evaluation is left of has no tensors: the best weights are all that it needs.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmoe.disk.files import read_json, write_json, write_text, written_aside
from dmoe.errors import DataError
from dmoe.weights.run import load_tensors, save_tensors

_RANDOM = "random."
_NAME = re.compile(r"[0-9]{9,}-[0-9]{5,}(-finished)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`tensors` by name, and `position`: everything else, as JSON."""

    tensors: dict[str, Tensor]
    position: dict[str, Any]


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    folder = run / "checkpoint"
    folder.mkdir(exist_ok=True)
    name = f"{checkpoint.position['step']:09d}-{checkpoint.position['evaluations']:05d}"
    if checkpoint.position["finished"]:
        name += "-finished"
    if not (folder / name).exists():
        with written_aside(folder / name) as aside:
            aside.mkdir()
            save_tensors(aside / "state.safetensors", {**checkpoint.tensors, **_random_streams()}, {})
            write_json(aside / "state.json", checkpoint.position)
    write_text(folder / "latest", name + "\n")
    for other in folder.iterdir():
        if other.is_dir() and other.name != name:
            shutil.rmtree(other)


def _random_streams() -> dict[str, Tensor]:
    streams = {f"{_RANDOM}cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        streams |= {f"{_RANDOM}cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return streams


def load_checkpoint(run: Path) -> Checkpoint | None:
    """The state to resume from, its random streams put back; None before the first one was written.

    Raises: DataError if it is damaged.
    """
    latest = run / "checkpoint" / "latest"
    if not latest.is_file():
        return None
    try:
        name = latest.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{latest}: damaged or unreadable ({error}); train again with --overwrite") from None
    folder = run / "checkpoint" / name
    if not _NAME.fullmatch(name) or not folder.is_dir():
        raise DataError(f"{latest}: points to {folder.name}, which is not there; train again with --overwrite")
    tensors = load_tensors(folder / "state.safetensors")
    for name in [name for name in tensors if name.startswith(_RANDOM)]:
        stream, device = tensors.pop(name), _device(name.removeprefix(_RANDOM), folder)
        if device.type == "cpu":
            try:
                torch.set_rng_state(stream)
            except (RuntimeError, TypeError) as error:
                raise DataError(f"{folder / 'state.safetensors'}: holds no random stream ({error})") from None
        elif torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count():
            torch.cuda.set_rng_state(stream, device)
    return Checkpoint(tensors, read_json(folder / "state.json"))


def _device(name: str, folder: Path) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError:
        raise DataError(f"{folder / 'state.safetensors'}: has a random stream of no device") from None


def remove_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoint", ignore_errors=True)
