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

import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmoe.config import RunConfig, check_device
from dmoe.data.unseen import Finding
from dmoe.errors import ConfigError, DataError
from dmoe.files import read_json, write_json, written_aside
from dmoe.nn.build import build_model
from dmoe.nn.model import DMoE
from dmoe.schema import FORMAT_VERSION, Schema
from dmoe.validation import validate
from dmoe.yaml_text import read_yaml

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
            raise DataError(
                f"{path}: exists already; pass --resume to continue it, --overwrite to replace it, "
                "or choose another --output"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            aside.mkdir()
            schema.write(aside)
            if (data / "vocabulary").is_dir():
                shutil.copytree(data / "vocabulary", aside / "vocabulary")
            if (data / "summary.json").is_file():
                write_json(aside / "warnings.json", {"warnings": read_json(data / "summary.json").get("warnings", [])})
            (aside / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
            facts: dict[str, Any] = {"data": str(data.resolve())}
            if first is not None:
                save_tensors(Run(aside).first_weights, first.weights, {})
                facts["started_from"] = {
                    "run": str(first.run.resolve()),
                    "kept": first.kept,
                    "tokens": first.tokens,
                    "far_above": [finding.values() for finding in first.unknown],
                }
            (aside / "environment.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
            if path.is_dir():
                path.rmdir()
        return Run(path)

    @staticmethod
    def open(path: Path) -> "Run":
        """An existing run folder.

        Raises: DataError if it is not one, or of another format version.
        """
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

    def save_weights(self, weights: dict[str, Tensor]) -> None:
        save_tensors(self.path / "model.safetensors", weights, {"format_version": str(FORMAT_VERSION)})

    def load_weights(self) -> dict[str, Tensor]:
        """The best weights.

        Raises: DataError if training has not got that far, or the file is damaged.
        """
        path = self.path / "model.safetensors"
        if not path.is_file():
            raise DataError(
                f"{self.path}: has no model.safetensors yet; training stopped before its first evaluation. "
                "Continue it with `dmoe train … --resume`"
            )
        return load_tensors(path)

    def load_model(self) -> DMoE:
        """The trained model, in evaluation mode, on the CPU.

        Raises: DataError if the weights do not fit the configuration.
        """
        model = build_model(self.config.model, self.schema, seed=self.config.training.seed)
        try:
            model.load_state_dict(self.load_weights())
        except RuntimeError as error:
            raise DataError(f"{self.path / 'model.safetensors'}: does not fit config.yaml: {error}") from None
        return model.eval()


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


def load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged or unreadable ({error})") from None


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


def peak_memory_bytes() -> int:
    """Highest resident memory of this process."""
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
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("training.device is mps, but torch sees none; use device: auto")
    return device
