"""The experiment folder: what was asked for, and one folder a cell.

experiment.json        data, size, seeds and names of what was asked for
parts/ROWS             the latest ROWS training rows as a data set, of an experiment on parts of the log
cells/KEY/run.yaml     a plain run configuration: `dmoe train cells/KEY/run.yaml --data DATA …` repeats the run
cells/KEY/run          the run folder, without weights unless they were to be kept
cells/KEY/cell.json    the figures; its presence says that the cell is finished
cells/KEY/scores.parquet   split, label and logits of every held-out row
cells/KEY/failed.json  why a cell failed, until it is tried again
cells/KEY/log.txt      what the cell said while it ran
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dmoe.config.data import SPLITS
from dmoe.config.run import RunConfig
from dmoe.disk.files import check_links, read_json, remove_leftovers, write_json, write_text
from dmoe.errors import ConfigError, DataError, nearest
from dmoe.experiments import grid
from dmoe.experiments.cell import DONE
from dmoe.experiments.families import FAMILIES, Slice, family_arms, family_grid, slices
from dmoe.experiments.grid import Arm, Cell, Grid
from dmoe.experiments.stored import CELL_FORMAT, CellRecord, FailedRecord
from dmoe.schema import Schema
from dmoe.shards.latest import write_latest
from dmoe.shards.summary import read_summary
from dmoe.validation import Count, validate_stored

FORMAT_VERSION: Literal[2] = 2
ASKED = "experiment.json"
FAILED = "failed.json"
MOST_SEEDS = 10_000


def all_names() -> list[str]:
    """Every experiment, those of several labels or domains last."""
    return [*grid.names(), *FAMILIES]


class SplitSize(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: Count
    positives: Count


class Asked(BaseModel):
    """`experiment.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format_version: Literal[2] = FORMAT_VERSION
    data: str
    splits: dict[str, SplitSize]
    """Of each of the three."""
    fields: int
    tokens: int
    size: str
    seeds: int = Field(ge=1, le=MOST_SEEDS)
    names: tuple[str, ...]
    parts: tuple[int, ...] = ()
    """Training rows of each part that `growth` takes."""
    changes: tuple[str, ...] = ()
    truth: str | None = None

    @field_validator("splits")
    @classmethod
    def _all_three(cls, splits: dict[str, SplitSize]) -> dict[str, SplitSize]:
        if set(splits) != set(SPLITS):
            raise ValueError(f"must be of {', '.join(SPLITS)}")
        return splits

    @field_validator("size")
    @classmethod
    def _known_size(cls, size: str) -> str:
        if size not in grid.sizes():
            raise ValueError(f"no size '{size}'{nearest(size, grid.sizes())}")
        return size

    @field_validator("names")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in all_names():
                raise ValueError(f"no experiment '{name}'{nearest(name, all_names())}")
        return names

    @property
    def seed_numbers(self) -> list[int]:
        return list(range(1, self.seeds + 1))


@dataclass(frozen=True)
class Folder:
    """An experiment folder."""

    path: Path

    @staticmethod
    def is_one(path: Path) -> bool:
        return (path / ASKED).is_file()

    @staticmethod
    def open(path: Path) -> "Folder":
        """Raises: DataError if it is no experiment folder."""
        if not Folder.is_one(path):
            raise DataError(f"{path}: has no {ASKED}, so it is not a folder of `dmoe experiment`")
        check_links(path)
        return Folder(path)

    @property
    def asked(self) -> Asked:
        path = self.path / ASKED
        return validate_stored(Asked, read_json(path), str(path))

    def ask(self, asked: Asked) -> Asked:
        """Notes what is wanted; earlier names and seeds stay wanted.

        Raises: ConfigError if the folder holds runs on other data or of another size.
        """
        if Folder.is_one(self.path):
            earlier = self.asked
            for what in ("size", "changes", "data", "splits", "fields", "tokens", "truth"):
                before, now = getattr(earlier, what), getattr(asked, what)
                if before != now and not (what == "truth" and before is None):
                    shown = f"{what} {before}" if isinstance(before, str | int) else f"other {what}"
                    raise ConfigError(
                        f"{self.path}: holds runs of {shown}, not of those asked for; choose another --output"
                    )
            names = {*earlier.names, *asked.names}
            asked = asked.model_copy(
                update={
                    "names": tuple(name for name in all_names() if name in names),
                    "seeds": max(earlier.seeds, asked.seeds),
                    "parts": tuple(sorted({*earlier.parts, *asked.parts})),
                }
            )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(f"{self.path}: exists and is no folder of `dmoe experiment`; choose another --output")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / ASKED, asked.model_dump(mode="json"))
        return asked

    def tables(self) -> list[str]:
        """The names of the tables: an experiment has one, a family one for each slice."""
        found = []
        for name in self.asked.names:
            family = name in FAMILIES
            found += [f"{name}-{of.suffix}" for of in slices(name, self.schema)] if family else [name]
        return found

    def grid(self, table: str) -> Grid:
        """The grid of a table, over the parts that were asked for."""
        name, _, suffix = table.partition("-")
        if name in FAMILIES:
            return family_grid(name, Slice.read(suffix), self.schema)
        return grid.grid(table).over_parts(self.asked.parts)

    def arms(self, table: str) -> Sequence[Arm]:
        asked = self.asked
        name, _, suffix = table.partition("-")
        if name in FAMILIES:
            return family_arms(name, Slice.read(suffix), grid.size(asked.size), asked.changes, self.schema)
        return grid.arms(table, grid.size(asked.size), asked.changes, asked.parts, asked.splits["train"].rows)

    def data(self, part: int | None) -> Path:
        """The data set that a cell reads: the one asked for, or its latest `part` training rows."""
        return Path(self.asked.data) if part is None else self.path / "parts" / str(part)

    def make_parts(self) -> None:
        """Makes the parts of the log that are not there yet.

        Raises: as `write_latest`.
        """
        remove_leftovers(self.path / "parts")
        for rows in self.asked.parts:
            part = None if rows == self.asked.splits["train"].rows else rows
            if not self.data(part).is_dir():
                self.data(part).parent.mkdir(exist_ok=True)
                write_latest(Path(self.asked.data), rows, self.data(part))

    def cell(self, key: str) -> Path:
        return self.path / "cells" / key

    def make_cell(self, cell: Cell) -> Path:
        """The cell's folder, holding its `run.yaml`; what failed before is forgotten."""
        folder = self.cell(cell.key)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "run.yaml").is_file():
            write_text(folder / "run.yaml", cell.config.to_yaml())
        (folder / FAILED).unlink(missing_ok=True)
        return folder

    def figures(self, key: str) -> dict[str, Any] | None:
        """The content of `cell.json`, None while the cell is not finished.

        Raises: DataError if it is damaged, was written by another format version, or is of another configuration than
        its name says, as when a default has changed since.
        """
        path = self.cell(key) / DONE
        if not path.is_file():
            return None
        found = read_json(path)
        if found.get("format_version") != CELL_FORMAT:
            raise DataError(f"{path}: written by another version of dmoe; remove the cell's folder to run it again")
        record = validate_stored(CellRecord, found, str(path))
        resolved = validate_stored(RunConfig, record.resolved, f"{path}: resolved")
        if Cell.of(validate_stored(RunConfig, record.config, f"{path}: config"), record.part).key != key:
            raise DataError(f"{path}: its configuration is not that of its folder; remove the folder to run it again")
        return record.model_dump(exclude_unset=True) | {"resolved": resolved.model_dump(mode="json")}

    def finished(self) -> dict[str, dict[str, Any]]:
        """Figures of every finished cell, by key."""
        found = {}
        for folder in sorted((self.path / "cells").glob("*")):
            figures = self.figures(folder.name)
            if figures is not None:
                found[folder.name] = figures
        return found

    def failed(self) -> dict[str, str]:
        """Why cells failed, by key."""
        return {
            path.parent.name: validate_stored(FailedRecord, read_json(path), str(path)).reason
            for path in sorted((self.path / "cells").glob(f"*/{FAILED}"))
        }

    @cached_property
    def schema(self) -> Schema:
        return Schema.read(Path(self.asked.data))


def describe_data(data: Path) -> tuple[Schema, dict[str, SplitSize]]:
    """The schema and the size of each split.

    Raises: DataError if it is no data set folder, or lacks a split that experiments need.
    """
    schema = Schema.read(data)
    splits = read_summary(data)["splits"] if (data / "summary.json").is_file() else {}
    found = {}
    for split in ("train", "valid", "test"):
        if not (data / split).is_dir():
            raise DataError(f"{data}: has no {split} split; prepare it with all three: train, valid and test")
        found[split] = _split_size(data / split, schema.label, splits.get(split))
    return schema, found


def _split_size(folder: Path, label: str, known: dict[str, Any] | None) -> SplitSize:
    if known is not None:
        return SplitSize(rows=known["rows"], positives=known["positives"])
    from pyarrow.dataset import dataset

    labels = dataset(folder, format="parquet").to_table(columns=[label])[0]
    return SplitSize(rows=len(labels), positives=int(labels.drop_null().to_numpy().sum()))
