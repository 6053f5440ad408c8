"""Runs of peers on a data set of dmoe: its splits as arrays, one process a run, one folder a result.

Shape suffixes: R rows, C categorical and N numeric fields.
"""

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from benchmarks.environments import REQUIREMENTS, ROOT, pinned, python_of
from benchmarks.rival_search import Result, Run, goodness
from benchmarks.workers.fitting import Split
from dmoe.disk.files import read_json, write_json, written_aside
from dmoe.errors import DataError, DmoeError
from dmoe.export.manifest import sha256
from dmoe.metrics.scores import auc, logloss
from dmoe.schema import MultiValuedField, Schema
from dmoe.shards.reader import SplitReader

SPLITS = ("train", "valid", "test")
SCORED = ("valid", "test")
READ_ROWS = 65_536
# Peers score their evaluations from float32 probabilities.
SAME_SCORE = 1e-5
# DeepCTR-Torch takes ids as float32, which tells whole numbers apart up to here.
LARGEST_FLOAT32_ID = 1 << 24


class RunError(DmoeError):
    """A peer's training failed; the message holds the end of its log."""


def check_fields(schema: Schema, data: Path, peers: tuple[str, ...]) -> None:
    """Raises: DataError for a field that the peers, as they are run here, cannot take."""
    for field in schema.categorical:
        if isinstance(field, MultiValuedField):
            raise _refused(data, field.name, "is multi-valued")
        if field.vectors is not None:
            raise _refused(data, field.name, "has given vectors")
        if field.embedding_dim is not None:
            raise _refused(data, field.name, "has an embedding_dim of its own")
        if "deepctr" in peers and field.vocabulary_size > LARGEST_FLOAT32_ID:
            raise DataError(
                f"{data}: field '{field.name}' has {field.vocabulary_size} ids, but DeepCTR-Torch holds ids as "
                f"float32, exact up to {LARGEST_FLOAT32_ID}; give --peers fuxictr, or prepare with a larger min_count"
            )
    if not schema.categorical:
        raise DataError(f"{data}: has no categorical field, which the peers' models need")


def _refused(data: Path, field: str, what: str) -> DataError:
    return DataError(
        f"{data}: field '{field}' {what}; peers get one id or one number a field, and one embedding width. "
        "Prepare the log again without that"
    )


