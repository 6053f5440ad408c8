"""The data set that an update continues: its ids and scalings stay, its rows come first."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.config.data import SPLITS, DataConfig
from dmoe.config.stored import stored_config
from dmoe.schema import AnyField, CategoricalField, Schema
from dmoe.shards.summary import read_summary


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A data set folder with its schema and summary."""

    folder: Path
    schema: Schema
    summary: dict[str, Any]

    @staticmethod
    def read(folder: Path) -> "DataFolder":
        """Raises: DataError if the folder is not a whole data set."""
        return DataFolder(folder, Schema.read(folder), read_summary(folder))

    def config(self) -> DataConfig:
        """What the data set was prepared with.

        Raises: DataError if schema.json does not hold it, or other fields and labels than it makes.
        """
        return stored_config(self.schema, self.folder)

    def field(self, name: str) -> AnyField:
        return next(field for field in self.schema.fields if field.name == name)

    def edges(self, name: str) -> tuple[float, ...]:
        """The bounds of a quantile field."""
        field = self.field(name)
        assert isinstance(field, CategoricalField)
        assert field.edges is not None
        return field.edges

    def num_parts(self, split: str) -> int:
        return len(self._parts(split))

    def _parts(self, split: str) -> list[Path]:
        return sorted((self.folder / split).glob("part-*.parquet"))

    def take_over(self, folder: Path, added: dict[str, Any]) -> dict[str, Any]:
        """Puts the old shards and rejects before the new ones of `folder`; gives the summary of both.

        Shards are hard links where the file system has them. Raises: OSError if the disk is full.
        """
        for split in SPLITS:
            for part in self._parts(split):
                target = folder / split / part.name
                target.parent.mkdir(exist_ok=True)
                target.unlink(missing_ok=True)
                with suppress(OSError):
                    os.link(part, target)
                if not target.exists():
                    shutil.copyfile(part, target)
        rejects = folder / "rejects.parquet"
        table = pa.concat_tables([pq.read_table(self.folder / rejects.name), pq.read_table(rejects)])
        pq.write_table(table, rejects)
        return merged(self.summary, added, {split: self.num_parts(split) for split in SPLITS})


def merged(old: dict[str, Any], added: dict[str, Any], old_parts: dict[str, int]) -> dict[str, Any]:
    """The summary of all rows; under `updates` those of each update, with the number of its first shards.

    Distinct values are known for the updates only: those below the least count are not kept.
    """
    rows = {name: (_rows(old, name), _rows(added, name)) for name in SPLITS if sum(_counts(old, added, name))}
    labels = _added_up(old.get("labels"), added.get("labels"))
    main = next(iter(labels), None)
    splits = {}
    for name, (before, new) in rows.items():
        of_both = [summary["splits"].get(name, {}) for summary in (old, added)]
        positives = sum(one.get("positives", 0) for one in of_both)
        known = before + new if main is None else labels[main]["splits"][name]["known"]
        splits[name] = {"rows": before + new, "positives": positives, "click_rate": positives / max(known, 1)}
        if any("weight" in one for one in of_both):
            splits[name]["weight"] = sum(one.get("weight", 0.0) for one in of_both)
    fields: dict[str, Any] = {}
    for field, values in added["fields"].items():
        fields[field] = {key: values[key] for key in ("kind", "vocabulary_size") if key in values}
        both = old["fields"][field], values
        fields[field]["missing"] = _weighted([one["missing"] for one in both], rows)
        if "unseen" in values:
            of = {name: tuple(one["values"].get(name, 0) for one in both) for name in rows}
            fields[field]["values"] = {name: sum(counts) for name, counts in of.items()}
            fields[field]["unseen"] = _weighted([one["unseen"] for one in both], of)
    reasons = sorted({*old["rejects"], *added["rejects"]})
    first_parts = {name: old_parts[name] for name in added["splits"]}
    keys = ("rows", "splits", "labels", "rejects", "files", "fields", "far_above", "seconds")
    update = {key: added[key] for key in keys if key in added}
    return {
        **{key: value for key, value in added.items() if key != "far_above"},
        "rows": {key: old["rows"][key] + added["rows"][key] for key in added["rows"]},
        "splits": splits,
        **({"labels": labels} if labels else {}),
        "rejects": {reason: old["rejects"].get(reason, 0) + added["rejects"].get(reason, 0) for reason in reasons},
        "files": [*old["files"], *added["files"]],
        "fields": fields,
        "updates": [*old.get("updates", []), {"first_parts": first_parts, **update}],
    }


def _added_up(first: Any, second: Any) -> Any:
    """The counts of both, whatever they are by; what one of them lacks counts 0."""
    if isinstance(first, int) or isinstance(second, int):
        return (first or 0) + (second or 0)
    one, other = first or {}, second or {}
    return {name: _added_up(one.get(name), other.get(name)) for name in dict.fromkeys([*one, *other])}


def _weighted(shares: list[dict[str, float]], counts: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """The shares by split of both summaries together, weighted by what they are shares of."""
    return {
        name: sum(share.get(name, 0.0) * count for share, count in zip(shares, of, strict=True)) / max(sum(of), 1)
        for name, of in counts.items()
    }


def _rows(summary: dict[str, Any], split: str) -> int:
    return int(summary["splits"].get(split, {"rows": 0})["rows"])


def _counts(old: dict[str, Any], added: dict[str, Any], split: str) -> tuple[int, int]:
    return _rows(old, split), _rows(added, split)
