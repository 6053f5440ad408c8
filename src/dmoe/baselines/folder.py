"""The folder of a fitted baseline: like a run folder, with another model in it.

baseline.json             kind, data set, what was chosen
schema.json, vocabulary/  all that encoding a raw row needs
metrics.json, evaluation/ as in a run folder
environment.json          versions, hardware, wall time
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from dmoe.baselines.models import MODELS, Kind, Model, Tell
from dmoe.config.data import HELD_OUT, SPLITS
from dmoe.disk.files import check_links, read_json, write_json, written_aside
from dmoe.disk.replaced import check_in_place, put_back
from dmoe.errors import ConfigError, DataError, nearest
from dmoe.metrics.scores import scores_of_split
from dmoe.metrics.unseen_rows import UnseenRows
from dmoe.schema import Schema
from dmoe.shards.batch import Batch
from dmoe.shards.files import EncodedRows, HeldData
from dmoe.shards.reader import SplitReader, read_once
from dmoe.tokens.lookup import copy_vocabularies
from dmoe.validation import validate_stored

MARK = "baseline.json"

# Rows to learn from: the latest ones of a longer split, so that minutes and a few gigabytes are enough.
MOST_ROWS = 2_000_000
_BATCH_ROWS = 65_536


class Facts(BaseModel):
    """What baseline.json holds; `rows` and `valid_rows`: the latest ones that it was fitted and chosen on; `label`:
    which of several it predicts."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format_version: Literal[1] = 1
    kind: Kind
    data: str
    seed: int
    rows: int
    valid_rows: int
    chosen: dict[str, float | int | str]
    label: str | None = None


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline."""

    path: Path

    @staticmethod
    def is_one(path: Path) -> bool:
        return (path / MARK).is_file()

    @staticmethod
    def open(path: Path) -> "Baseline":
        """Raises: DataError if it is none, or of another format version."""
        check_in_place(path)
        if not Baseline.is_one(path):
            raise DataError(f"{path}: has no {MARK}, so it is not a folder of `dmoe baseline`")
        check_links(path)
        found = Baseline(path)
        for _ in (found.facts, found.schema):  # their errors come here, not at first use
            pass
        return found

    @cached_property
    def facts(self) -> Facts:
        path = self.path / MARK
        return validate_stored(Facts, read_json(path), str(path))

    @cached_property
    def schema(self) -> Schema:
        return Schema.read(self.path)

    @property
    def task(self) -> int:
        """The number of its label."""
        return self.schema.task_number(self.facts.label)

    def data_folder(self, given: Path | None = None) -> Path:
        """The data set: `given`, or the one that it was fitted on.

        Raises: DataError if it is gone or its schema is another one.
        """
        folder = given or Path(self.facts.data)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such data set folder; pass --data with its present place")
        if Schema.read(folder) != self.schema:
            raise DataError(
                f"{folder}: its schema.json differs from that of {self.path}; pass the data set that it has"
            )
        return folder

    def load_model(self) -> Model:
        model: Model = MODELS[self.facts.kind].load(self.path, self.schema)
        return model


def fit_baseline(
    kind: Kind,
    data: Path,
    output: Path,
    *,
    label: str | None = None,
    seed: int = 2025,
    overwrite: bool = False,
    memory_gb: float = 4.0,
    tell: Tell = lambda _: None,
) -> Baseline:
    """Fits a baseline on the train split of a data set folder, chosen by its valid split, and evaluates it.

    `label`: of several, the one to predict; by default the main one.

    Raises: DataError if the data are not whole or something is at `output` already, ConfigError for a label that they
    do not have; MissingExtraError.
    """
    put_back(output)  # where a kill came between the two steps of an exchange
    if output.exists() and not (overwrite and Baseline.is_one(output)):
        what = "is no folder of `dmoe baseline`" if overwrite else "exists already; pass --overwrite to replace it"
        raise DataError(f"{output}: {what}, or choose another --output")
    began = time.monotonic()
    held = HeldData.of(data)
    schema = Schema.read(data)
    names = [task.name for task in schema.tasks]
    if label is not None and label not in names:
        raise ConfigError(f"{data}: no label '{label}' in the data{nearest(label, names)}")
    task = schema.task_number(label)
    train, valid = (_read(data, split, memory_gb, task) for split in ("train", "valid"))
    for split, rows in (("train", train), ("valid", valid)):
        classes = np.unique(rows.labels_R).tolist()
        if len(classes) < 2:
            what = f"every row has {names[task]} {classes[0]:g}" if classes else f"no row says its {names[task]}"
            raise DataError(f"{data / split}: {what}; both classes are needed")
    model: Model = MODELS[kind].fit(train, valid, schema, seed, tell)
    facts = Facts(
        kind=kind,
        data=str(data.resolve()),
        seed=seed,
        rows=rows_within(data, "train", memory_gb),
        valid_rows=rows_within(data, "valid", memory_gb),
        chosen=model.facts(),
        label=names[task] if len(names) > 1 else None,
    )
    evaluations = {split: evaluate_model(model, data, split, task) for split in HELD_OUT if (data / split).is_dir()}
    held.check()
    output.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(output, replace=overwrite) as aside:
        aside.mkdir()
        schema.write(aside)
        copy_vocabularies(data, aside, schema)
        model.save(aside)
        write_evaluations(aside, evaluations)
        scores = {split: {key: one[key] for key in _KEPT} for split, one in evaluations.items()}
        seconds = time.monotonic() - began
        write_json(aside / "metrics.json", {**scores, "seconds": seconds, "parameters": facts.chosen["parameters"]})
        write_json(aside / "environment.json", {"data": facts.data, "wall_seconds": seconds})
        write_json(aside / MARK, facts.model_dump(mode="json", exclude_none=True))
    return Baseline(output)


_KEPT = ("rows", "auc", "logloss", "relative_information_gain")


def write_evaluations(folder: Path, evaluations: dict[str, dict[str, Any]]) -> None:
    (folder / "evaluation").mkdir(exist_ok=True)
    for split, one in evaluations.items():
        write_json(folder / "evaluation" / f"{split}.json", one)


def evaluate_baseline(
    baseline: Baseline, *, splits: Sequence[str] | None = None, data: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluates it on the named splits, by default all that there are; writes `evaluation/<split>.json`."""
    folder, model = baseline.data_folder(data), baseline.load_model()
    chosen = splits or [name for name in SPLITS if (folder / name).is_dir()]
    found = {split: evaluate_model(model, folder, split, baseline.task) for split in chosen}
    write_evaluations(baseline.path, found)
    return found


