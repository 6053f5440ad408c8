"""The rows of the production benchmark, as both of its workers read them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Job = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """One batch. `ids`: the columns of each categorical field, then those of each list (0 is no value)."""

    ids: NDArray[np.int32]
    numeric: NDArray[np.float32]
    labels: NDArray[np.float32]


def load_rows(job: Job) -> list[Rows]:
    """The prebuilt batches, views of three arrays."""
    arrays = np.load(job["batches"])
    ids, numeric, labels = (arrays[name] for name in ("ids", "numeric", "labels"))
    size = job["batch_size"]
    return [
        Rows(ids[start : start + size], numeric[start : start + size], labels[start : start + size])
        for start in range(0, len(ids), size)
    ]


def field_names(job: Job) -> list[str]:
    """Categorical fields, lists, numeric fields: the order of both models."""
    categorical = [f"c{index}" for index in range(len(job["vocabulary_sizes"]))]
    lists = [f"l{index}" for index in range(len(job["lists"]))]
    return [*categorical, *lists, *(f"n{index}" for index in range(job["num_numeric"]))]


def chosen_names(job: Job) -> list[str]:
    """The fields that IPNN and the gate read: the first categorical ones, and the lists."""
    return [f"c{index}" for index in range(job["num_chosen"])] + [f"l{index}" for index in range(len(job["lists"]))]
