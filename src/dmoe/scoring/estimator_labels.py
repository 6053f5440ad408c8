"""One label or several, and rows to stop by, as scikit-learn's users pass them.

R rows, T labels.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dmoe.errors import DataError
from dmoe.schema import UNKNOWN
from dmoe.scoring.estimator_input import (
    LEAST_ROWS,
    FewRowsWarning,
    as_input_errors,
    check_rows,
    known_of,
    labels_of,
    split_rows,
    unmasked,
)


@dataclass(frozen=True, slots=True)
class Targets:
    """`codes_RT`: 0 for the first class of a label, 1 for the second, `UNKNOWN` where it is missing. `names` is None
    for one label that has none."""

    names: list[str] | None
    classes: list[NDArray[Any]]
    codes_RT: NDArray[np.uint8]

    def with_given(self, given: Mapping[str, str]) -> "Targets":
        """A label that is given another is unknown where that one is not of its second class."""
        codes_RT, names = self.codes_RT.copy(), self.names or []
        for _ in given:  # a chain is done after as many rounds
            for name, parent in given.items():
                codes_RT[codes_RT[:, names.index(parent)] != 1, names.index(name)] = UNKNOWN
        return Targets(self.names, self.classes, codes_RT)

    def rows(self, chosen: NDArray[Any]) -> "Targets":
        """Those of some rows."""
        return Targets(self.names, self.classes, self.codes_RT[chosen])


@as_input_errors()
def targets_of(y: Any, rows: int, like: Targets | None = None) -> Targets:
    """The labels of a table's rows: one, or those of the columns of a frame or two-dimensional array.

    `like`: labels that these are further rows of; they may then hold one class only.

    Raises: InputError as `labels_of`; if a label of several is known nowhere; or if it is not like `like`.
    """
    columns = _columns(y)
    names = None if columns is None else list(columns)
    if like is not None and names != like.names:
        raise DataError(f"eval_set: y must hold {_words(like.names)}, got {_words(names)}")
    if columns is None:
        if like is None:
            labels = labels_of(y, rows)
            classes = [np.unique(labels)]
            return Targets(None, classes, (labels == classes[0][1]).astype(np.uint8)[:, None])
        values, known_R = known_of(y, rows, "eval_set: y")
        if not known_R.all():
            raise DataError(f"eval_set: y: {int((~known_R).sum())} of {rows} labels are missing; leave these rows out")
        return Targets(None, like.classes, _codes(values, known_R, like.classes[0], "eval_set: y")[:, None])
    found, codes = [], []
    for number, (name, column) in enumerate(columns.items()):
        where = f"y: label '{name}'" if like is None else f"eval_set: y: label '{name}'"
        values, known_R = known_of(column, rows, where)
        one = np.unique(values) if like is None else like.classes[number]
        if len(one) != 2:
            said = f"{len(one)} classes" if len(one) > 1 else "one class" if len(one) else "no known label"
            raise DataError(f"{where} must hold two classes where it is known, got {said}")
        found.append(one)
        codes.append(_codes(values, known_R, one, where))
    codes_RT = np.stack(codes, axis=1)
    unknown_R = (codes_RT == UNKNOWN).all(axis=1)
    if unknown_R.any():
        raise DataError(
            f"{'y' if like is None else 'eval_set: y'}: no label is known in {int(unknown_R.sum())} of {rows} rows, "
            f"the first is row {int(unknown_R.argmax())} (counted from 0); leave these rows out"
        )
    return Targets(names, found, codes_RT)


def _columns(y: Any) -> dict[str, Any] | None:
    """The columns of a frame or array of several, by name; None for one label."""
    if isinstance(y, pa.Table):
        names, columns = y.column_names, list(y.columns)
    elif hasattr(y, "columns") and not hasattr(y, "codes"):
        names, columns = [str(name) for name in y.columns], [y[name] for name in y.columns]
    else:
        array = np.asarray(y, dtype=object) if isinstance(y, list | tuple) and _of_rows(y) else unmasked(y)
        if array.ndim != 2 or array.shape[1] < 2:
            return None
        return {f"y{number}": array[:, number] for number in range(array.shape[1])}
    if len(names) < 2:
        return None
    if len(set(names)) < len(names):
        raise DataError(f"y: label '{next(name for name in names if names.count(name) > 1)}' appears twice")
    return dict(zip(names, columns, strict=True))


def _of_rows(y: Sequence[Any]) -> bool:
    rows = bool(y) and all(isinstance(row, list | tuple | np.ndarray) for row in y)
    return rows and len({len(row) for row in y}) == 1


def _codes(values: NDArray[Any], known_R: NDArray[np.bool_], classes: NDArray[Any], where: str) -> NDArray[np.uint8]:
    odd = [one for one in np.unique(values).tolist() if one not in classes.tolist()]
    if odd:
        raise DataError(f"{where}: {odd[0]!r} is none of the classes {', '.join(map(repr, classes.tolist()))}")
    codes_R = np.full(len(known_R), UNKNOWN, dtype=np.uint8)
    codes_R[known_R] = values == classes[1]
    return codes_R


def _words(names: list[str] | None) -> str:
    return "one label" if names is None else f"the labels {', '.join(names)}"


def split_targets(targets: Targets, fraction: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to learn from and rows to stop by; of several labels stratified by all of them together.

    Raises, warns: as `split_rows`.
    """
    codes_RT = targets.codes_RT
    if targets.names is None:
        return split_rows(codes_RT[:, 0] == 1, fraction, seed)
    rows = len(codes_RT)
    check_rows(rows)
    kinds_R = np.unique(codes_RT, axis=0, return_inverse=True)[1].reshape(-1)
    draw = np.random.default_rng(seed)
    held = []
    for kind in range(int(kinds_R.max()) + 1):
        own = np.flatnonzero(kinds_R == kind)
        held.append(draw.permutation(own)[: max(round(fraction * len(own)), min(1, len(own) // 2))])
    valid = np.sort(np.concatenate(held))
    learn = np.setdiff1d(np.arange(rows), valid)
    for part in (learn, valid):
        for task, name in enumerate(targets.names):
            if len(part) < LEAST_ROWS or not {0, 1} <= set(codes_RT[part, task].tolist()):
                warnings.warn(
                    f"X: label '{name}' has too few rows of a class to hold both out: early stopping watches the rows "
                    "that are learnt from",
                    FewRowsWarning,
                    stacklevel=4,
                )
                return np.arange(rows), np.arange(rows)
    return learn, valid