def evaluate_model(model: Model, data: Path, split: str, task: int = 0) -> dict[str, Any]:
    """What `evaluation/<split>.json` of a run holds, as far as a model of one label without experts has it."""
    labels, logits, known, weights = [], [], [], []
    reader = read_once(data, split, batch_size=_BATCH_ROWS)
    unseen = UnseenRows(reader.schema)
    for batch in reader.batches():
        known_B = batch.known()[:, task].numpy()
        known.append(known_B)
        labels.append(batch.labels_BT[:, task].numpy()[known_B])
        logits.append(model.logits(batch.ids_BC.numpy(), batch.numeric_BN.numpy())[known_B])
        if batch.weights_B is not None:
            weights.append(batch.weights_B.double().numpy()[known_B])
        unseen.update(batch)
    labels_R, logits_R = np.concatenate(labels), np.concatenate(logits)
    weights_R = np.concatenate(weights) if weights else None
    return {
        **scores_of_split(split, labels_R, logits_R, weights_R),
        "unseen": unseen.result(labels_R, logits_R, np.concatenate(known), weights_R),
    }


def rows_within(data: Path, split: str, memory_gb: float) -> int:
    """How many of the latest rows of a split a baseline is fitted or chosen on."""
    reader = read_once(data, split, batch_size=_BATCH_ROWS)
    return reader.num_rows - _first_batch(reader, memory_gb) * _BATCH_ROWS


def _first_batch(reader: SplitReader, memory_gb: float) -> int:
    """From where the last `MOST_ROWS` are read, or as many as fit into half of the memory."""
    entries = reader.schema.num_ids + 2 * len(reader.schema.numeric)
    # An entry is an id, and a float64 and a column of the design.
    most = min(MOST_ROWS, int(memory_gb * 2**30) // 2 // (entries * 16))
    return max(0, reader.num_rows - most) // _BATCH_ROWS


def _read(data: Path, split: str, memory_gb: float, task: int) -> EncodedRows:
    """The latest rows of a split in file order, those that know the label, as the only one."""
    reader = read_once(data, split, batch_size=_BATCH_ROWS)
    batches = list(reader.batches(start_batch=_first_batch(reader, memory_gb)))
    known = [batch.known()[:, task].numpy() for batch in batches]

    def joined(of: Callable[[Batch], Tensor]) -> npt.NDArray[Any]:
        return np.concatenate([of(batch).numpy()[own] for batch, own in zip(batches, known, strict=True)])

    return EncodedRows(
        joined(lambda batch: batch.ids_BC),
        joined(lambda batch: batch.numeric_BN),
        joined(lambda batch: batch.labels_BT[:, task : task + 1]).astype(np.uint8),
        None if reader.schema.weight is None else joined(lambda batch: cast(Tensor, batch.weights_B)),
    )
