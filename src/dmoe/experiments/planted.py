"""Whether experts recover what a generated log has planted: each part of the logit, read off each expert.

A generated log's logit has an `inner` part (pairs of fields) and a `triple` part (a parity of three other fields). If
experts specialise, one can tell the one part and the other the other; if they do not, each tells both equally well.

Shape suffixes: N rows, D units, M experts, P parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmoe.disk.files import read_json
from dmoe.errors import DataError
from dmoe.synthetic.draw import blocks
from dmoe.synthetic.presets import PRESETS, with_relations
from dmoe.synthetic.tasks import PlantedTasks
from dmoe.synthetic.truth import split_bounds

Floats = NDArray[np.float64]

# The structures that the fields of a log keep apart; the others lie on single fields.
STRUCTURES = ("inner", "triple")
# Ridge penalty of the read-out, relative to the mean variance of the units: only there for units that are alike.
RIDGE = 1e-3
# Rows that a read-out is fitted to and judged on, at most each.
MAX_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Truth:
    """A generated log, known again from its `.truth.json`."""

    planted: PlantedTasks
    rows: int

    @staticmethod
    def read(path: Path) -> "Truth":
        """Raises: DataError if the file is absent, damaged, or of a preset that this dmoe does not know."""
        values = read_json(path)
        try:
            preset, seed, rows = str(values["preset"]), int(values["seed"]), int(values["rows"])
            domains = values.get("parameters", {}).get("domains")
            similarity = None if domains is None else float(domains["similarity"])
        except (AttributeError, KeyError, TypeError, ValueError):
            raise DataError(f"{path}: not a truth file of `dmoe generate`; expected keys preset, seed, rows") from None
        if preset not in PRESETS:
            raise DataError(f"{path}: preset '{preset}' is not known to this dmoe; generate the log again")
        return Truth(PlantedTasks.calibrate(with_relations(PRESETS[preset], None, similarity), seed), rows)

    def parts(self, split: str) -> dict[str, Floats]:
        """What each structure adds to the main task's logit of the split's rows, in order; at most MAX_ROWS of them."""
        first, last = split_bounds(self.rows)[split]
        last = min(last, first + MAX_ROWS)
        found: dict[str, list[Floats]] = {part: [] for part in STRUCTURES}
        for columns in blocks(self.planted.preset, self.planted.seed, self.rows):
            if columns.start >= last:
                break
            if columns.start + len(columns) <= first:
                continue
            here = slice(max(first - columns.start, 0), last - columns.start)
            for part, value_R in self.planted.parts(columns)[0].items():
                if part in found:
                    found[part].append(value_R[here])
        return {part: np.concatenate(values) for part, values in found.items()}


def recovered(
    fit: Sequence[Floats], fit_parts: dict[str, Floats], judged: Sequence[Floats], parts: dict[str, Floats]
) -> dict[str, Any]:
    """R² with which each expert's units (N, D) tell each planted part by a linear read-out, and their separation.

    The read-out is fitted to the one split and judged on the other. `separation` is the largest mean, over ways of
    giving each structure an expert of its own, of that expert's R² minus the best R² of the others: near 0 (or below)
    when experts tell the same, up to 1 when each tells its own structure and nothing of the other's.
    """
    matrix_MP = [
        [_r_squared(fit_ND, fit_parts[part], judged_ND, parts[part]) for part in parts]
        for fit_ND, judged_ND in zip(fit, judged, strict=True)
    ]
    return {"parts": list(parts), "r_squared": matrix_MP, "separation": separation(matrix_MP)}


def separation(matrix_MP: Sequence[Sequence[float]]) -> float:
    """See `recovered`."""
    return _gap(np.asarray(matrix_MP), assigned(matrix_MP))


def assigned(matrix_MP: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """The expert that each structure is given, an expert of its own for each, so that separation is largest."""
    table = np.asarray(matrix_MP)
    num_experts, num_parts = table.shape
    ways = permutations(range(num_experts), min(num_parts, num_experts))
    return max(ways, key=lambda chosen: _gap(table, chosen))


def _gap(table_MP: Floats, chosen: Sequence[int]) -> float:
    """Mean over structures of the chosen expert's R² minus the best of the others."""
    gaps = [table_MP[expert, part] - np.delete(table_MP[:, part], expert).max() for part, expert in enumerate(chosen)]
    return float(np.mean(gaps))


def _r_squared(fit_ND: Floats, fit_N: Floats, judged_ND: Floats, judged_N: Floats) -> float:
    mean_D, mean = fit_ND.mean(0), fit_N.mean()
    centred_ND = fit_ND - mean_D
    moments_DD = centred_ND.T @ centred_ND
    penalty = RIDGE * max(float(np.trace(moments_DD)) / len(moments_DD), np.finfo(np.float64).tiny)
    weights_D = np.linalg.solve(moments_DD + penalty * np.eye(len(moments_DD)), centred_ND.T @ (fit_N - mean))
    told_N = mean + (judged_ND - mean_D) @ weights_D
    return float(1 - np.square(judged_N - told_N).sum() / np.square(judged_N - judged_N.mean()).sum())
