"""What the fitting workers share: the job, the arrays of a split, and what is left behind.

A fitting worker trains one model to its end: `python -m benchmarks.workers.<peer>_fit JOB.json`. JOB.json holds

- `model`, `vocabulary_sizes`, `num_numeric`, `embedding_dim`, `hidden_units`, `cin_units`, `cross_layers`;
- `embedding_l2` (of (λ/2)‖W‖² over all tables, added to the mean loss at every step), `learning_rate`, `lr_decay`,
  `batch_size`, `epochs` (at most), `evaluations_per_epoch`, `patience`, `seed`, `threads`;
- `splits`: an npz file each for train, valid and test, with ids (R, C) int32, numeric (R, N) and labels (R,) float32.

Beside it the worker writes scores.npz (`valid` and `test`, logits (R,) float64 of the weights that the validation
split chose) and fit.json (`seconds`, `epochs`, `best`, `parameters`, `peak_bytes`, `versions`).

Shape suffixes: R rows, C categorical and N numeric fields.
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.workers.serve import Job, peak_bytes

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Split:
    """The encoded rows of one split, in the order of its files."""

    ids_RC: NDArray[np.int32]
    numeric_RN: NDArray[np.float32]
    labels_R: NDArray[np.float32]

    @staticmethod
    def read(path: str | Path) -> "Split":
        with np.load(path, allow_pickle=False) as arrays:
            return Split(arrays["ids"], arrays["numeric"], arrays["labels"])

    def write(self, path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, ids=self.ids_RC, numeric=self.numeric_RN, labels=self.labels_R)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model: `epochs` it took, its trained numbers, and the logits of the weights that were kept.

    `best` is the peer's own AUC - logloss of the validation split at the evaluation whose weights it kept.
    """

    epochs: float
    best: float
    parameters: int
    valid_R: Floats
    test_R: Floats


def summed_l2(embedding_l2: float, batch_size: int) -> float:
    """The weight of ‖W‖² in a loss that is the sum over a batch, for (λ/2)‖W‖² in one that is the mean: λB/2.

    The first loss is then B times the second, and Adam does not see a constant factor.
    """
    return embedding_l2 * batch_size / 2


def run(fit: Callable[[Job, dict[str, Split], Path], Fitted], packages: tuple[str, ...]) -> None:
    """Trains what the program's argument says; `fit` gets the job, the splits and a folder for its checkpoints."""
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    splits = {name: Split.read(file) for name, file in job["splits"].items()}
    import torch

    torch.set_num_threads(job["threads"])
    random.seed(job["seed"])
    np.random.seed(job["seed"])  # noqa: NPY002 (peers draw from it)
    torch.manual_seed(job["seed"])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dmoe-fit-") as scratch:
        fitted = fit(job, splits, Path(scratch))
    seconds = time.perf_counter() - start
    with (path.parent / "scores.npz").open("wb") as stream:
        np.savez(stream, valid=fitted.valid_R.astype(np.float64), test=fitted.test_R.astype(np.float64))
    found = {
        "seconds": seconds,
        "epochs": fitted.epochs,
        "best": fitted.best,
        "parameters": fitted.parameters,
        "peak_bytes": peak_bytes(),
        "versions": {name: version(name) for name in ("torch", *packages)},
    }
    (path.parent / "fit.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
