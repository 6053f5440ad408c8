"""The scikit-learn estimator: tables in, the same preparation and training as the command line."""

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from dmoe.config import RunConfig, load_config
from dmoe.data.config import DataConfig
from dmoe.data.prepare import prepare
from dmoe.errors import DataError
from dmoe.nn.experts.options import check_experts
from dmoe.prediction import Predictor
from dmoe.rows import NoTableError, as_arrow, objects
from dmoe.training.loop import train
from dmoe.validation import validate

_LABEL = "__label__"
# What of a run folder scoring needs.
_SCORING_FILES = ("config.yaml", "schema.json", "vocabulary", "model.safetensors", "pretrained")


class DMoEClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A D-MoE (arXiv 2505.17925) that learns from a table of raw columns.

    Args:
        config: a preset's name or the path of a run.yaml.
        overrides: `key.path=value` words that change it, as on the command line.
        numeric: columns taken as numbers; by default decimals and those of a floating type, but for whole numbers with
            missing values, which are ids that pandas made floats. All others are categorical.
        min_count: rows of the training part that a categorical value needs for an embedding of its own.
        validation_fraction: share of the rows, stratified by label, that early stopping watches.
        run_folder: where to keep the run folder; by default it is temporary and goes with the estimator.

    Attributes:
        classes_: the two labels, ascending.
        feature_names_in_, n_features_in_: the columns seen by `fit`.
        predictor_: the `dmoe.prediction.Predictor` behind `predict_proba`.

    Examples:
        >>> import pandas
        >>> rows = pandas.DataFrame({"site": ["a", "b"] * 200, "price": [float(i % 7) for i in range(400)]})
        >>> clicks = (rows["site"] == "a").astype(int)
        >>> model = DMoEClassifier(overrides=["model.embedding_dim=2", "training.batch_size=32"]).fit(rows, clicks)
        >>> model.predict(rows).shape
        (400,)
    """

    def __init__(
        self,
        config: str = "d-moe",
        *,
        overrides: Sequence[str] = (),
        numeric: Sequence[str] | None = None,
        min_count: int = 1,
        validation_fraction: float = 0.1,
        run_folder: str | None = None,
    ) -> None:
        self.config = config
        self.overrides = overrides
        self.numeric = numeric
        self.min_count = min_count
        self.validation_fraction = validation_fraction
        self.run_folder = run_folder

    def fit(self, X: Any, y: Any) -> Self:
        """Prepares the rows and trains.

        Args:
            X: a pandas, polars or pyarrow table, a two-dimensional numpy array, or a list of rows.
            y: labels of two classes, one a row: numbers, texts or booleans, also nullable or categorical ones.
        Raises: InputError, a DataError and ValueError, if y does not hold exactly two classes, labels are missing, or
            a column cannot be read; ConfigError.
        """
        configuration = load_config(self.config, self.overrides)
        check_experts(configuration.model.experts, str(self.config or "configuration"))
        with _as_input_errors():
            return self._fit(_as_arrow(X), y, configuration)

    def _fit(self, table: pa.Table, y: Any, configuration: RunConfig) -> Self:
        labels = labels_of(y, table.num_rows)
        self.classes_ = np.unique(labels)
        if len(self.classes_) != 2:
            some = ", ".join(repr(one) for one in self.classes_[:5].tolist())
            raise DataError(f"y must hold two classes, got {len(self.classes_)}: {some}")
        self.feature_names_in_ = np.asarray(table.column_names, dtype=object)
        self.n_features_in_ = len(self.feature_names_in_)
        folder = self._temporary_folder()
        run = Path(self.run_folder) if self.run_folder else folder / "run"
        self._prepare(table, (labels == self.classes_[1]).astype(np.uint8), configuration, folder)
        train(configuration, folder / "data", run)
        self.predictor_: Predictor = Predictor.open(run, configuration.training.device)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Probability of `classes_[0]` and `classes_[1]` for each row, (R, 2); unseen and missing values allowed.

        Columns are taken by name, those of a numpy array by place.

        Raises: sklearn.exceptions.NotFittedError; InputError if a column of `fit` is missing or cannot be read.
        """
        check_is_fitted(self, "predictor_")
        with _as_input_errors():
            click_R = self.predictor_.predict_proba(_as_arrow(X, self.feature_names_in_.tolist()))
        return np.column_stack([1 - click_R, click_R])

    def predict(self, X: Any) -> NDArray[Any]:
        """The likelier class of each row."""
        check_is_fitted(self, "predictor_")
        chosen: NDArray[Any] = self.classes_[(self.predict_proba(X)[:, 1] > 0.5).astype(int)]
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        """With the files of the run in it: a copy, or another process, needs no folder of ours."""
        state: dict[str, Any] = dict(super().__getstate__())
        predictor = state.pop("predictor_", None)
        if predictor is not None:
            files = (path for path in sorted(predictor.folder.rglob("*")) if path.is_file())
            kept = [path for path in files if path.relative_to(predictor.folder).parts[0] in _SCORING_FILES]
            state["_run"] = {str(path.relative_to(predictor.folder)): path.read_bytes() for path in kept}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        run = state.pop("_run", None)
        super().__setstate__(state)
        if run is None:
            return
        folder = self._temporary_folder() / "run"
        for name, content in run.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        self.predictor_ = Predictor.open(folder, load_config(self.config, self.overrides).training.device)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.categorical = tags.input_tags.string = True
        tags.classifier_tags.multi_class = False
        return tags

    def _temporary_folder(self) -> Path:
        """A folder that is removed with the estimator, which reads its vocabularies for as long as it is there."""
        folder = Path(tempfile.mkdtemp(prefix="dmoe-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _prepare(self, table: pa.Table, labels: NDArray[np.uint8], configuration: RunConfig, folder: Path) -> None:
        names = table.column_names
        if _LABEL in names:
            raise DataError(f"column '{_LABEL}' is reserved; rename it")
        numeric = [name for name in names if _is_number(table[name])] if self.numeric is None else list(self.numeric)
        data = validate(
            DataConfig,
            {
                "label": _LABEL,
                "split": {"kind": "given"},
                "fields": {
                    "categorical": [name for name in names if name not in numeric],
                    "numeric": {name: {"transform": "standardise"} for name in numeric},
                    "min_count": self.min_count,
                },
                "format": {"kind": "parquet"},
            },
            type(self).__name__,
        )
        parts = _stratified(labels, self.validation_fraction, configuration.training.seed, self.classes_)
        labelled = table.append_column(_LABEL, pa.array(labels))
        inputs = []
        for split, chosen in zip(("train", "valid"), parts, strict=True):
            path = folder / f"{split}.parquet"
            parquet.write_table(labelled.take(chosen), path)
            inputs.append(f"{split}={path}")
        prepare(data, inputs, folder / "data")
        for path in folder.glob("*.parquet"):
            path.unlink()


def labels_of(y: Any, rows: int) -> NDArray[Any]:
    """Labels (R,) of any kind as a numpy array.

    Raises: DataError if they are not one a row, some are missing, or they are of types that have no order.
    """
    values = y.to_pandas() if isinstance(y, pa.Array | pa.ChunkedArray) else y
    if isinstance(values, list | tuple):
        values = np.array([*values, None], dtype=object)[:-1]  # numpy would make texts of a mixture
    values = values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)
    if values.shape == (rows, 1):
        values = values.ravel()
    if values.shape != (rows,):
        raise DataError(f"y must hold one label a row: {rows} rows, got shape {values.shape}")
    if values.dtype == object or values.dtype.kind == "f":
        missing = np.array([one is None or one != one or type(one).__name__ == "NAType" for one in values.tolist()])
        if missing.any():
            raise DataError(
                f"y: {missing.sum()} of {rows} labels are missing, the first in row {int(missing.argmax())}; "
                "leave these rows out"
            )
    plain = np.array(values.tolist()) if values.dtype == object else values
    kinds = {type(one) for one in values.tolist()} if values.dtype == object else set()
    if plain.ndim != 1 or plain.dtype == object or len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"y holds labels of types {names}; make them all numbers, texts or booleans")
    return plain


