"""The run folder: what is in it, how it is written and read back.

config.yaml, schema.json, vocabulary/   what was trained, and all that encoding a raw row needs
warnings.json                           what preparing the data warned of
model.safetensors                       the best weights so far
metrics.jsonl, steps.jsonl              one line an evaluation; one line every few steps
metrics.json, evaluation/<split>.json   the final figures
environment.json                        versions, hardware, data set, wall time, peak memory
start.safetensors                       weights of an earlier run to start from, absent once training is complete
checkpoint/                             the exact state to resume from, absent once training is complete
"""

import errno
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dmoe.config import RunConfig, check_device
from dmoe.data.dataset_files import digest_of
from dmoe.data.unseen import Finding
from dmoe.errors import ConfigError, DataError
from dmoe.files import check_in_place, give_usual_mode, read_json, write_json, write_text, written_aside
from dmoe.nn.build import build_model
from dmoe.nn.model import DMoE
from dmoe.schema import FORMAT_VERSION, Schema
from dmoe.validation import validate
from dmoe.yaml_text import read_yaml

# Numbers copied at once from a file of weights.
_LOADED_AT_ONCE = 1 << 24
_REPORTED = ("dmoe", "torch", "numpy", "numba", "duckdb", "pyarrow", "scikit-learn")


@dataclass(frozen=True, slots=True)
class FirstWeights:
    """Weights of an earlier run to start from: `kept` of `tokens` tokens were known to it; `unknown` are the fields
    of which it knows far fewer values than its own held-out rows had."""

    run: Path
    kept: int
    tokens: int
    unknown: list[Finding]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

    @staticmethod
    def create(path: Path, config: RunConfig, schema: Schema, data: Path, first: FirstWeights | None = None) -> "Run":
        """A new run folder holding the configuration, schema and vocabularies.

        Raises: DataError if something is there already.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise _exists(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _no_other(path), written_aside(path) as aside:
            aside.mkdir()
            schema.write(aside)
            if (data / "vocabulary").is_dir():
                shutil.copytree(data / "vocabulary", aside / "vocabulary")
            if (data / "summary.json").is_file():
                write_json(aside / "warnings.json", {"warnings": read_json(data / "summary.json").get("warnings", [])})
            write_text(aside / "config.yaml", config.to_yaml())
            facts: dict[str, Any] = {"data": str(data.resolve()), "data_digest": digest_of(data)}
            if first is not None:
                save_tensors(Run(aside).first_weights, first.weights, {})
                facts["started_from"] = {
                    "run": str(first.run.resolve()),
                    "kept": first.kept,
                    "tokens": first.tokens,
                    "far_above": [finding.values() for finding in first.unknown],
                }
            write_json(aside / "environment.json", facts)
        return Run(path)

    @staticmethod
    def open(path: Path) -> "Run":
        """An existing run folder.

        Raises: DataError if it is not one, or of another format version.
        """
        check_in_place(path)
        if not path.is_dir():
            raise DataError(f"{path}: no such run folder; `dmoe train … --output {path}` makes one")
        if not (path / "config.yaml").is_file():
            raise DataError(f"{path}: has no config.yaml, so it is not a run folder of `dmoe train`")
        Schema.read(path)  # its errors come here, not at first use
        return Run(path)

    @property
    def first_weights(self) -> Path:
        """What training started from, if not from chance; kept until it is complete, so that a kill loses nothing."""
        return self.path / "start.safetensors"

    @property
    def weights(self) -> Path:
        """The best weights so far."""
        return self.path / "model.safetensors"

    @cached_property
    def schema(self) -> Schema:
        return Schema.read(self.path)

    @cached_property
    def config(self) -> RunConfig:
        path = self.path / "config.yaml"
        try:
            return validate(RunConfig, read_yaml(path), str(path))
        except ConfigError as error:
            raise DataError(str(error)) from None

    @property
    def environment(self) -> dict[str, Any]:
        path = self.path / "environment.json"
        return read_json(path) if path.is_file() else {}

    def update_environment(self, **facts: Any) -> None:
        write_json(self.path / "environment.json", {**self.environment, **facts})

    def data_folder(self, given: Path | None = None) -> Path:
        """The data set: `given`, or the one that the run was trained on.

        Raises: DataError if it is gone or its schema is another one.
        """
        recorded = self.environment.get("data")
        if given is None and recorded is None:
            raise DataError(f"{self.path}: does not say which data it was trained on; pass --data")
        folder = given or Path(str(recorded))
        if not folder.is_dir():
            raise DataError(f"{folder}: no such data set folder; pass --data with its present place")
        if Schema.read(folder) != self.schema:
            raise DataError(
                f"{folder}: its schema.json differs from that of {self.path}, so ids would mean other values; "
                "pass the data set that the run was trained on"
            )
        return folder

    def check_rows(self, data: Path) -> None:
        """Raises: DataError if `data` does not hold the very rows that training began with."""
        if digest_of(data) != self.environment.get("data_digest"):
            raise DataError(
                f"{data}: holds other rows than those that {self.path} began with (prepared again?), so it cannot be "
                "continued; give the data set that it began with, or train anew with --overwrite or another --output"
            )

    def save_weights(self, weights: dict[str, Tensor]) -> None:
        save_tensors(self.weights, weights, {"format_version": str(FORMAT_VERSION)})

    def load_weights(self) -> dict[str, Tensor]:
        """The best weights.

        Raises: DataError if training has not got that far, or the file is damaged.
        """
        return load_tensors(self._weights_file())

    def _weights_file(self) -> Path:
        if not self.weights.is_file():
            raise DataError(
                f"{self.path}: has no model.safetensors yet; training stopped before its first evaluation. "
                "Continue it with `dmoe train … --resume`"
            )
        return self.weights

    def load_model(self) -> DMoE:
        """The trained model, in evaluation mode, on the CPU.

        Raises: DataError if the weights do not fit the configuration.
        """
        model = build_model(self.config.model, self.schema, seed=self.config.training.seed)
        self.load_weights_into(model)
        return model.eval()

    def load_weights_into(self, model: DMoE) -> None:
        """Puts the best weights in the place of the model's own, a few at a time: no second copy is held.

        Raises: DataError as `load_weights`, or if they do not fit the model; it then is as it was.
        """
        path = self._weights_file()
        try:
            _load_into(model, path)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: damaged or unreadable ({error})") from None


def _exists(path: Path) -> DataError:
    return DataError(
        f"{path}: exists already; pass --resume to continue it, --overwrite to replace it, or choose another --output"
    )


@contextmanager
def _no_other(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise _exists(path) from None  # made by another process meanwhile


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Raises: OSError if the file cannot be written, as on a full disk."""
    with written_aside(path) as aside:
        try:
            save_file({name: value.detach().contiguous().cpu() for name, value in tensors.items()}, aside, metadata)
        except SafetensorError as error:  # hides the system's error number in its text
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        give_usual_mode(aside)


