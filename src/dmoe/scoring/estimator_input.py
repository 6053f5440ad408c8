"""What scikit-learn's users pass, tables and labels of every kind, as the engine takes it.

R rows, F columns.
"""

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.multiclass import type_of_target

from dmoe.errors import ConfigError, DataError
from dmoe.sources.tables import NoTableError, as_arrow, is_missing, objects
from dmoe.training.callbacks import Callback

# What the figures of held-out rows need: the unbiased CKA of two experts is one of them.
LEAST_ROWS = 4


class InputError(DataError, ValueError):
    """A table, its labels or a parameter cannot be used; what scikit-learn's tools expect of an estimator."""


class FewRowsWarning(UserWarning):
    """Too few rows to hold some out: early stopping watches the rows that are learnt from."""


@contextmanager
def as_input_errors() -> Iterator[None]:
    """What is wrong with a table or its labels as the ValueError that scikit-learn's tools look for."""
    try:
        yield
    except InputError:
        raise
    except DataError as error:
        raise InputError(str(error)) from None


@dataclass(frozen=True, slots=True)
class GivenTable:
    """A table as pyarrow. `names`: of its columns if it had names and all are texts, else None; `categories`: the
    columns of a categorical dtype; `array`: whether its columns have a place only."""

    table: pa.Table
    names: list[str] | None
    categories: frozenset[str]
    array: bool


def as_given(X: Any, names: Sequence[str] | None = None) -> GivenTable:
    """A table of any kind; the columns of an array or list of rows are called `names`, by default x0, x1, ….

    Raises: DataError if it is none, has no column, or one that cannot be read.
    """
    if issparse(X):
        raise DataError(f"X is sparse ({type(X).__name__}), which is not supported; give X.toarray() or a table")
    try:
        table = as_arrow(X)
    except NoTableError:
        array = _two_dimensional(X)
        given = names or [f"x{index}" for index in range(array.shape[1])]
        if array.shape[1] != len(given):
            raise DataError(
                f"X has {array.shape[1]} features, but DMoEClassifier is expecting {len(given)} features as input"
            ) from None
        return GivenTable(pa.table({name: _column(array[:, place], name) for place, name in enumerate(given)}),
                     None, frozenset(), array=True)  # fmt: skip
    if not table.num_columns:
        raise DataError(_no_columns((table.num_rows, 0)))
    schema = nw.from_native(X if not isinstance(X, pa.RecordBatch) else pa.Table.from_batches([X])).schema
    categories = [str(name) for name, kind in schema.items() if kind in (nw.Categorical, nw.Enum)]
    texts = all(isinstance(name, str) for name in schema)
    return GivenTable(table, table.column_names if texts else None, frozenset(categories), array=False)


def _no_columns(shape: tuple[int, ...]) -> str:
    return f"X: found array with 0 feature(s) (shape={shape}) while a minimum of 1 is required."


def _two_dimensional(X: Any) -> NDArray[Any]:
    if isinstance(X, list | tuple):
        if X and all(isinstance(row, list | tuple | np.ndarray) for row in X):
            if len({len(row) for row in X}) > 1:
                raise DataError("X must be a table, an array or a list of rows of equal length")
            rows = np.empty((len(X), len(X[0])), dtype=object)
            for place, row in enumerate(X):
                rows[place] = [*row]
            X = rows
        elif not all(np.isscalar(one) for one in X) or any(isinstance(one, str) for one in X):
            raise DataError("X must be a pandas, polars or pyarrow table or a numpy array, got a list of other things")
    elif isinstance(X, str | bytes) or not hasattr(X, "__array__"):
        raise DataError(f"X must be a pandas, polars or pyarrow table or a numpy array, got {type(X).__name__}")
    array = unmasked(X)
    if np.iscomplexobj(array):
        raise DataError("X: Complex data not supported; give real numbers")
    if array.ndim != 2:
        raise DataError(
            f"X must be a table or a two-dimensional array, got shape {array.shape}. Reshape your data: "
            "array.reshape(-1, 1) makes one column of it, array.reshape(1, -1) one row"
        )
    if not array.shape[1]:
        raise DataError(_no_columns(array.shape))
    return array


def _column(values: NDArray[Any], name: str) -> Any:
    if values.dtype == object:
        return objects(values.tolist(), name)[0]
    try:
        return pa.array(np.ascontiguousarray(values))
    except (pa.ArrowException, TypeError, ValueError):
        kind = values.dtype
        raise DataError(f"X: column '{name}' holds {kind} values; make it numbers, texts or times") from None