def _stratified(
    labels: NDArray[np.uint8], fraction: float, seed: int, classes: NDArray[Any]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to learn from and rows to stop by, in order, with both classes in each."""
    draw = np.random.default_rng(seed)
    held: list[NDArray[np.intp]] = []
    for value in (0, 1):
        rows = np.flatnonzero(labels == value)
        if len(rows) < 2:
            raise DataError(
                f"y: class {classes[value].item()!r} has 1 row; each class needs two, one to learn from and one to "
                "stop by"
            )
        held.append(draw.permutation(rows)[: min(max(2, round(fraction * len(rows))), len(rows) - 1)])
    valid = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), valid), valid


def _is_number(column: Any) -> bool:
    """Whether a column is a number by default: floats and decimals, but not ids that missing values made floats."""
    if pa.types.is_decimal(column.type):
        return True
    if not pa.types.is_floating(column.type):
        return False
    values = column.to_numpy()
    present = values[~np.isnan(values)]
    return len(present) == len(values) or not bool((present == np.floor(present)).all())


class InputError(DataError, ValueError):
    """A table or its labels cannot be used; what scikit-learn's tools expect of an estimator."""


@contextmanager
def _as_input_errors() -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except DataError as error:
        raise InputError(str(error)) from None


def _as_arrow(X: Any, names: Sequence[str] | None = None) -> pa.Table:
    """A table of any kind as pyarrow; arrays and lists of rows get the columns `names`, or x0, x1, …"""
    if isinstance(X, list | tuple) and X and all(isinstance(row, list | tuple | np.ndarray) for row in X):
        if len({len(row) for row in X}) > 1:
            raise DataError("X must be a table, an array or a list of rows of equal length")
        X = np.array([list(row) for row in X], dtype=object)
    if isinstance(X, np.ndarray):
        if X.ndim != 2:
            raise DataError(f"X must be a table or a two-dimensional array, got shape {X.shape}; reshape your data")
        if names is not None and X.shape[1] != len(names):
            raise DataError(
                f"X has {X.shape[1]} features, but DMoEClassifier is expecting {len(names)} features as input"
            )
        if np.iscomplexobj(X):
            raise DataError("X holds complex data, which is not supported; give real numbers")
        given = [f"x{index}" for index in range(X.shape[1])] if names is None else names
        columns = [
            X[:, index].tolist() if X.dtype == object else np.ascontiguousarray(X[:, index])
            for index in range(len(given))
        ]
        table = pa.table(
            {
                name: objects(one, name)[0] if isinstance(one, list) else one
                for name, one in zip(given, columns, strict=True)
            }
        )
    else:
        try:
            table = as_arrow(X)
        except NoTableError:
            raise DataError(
                f"X must be a pandas, polars or pyarrow table or a numpy array, got {type(X).__name__}"
            ) from None
    if names is None and not (table.num_rows and table.num_columns):
        raise DataError(
            f"X holds {table.num_rows} rows of {table.num_columns} columns; at least one of each is required"
        )
    return table
