"""A run with its weights: tensors on the disk, and the model made of them."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmoe.config.run import RunConfig, check_device
from dmoe.disk.files import give_usual_mode, written_aside
from dmoe.distributed.layout import RowLayout
from dmoe.errors import ConfigError, DataError
from dmoe.machine.packages import installed
from dmoe.nn.build import build_model
from dmoe.nn.model import DMoE
from dmoe.nn.tables.table import without_rows
from dmoe.runs.folder import RunFolder, create_folder
from dmoe.schema import FORMAT_VERSION, Schema
from dmoe.tokens.unseen import Finding
from dmoe.weights.mapped import DTYPES, MappedWeights

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
class Run(RunFolder):
    """A run folder with its weights."""

    @staticmethod
    def create(
        path: Path,
        config: RunConfig,
        schema: Schema,
        data: Path,
        first: FirstWeights | None = None,
        *,
        replace: bool = False,
    ) -> "Run":
        """A new run folder holding the configuration, schema and vocabularies, and the weights to start from.

        With `replace` it takes the place of an earlier one, which stays at `replaced_path`.

        Raises: DataError if something is there already.
        """

        def write_first(folder: Path) -> dict[str, Any]:
            if first is None:
                return {}
            save_tensors(Run(folder).first_weights, first.weights, {})
            facts = {"run": str(first.run.resolve()), "kept": first.kept, "tokens": first.tokens}
            return {"started_from": facts | {"far_above": [finding.values() for finding in first.unknown]}}

        create_folder(path, config, schema, data, write_first, replace=replace)
        return Run(path)

    def save_weights(self, weights: dict[str, Tensor]) -> None:
        save_tensors(self.weights, weights, self.weights_metadata())

    @staticmethod
    def weights_metadata() -> dict[str, str]:
        """What a file of weights says beside its tensors."""
        return {"format_version": str(FORMAT_VERSION)}

    def load_weights(self) -> dict[str, Tensor]:
        """The best weights.

        Raises: DataError if training has not got that far, or the file is damaged.
        """
        return load_tensors(self.weights_file())

    def load_model(self) -> DMoE:
        """The trained model, in evaluation mode, on the CPU, for scoring: its tables cannot be trained further.

        They are read from the file as they are needed, and are never in memory as a whole.

        Raises: DataError if the weights do not fit the configuration.
        """
        self._check_size()
        with without_rows():
            model = build_model(self.config.model, self.schema, seed=self.config.training.seed)
        self.load_weights_into(model)
        return model.eval()

    def _check_size(self) -> None:
        """No model is made that is larger than its weights: what schema.json says may be a stranger's.

        Raises: DataError.
        """
        path = self.weights_file()
        MappedWeights.open(path)
        own = [field for field in self.schema.categorical if field.vocabulary_name == field.name]
        if sum(field.vocabulary_size for field in own) > path.stat().st_size:
            raise DataError(f"{path}: does not fit schema.json: it is too small for so many ids")

    def load_weights_into(self, model: DMoE) -> None:
        """Puts the best weights in the place of the model's own, a few at a time: no second copy is held.

        Of a model whose tables are held by several processes, the rows of this one.

        Raises: DataError as `load_weights`, or if they do not fit the model; it then is as it was.
        """
        load_tensors_into(model, self.weights_file())


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


def load_tensors_into(model: DMoE, path: Path) -> None:
    """As `Run.load_weights_into`, from any file of weights of a model."""
    weights = MappedWeights.open(path)
    own, layouts = model.state_dict(), table_layouts(model)
    if weights.tensors.keys() != own.keys():
        odd = ", ".join(sorted(weights.tensors.keys() ^ own.keys())[:3])
        raise DataError(f"{path}: does not fit config.yaml: only one of the two has {odd}")
    for name, value in own.items():
        stored = weights.tensors[name]
        wanted = (layouts[name].rows, *value.shape[1:]) if name in layouts else tuple(value.shape)
        if stored.shape != wanted:
            raise DataError(f"{path}: does not fit config.yaml: {name} has shape {stored.shape}, expected {wanted}")
        if stored.dtype != value.dtype:
            raise DataError(
                f"{path}: does not fit config.yaml: {name} is {DTYPES[stored.dtype]}, expected {DTYPES[value.dtype]}"
            )
    try:
        _load_into(model, own, weights, layouts)
    except OSError as error:
        raise DataError(f"{path}: damaged or unreadable ({error})") from None


@torch.no_grad()
def _load_into(
    model: DMoE, own: Mapping[str, Tensor], weights: MappedWeights, layouts: Mapping[str, RowLayout]
) -> None:
    names = model.embedding.table_names()
    for name, bank in zip(names, model.embedding.each_bank(), strict=True):
        if bank.tables.weight.is_meta:
            bank.tables.set_rows(weights.rows(f"embedding.{name}"))
    for name, value in own.items():
        if value.is_meta:
            continue
        layout = layouts.get(name)
        if not value.ndim:
            value.copy_(weights.rows(name))
            continue
        size = weights.tensors[name].shape[0]
        rows = max(1, _LOADED_AT_ONCE // max(1, value[:1].numel()))
        for start in range(0, size, rows):
            stop = min(start + rows, size)
            block = weights.rows(name, start, stop)
            if layout is None or layout.size == 1:
                value[start:stop].copy_(block)
            else:
                rows_U, held_U = layout.held_of(start, stop)
                value[torch.from_numpy(held_U)] = block[torch.from_numpy(rows_U - start)]


def table_layouts(model: DMoE) -> dict[str, RowLayout]:
    """The tensors of a model's state with rows of vocabularies that are trained, and which of them are held here."""
    names = [f"embedding.{name}" for name in model.embedding.table_names()]
    trained = {name for name, _ in model.named_parameters()}
    layouts = [table.layout for table in model.embedding.row_tables()]
    return dict(zip([name for name in names if name in trained], layouts, strict=True))


def environment_facts() -> dict[str, Any]:
    """Versions, hardware and the revision of the working directory's git checkout, if it is one."""
    versions = {"python": platform.python_version()}
    versions |= {name: found for name in _REPORTED if (found := installed(name)) is not None}
    versions["torch"] = torch.__version__  # with the build, which its package's version may leave out
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