def load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged or unreadable ({error})") from None


def _load_into(model: nn.Module, path: Path) -> None:
    own = model.state_dict()
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if shapes.keys() != own.keys():
        odd = ", ".join(sorted(shapes.keys() ^ own.keys())[:3])
        raise DataError(f"{path}: does not fit config.yaml: only one of the two has {odd}")
    for name, value in own.items():
        if shapes[name] != tuple(value.shape):
            raise DataError(
                f"{path}: does not fit config.yaml: {name} has shape {shapes[name]}, expected {tuple(value.shape)}"
            )
    with torch.no_grad():
        for name, value in own.items():
            # Opened each time: the file is mapped, and what was read of it stays in memory until it is closed.
            if value.numel() <= _LOADED_AT_ONCE:
                with safe_open(path, framework="pt") as file:
                    value.copy_(file.get_tensor(name))
                continue
            rows = max(1, _LOADED_AT_ONCE // value[0].numel())
            for start in range(0, len(value), rows):
                with safe_open(path, framework="pt") as file:
                    value[start : start + rows].copy_(file.get_slice(name)[start : start + rows])


def environment_facts() -> dict[str, Any]:
    """Versions, hardware and the revision of the working directory's git checkout, if it is one."""
    versions = {"python": platform.python_version()}
    for name in _REPORTED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "git_revision": _git_revision(),
    }


def peak_memory_bytes() -> int | None:
    """Highest resident memory of this process; None where Python has no module `resource` to ask, as on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _git_revision() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def choose_device(name: str) -> torch.device:
    """The device of `training.device`; `auto` is CUDA when present, else the CPU.

    Raises: ConfigError if it is not there.
    """
    try:
        check_device(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device is cuda, but torch sees no CUDA device; use device: auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"training.device is {name}, but torch sees {torch.cuda.device_count()} CUDA devices")
    return device