@as_input_errors()
def labels_of(y: Any, rows: int) -> NDArray[Any]:
    """Labels (R,) of two classes as a numpy array of numbers, texts or booleans, whatever holds them.

    Raises: InputError if they are not one a row, some are missing, they are of types that have no common order,
    or no two classes.
    """
    if y is None:
        raise DataError("DMoEClassifier requires y to be passed, but the target y is None")
    values = _array_of(y)
    if values.shape == (rows, 1):
        # scikit-learn's own words: its tools and users look for them.
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected. Please change the shape of y to (n_samples, ), "
            "for example using ravel().",
            DataConversionWarning,
            stacklevel=4,
        )
        values = values.ravel()
    if values.shape != (rows,):
        raise DataError(f"y must hold one label a row: {rows} rows, got shape {values.shape}")
    missing = np.fromiter(map(is_missing, values.tolist()), dtype=bool, count=rows)
    if missing.any():
        raise DataError(
            f"y: {missing.sum()} of {rows} labels are missing, the first in row {int(missing.argmax())} (counted from "
            "0); leave these rows out"
        )
    labels = _plain(values)
    classes = np.unique(labels)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise DataError("y: a label is infinite; labels are two classes")
    if type_of_target(labels, input_name="y") == "continuous":
        broken = next(one for one in labels.tolist() if one != int(one))
        raise DataError(
            f"y: Unknown label type: continuous, such as {broken!r}; labels are two classes: whole numbers, texts or "
            "booleans"
        )
    if len(classes) != 2:
        some = ", ".join(repr(one) for one in classes[:5].tolist())
        more = "class" if len(classes) == 1 else "classes"
        raise DataError(
            f"Only binary classification is supported. y must hold two classes, got {len(classes)} {more}: "
            f"{some}{', …' if len(classes) > 5 else ''}"
        )
    return labels