def read_split(data: Path, name: str, *, numeric: bool) -> Split:
    """All rows of a split in the order of its files; without `numeric`, N is 0.

    Raises: DataError.
    """
    batches = list(SplitReader(data, name, batch_size=READ_ROWS).batches())
    return Split(
        np.concatenate([batch.ids_BC.numpy() for batch in batches]),
        np.concatenate([batch.numeric_BN.numpy()[:, : None if numeric else 0] for batch in batches]),
        np.concatenate([batch.labels_B.numpy() for batch in batches]),
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """The splits as the workers read them, and a hash of the prepared files that they are from."""

    vocabulary_sizes: list[int]
    num_numeric: int
    files: dict[str, str]
    labels: dict[str, np.ndarray]
    fingerprint: str

    @staticmethod
    def export(data: Path, folder: Path, peers: tuple[str, ...], *, numeric: bool = True) -> "Rows":
        """Writes `folder`/rows-<hash>/<split>.npz, if it is not there yet, with or without the numeric fields.

        Raises: DataError if `data` is not a whole data set folder, or has a field that peers cannot take.
        """
        schema = Schema.read(data)
        check_fields(schema, data, peers)
        parts = [path for name in SPLITS for path in sorted((data / name).glob("*.parquet"))]
        text = "".join(f"{path.relative_to(data)}:{sha256(path)}\n" for path in [data / "schema.json", *parts])
        text += "" if numeric else "categorical fields only\n"
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
        place = folder / f"rows-{fingerprint}"
        if not place.is_dir():
            with written_aside(place) as aside:
                aside.mkdir(parents=True)
                for name in SPLITS:
                    read_split(data, name, numeric=numeric).write(aside / f"{name}.npz")
        files = {name: str((place / f"{name}.npz").resolve()) for name in SPLITS}
        labels = {name: Split.read(files[name]).labels_R.astype(np.uint8) for name in SCORED}
        num_numeric = len(schema.numeric) if numeric else 0
        return Rows(schema.vocabulary_sizes, num_numeric, files, labels, fingerprint)


@dataclass(frozen=True, slots=True)
class Trainer:
    """Trains a run in its peer's environment, or reads what an earlier call left."""

    rows: Rows
    folder: Path
    environments: Path
    threads: int

    def name(self, run: Run) -> str:
        """The folder of a run: its hash covers data, model, setting, seed, budget and the peer's versions."""
        parts = [self.rows.fingerprint, run.peer, run.job(), REQUIREMENTS[run.peer], pinned()]
        text = json.dumps(parts, sort_keys=True)
        return f"{run.peer}-{run.model}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def __call__(self, run: Run) -> Result:
        """Raises: RunError, InstallationError."""
        place = self.folder / self.name(run)
        if not (place / "result.json").is_file():
            with written_aside(place) as aside:
                aside.mkdir()
                self._train(run, aside, place.name)
        return {**read_json(place / "result.json"), "folder": place.name, "scores": f"{place.name}/scores.parquet"}

    def _train(self, run: Run, aside: Path, name: str) -> None:
        log = self.folder / "logs" / f"{name}.log"
        job = {
            **run.job(),
            "vocabulary_sizes": self.rows.vocabulary_sizes,
            "num_numeric": self.rows.num_numeric,
            "splits": self.rows.files,
            "threads": self.threads,
        }
        write_json(aside / "job.json", job)
        start_worker(python_of(run.peer, self.environments), f"{run.peer}_fit", aside / "job.json", self.threads, log)
        result = {"seed": run.seed, **read_json(aside / "fit.json")}
        with np.load(aside / "scores.npz", allow_pickle=False) as arrays:
            logits = {name: arrays[name] for name in SCORED}
        for split, scores_R in logits.items():
            labels_R = self.rows.labels[split]
            if scores_R.shape != labels_R.shape or not np.all(np.isfinite(scores_R)):
                raise RunError(f"{name}: its {split} scores are not one finite number a row; see {log}")
            result[split] = {"auc": auc(labels_R, scores_R), "logloss": logloss(labels_R, scores_R)}
        if abs(goodness(result) - result["best"]) > SAME_SCORE:
            raise RunError(
                f"{name}: its validation scores give AUC - logloss {goodness(result):.6f}, but its own loop kept "
                f"weights of {result['best']:.6f}; see {log}"
            )
        parquet.write_table(scores_table(self.rows.labels, logits), aside / "scores.parquet")
        (aside / "scores.npz").unlink()
        (aside / "fit.json").unlink()
        write_json(aside / "result.json", result)


def scores_table(labels: dict[str, np.ndarray], logits: dict[str, np.ndarray]) -> pa.Table:
    """Columns split, row (position in the split's files, from 0), label and logit: valid, then test."""
    counts = [len(labels[name]) for name in SCORED]
    return pa.table(
        {
            "split": pa.array(np.repeat(SCORED, counts)).dictionary_encode(),
            "row": np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
            "label": np.concatenate([labels[name] for name in SCORED]),
            "logit": np.concatenate([logits[name].astype(np.float64) for name in SCORED]),
        }
    )


def start_worker(python: Path, module: str, job: Path, threads: int, log: Path) -> None:
    """Runs a fitting worker to its end; what it prints goes to `log`.

    Raises: RunError with the last line of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    limits: dict[str, Any] = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    with log.open("wb") as stream:
        code = subprocess.run(
            [str(python), "-m", f"benchmarks.workers.{module}", str(job.resolve())],
            cwd=ROOT,
            env={**os.environ, **limits, "PYTHONPATH": str(ROOT)},
            stdout=stream,
            stderr=stream,
            check=False,
        ).returncode
    if code:
        end = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise RunError(f"{module} ended with code {code}: {''.join(end) or 'no message (out of memory?)'}; see {log}")
