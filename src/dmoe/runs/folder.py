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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from dmoe.config.run import RunConfig
from dmoe.disk.files import check_links, read_json, write_json, write_text, written_aside
from dmoe.disk.replaced import check_in_place, replaced_path
from dmoe.errors import ConfigError, DataError
from dmoe.schema import Schema
from dmoe.shards.files import digest_of
from dmoe.shards.remote import address_of, folder_of
from dmoe.shards.summary import read_summary
from dmoe.tokens.lookup import copy_vocabularies
from dmoe.validation import validate, validate_stored
from dmoe.yaml_text import read_yaml


class Environment(BaseModel):
    """environment.json, as far as anything but a table of facts reads it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    data: str | None = None
    data_digest: str | None = None
    versions: dict[str, str | None] = {}
    hardware: dict[str, Any] = {}
    peak_memory_bytes: int | None = None
    trial: int | None = None


@dataclass(frozen=True)
class RunFolder:
    """A run folder, read without torch: what was asked for, what it was trained on, what came of it."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run folder.

        Raises: DataError if it is not one, or of another format version.
        """
        check_in_place(path)
        if not path.is_dir():
            raise DataError(f"{path}: no such run folder; `dmoe train … --output {path}` makes one")
        if not (path / "config.yaml").is_file():
            raise DataError(f"{path}: has no config.yaml, so it is not a run folder of `dmoe train`")
        check_links(path)
        Schema.read(path)  # its errors come here, not at first use
        return cls(path)

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
        """environment.json, empty if there is none. Raises: DataError if it is damaged."""
        path = self.path / "environment.json"
        if not path.is_file():
            return {}
        values = read_json(path)
        validate_stored(Environment, values, str(path))
        return values

    def update_environment(self, **facts: Any) -> None:
        write_json(self.path / "environment.json", {**self.environment, **facts})

    def data_folder(self, given: Path | None = None) -> Path:
        """The data set: `given`, or the one that the run was trained on.

        Raises: DataError if it is gone or its schema is another one.
        """
        recorded = self.environment.get("data")
        if given is None and recorded is None:
            raise DataError(f"{self.path}: does not say which data it was trained on; pass --data")
        folder = given or folder_of(str(recorded))
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

    def weights_file(self) -> Path:
        """Raises: DataError if training has not got as far as its first weights."""
        if not self.weights.is_file():
            earlier = replaced_path(self.path)
            kept = f"; the run that it is to replace is still {earlier}" if earlier.exists() else ""
            raise DataError(
                f"{self.path}: has no model.safetensors yet; training stopped before its first evaluation. "
                f"Continue it with `dmoe train … --resume`{kept}"
            )
        return self.weights


def create_folder(
    path: Path,
    config: RunConfig,
    schema: Schema,
    data: Path,
    write_more: Callable[[Path], dict[str, Any]],
    *,
    replace: bool = False,
) -> None:
    """A new run folder holding the configuration, schema and vocabularies.

    With `replace` it takes the place of an earlier one, which stays at `replaced_path`.

    Args:
        write_more: writes further files into the folder while nobody sees it, and gives facts for environment.json.
    Raises: DataError if something is there already.
    """
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise _exists(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _no_other(path), written_aside(path, replace=replace, keep=True) as aside:
        aside.mkdir()
        schema.write(aside)
        copy_vocabularies(data, aside, schema)
        if (data / "summary.json").is_file():
            write_json(aside / "warnings.json", {"warnings": read_summary(data).get("warnings", [])})
        write_text(aside / "config.yaml", config.to_yaml())
        facts: dict[str, Any] = {"data": address_of(data), "data_digest": digest_of(data)}
        write_json(aside / "environment.json", facts | write_more(aside))


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