def known_of(y: Any, rows: int, where: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The labels that are not missing, as numbers, texts or booleans, and where they stand, (R,).

    Raises: DataError if they are not one a row, or of types that have no common order; `where` names them.
    """
    values = _array_of(y)
    if values.shape == (rows, 1):
        values = values.ravel()
    if values.shape != (rows,):
        raise DataError(f"{where} must hold one label a row: {rows} rows, got shape {values.shape}")
    known_R = ~np.fromiter(map(is_missing, values.tolist()), dtype=bool, count=rows)
    try:
        labels = _plain(values[known_R])
    except DataError as error:
        raise DataError(str(error).replace("y", where, 1)) from None
    if labels.dtype.kind == "f" and len(labels):
        if not np.isfinite(labels).all() or (labels != np.floor(labels)).any():
            raise DataError(f"{where} holds numbers that are no classes; labels are whole numbers, texts or booleans")
        labels = labels.astype(np.int64)
    return labels, known_R


def weights_of(sample_weight: Any, rows: int) -> NDArray[np.float64] | None:
    """Weights (R,) of the rows, None where all are equal.

    Raises: InputError if they are not one number a row from 0 on, or all are 0.
    """
    if sample_weight is None:
        return None
    try:
        values = np.asarray(_array_of(sample_weight), dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError("sample_weight must hold one number a row") from None
    if values.shape != (rows,):
        raise DataError(f"sample_weight must hold one number a row: {rows} rows, got shape {values.shape}")
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        raise DataError(
            f"sample_weight: {values[wrong[0]]:g} in row {wrong[0]} (counted from 0); weights are numbers from 0 on"
        )
    if not values.any():
        raise DataError("sample_weight is zero in every row; give some rows a weight")
    return None if (values == values[0]).all() else values


def _array_of(y: Any) -> NDArray[Any]:
    values = y.to_pandas() if isinstance(y, pa.Array | pa.ChunkedArray | pa.Table) else y
    if isinstance(values, list | tuple):
        values = np.array([*values, None], dtype=object)[:-1]  # numpy would make texts of a mixture
    found: NDArray[Any] = values.to_numpy() if hasattr(values, "to_numpy") else unmasked(values)
    return found


def unmasked(values: Any) -> NDArray[Any]:
    """As an array; what a masked one hides is None."""
    array = np.array(values, dtype=object) if np.ma.isMaskedArray(values) else np.asarray(values)
    if np.ma.isMaskedArray(values):
        array[np.ma.getmaskarray(values)] = None
    return array


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Labels of one type that has an order."""
    if values.dtype.kind in "biufU":
        return values
    kinds = {type(one) for one in values.tolist()}
    if values.dtype == object:
        if all(issubclass(kind, bool | np.bool_) for kind in kinds):
            return values.astype(bool)
        if all(issubclass(kind, str) for kind in kinds):
            return values.astype(str)
        if all(issubclass(kind, Real | Decimal) and not issubclass(kind, bool) for kind in kinds):
            try:
                return values.astype(np.int64 if all(issubclass(kind, Integral) for kind in kinds) else np.float64)
            except OverflowError:
                raise DataError("y: a label is a number of more than 64 bits; make the labels texts") from None
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise DataError(f"y holds labels of types {names}; make them all numbers, texts or booleans")


def numeric_of(given: GivenTable, numeric: Sequence[str] | None) -> list[str]:
    """The columns taken as numbers: those asked for, or those of floats and decimals.

    Raises: InputError if one that was asked for is not there.
    """
    names = given.table.column_names
    if numeric is None:
        return [name for name in names if name not in given.categories and _is_number(given.table[name])]
    if isinstance(numeric, str):
        raise InputError(f"numeric must be a list of columns, got the text '{numeric}'; write ['{numeric}']")
    for name in numeric:
        if name not in names:
            raise InputError(f"numeric: X has no column '{name}' (it has {', '.join(names[:8])})")
    return list(numeric)


def _is_number(column: Any) -> bool:
    """Whether a column is a number by default: floats and decimals, but not ids that missing values made floats."""
    if pa.types.is_decimal(column.type):
        return True
    if not pa.types.is_floating(column.type):
        return False
    values = column.to_numpy()
    present = values[~np.isnan(values)]
    return len(present) == len(values) or not bool((present == np.floor(present)).all())


def check_parameters(overrides: Any, fraction: Any, callbacks: Any) -> None:
    """Raises: ConfigError for `overrides` that are no list; InputError for a share or callbacks that are none."""
    if isinstance(overrides, str) or not isinstance(overrides, Collection):
        raise ConfigError(f"overrides must be a list of key.path=value texts, got {overrides!r}")
    if not isinstance(fraction, float | np.floating) or not 0 < fraction < 1:
        raise InputError(f"validation_fraction must lie between 0 and 1, both excluded, got {fraction!r}")
    if isinstance(callbacks, str) or not isinstance(callbacks, Collection):
        raise InputError(f"callbacks must be a list of dmoe.Callback, got {callbacks!r}")
    for one in callbacks:
        if isinstance(one, type) or not isinstance(one, Callback):
            raise InputError(f"callbacks must be a list of dmoe.Callback, got {one!r} in it")


def check_rows(rows: int) -> None:
    """Raises: DataError for fewer than four rows."""
    if rows < LEAST_ROWS:
        raise DataError(f"X: n_samples={rows}, too few to learn from; at least {LEAST_ROWS} rows are needed")


def split_rows(is_second_R: NDArray[np.bool_], fraction: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to learn from and rows to stop by, in order, with both classes in each.

    Of few rows at most half of a class is held out, unless `fraction` asks for more. Where that makes fewer than four
    rows, or none of a class, all rows are in both parts and a FewRowsWarning says so.

    Raises: DataError if there are fewer than four rows.
    """
    rows = len(is_second_R)
    check_rows(rows)
    by_class = [np.flatnonzero(is_second_R == value) for value in (False, True)]
    counts = [len(one) for one in by_class]
    held = [min(max(round(fraction * count), min(2, count // 2)), count - 1) for count in counts]
    rarer = int(counts[1] < counts[0])
    held[1 - rarer] = max(held[1 - rarer], min(LEAST_ROWS - held[rarer], counts[1 - rarer] // 2))
    if min(held) < 1 or sum(held) < LEAST_ROWS:
        warnings.warn(
            f"X: {counts[0]} rows of one class and {counts[1]} of the other are too few to hold {LEAST_ROWS} of them "
            "and both classes out: early stopping watches the rows that are learnt from",
            FewRowsWarning,
            stacklevel=4,
        )
        return np.arange(rows), np.arange(rows)
    draw = np.random.default_rng(seed)
    parts = [draw.permutation(own)[:count] for own, count in zip(by_class, held, strict=True)]
    valid = np.sort(np.concatenate(parts))
    return np.setdiff1d(np.arange(rows), valid), valid
