"""The scikit-learn estimator: tables in, the same preparation and training as the command line."""

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted

from dmoe.config import RunConfig, load_config
from dmoe.data.config import DataConfig
from dmoe.data.prepare import prepare
from dmoe.errors import DataError
from dmoe.prediction import Predictor
from dmoe.rows import NoTableError, as_arrow
from dmoe.training.loop import train
from dmoe.validation import validate

_LABEL = "__label__"


class DMoEClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A D-MoE (arXiv 2505.17925) that learns from a table of raw columns.

    Args:
        config: a preset's name or the path of a run.yaml.
        overrides: `key.path=value` words that change it, as on the command line.
        numeric: columns taken as numbers; by default those of a floating type. All others are categorical.
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
            X: a pandas, polars or pyarrow table, or a two-dimensional numpy array.
            y: labels of two classes, one a row.
        Raises: DataError if y does not hold exactly two classes or a column is not there; ConfigError.
        """
        configuration = load_config(self.config, self.overrides)
        table = _as_arrow(X)
        labels = np.asarray(y)
        if labels.shape != (table.num_rows,):
            raise DataError(f"y must hold one label a row: {table.num_rows} rows, got shape {labels.shape}")
        self.classes_ = np.unique(labels)
        if len(self.classes_) != 2:
            raise DataError(f"y must hold two classes, got {len(self.classes_)}: {list(self.classes_[:5])}")
        self.feature_names_in_ = np.asarray(table.column_names, dtype=object)
        self.n_features_in_ = len(self.feature_names_in_)
        folder = Path(tempfile.mkdtemp(prefix="dmoe-"))
        # The vocabularies are read from the run folder for as long as the estimator is there to predict.
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        run = Path(self.run_folder) if self.run_folder else folder / "run"
        self._prepare(table, (labels == self.classes_[1]).astype(np.uint8), configuration, folder)
        train(configuration, folder / "data", run)
        self.predictor_: Predictor = Predictor.open(run, configuration.training.device)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Probability of `classes_[0]` and `classes_[1]` for each row, (R, 2); unseen and missing values allowed.

        Raises: sklearn.exceptions.NotFittedError; DataError if a column of `fit` is missing.
        """
        check_is_fitted(self, "predictor_")
        click_R = self.predictor_.predict_proba(_as_arrow(X))
        return np.column_stack([1 - click_R, click_R])

    def predict(self, X: Any) -> NDArray[Any]:
        """The likelier class of each row."""
        check_is_fitted(self, "predictor_")
        chosen: NDArray[Any] = self.classes_[(self.predict_proba(X)[:, 1] > 0.5).astype(int)]
        return chosen

    def _prepare(self, table: pa.Table, labels: NDArray[np.uint8], configuration: RunConfig, folder: Path) -> None:
        names = table.column_names
        if _LABEL in names:
            raise DataError(f"column '{_LABEL}' is reserved; rename it")
        if self.numeric is None:
            numeric = [name for name in names if pa.types.is_floating(table[name].type)]
        else:
            numeric = list(self.numeric)
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
        rows = np.arange(len(labels))
        parts = train_test_split(
            rows, test_size=self.validation_fraction, random_state=configuration.training.seed % 2**32, stratify=labels
        )
        labelled = table.append_column(_LABEL, pa.array(labels))
        inputs = []
        for split, chosen in zip(("train", "valid"), parts, strict=True):
            path = folder / f"{split}.parquet"
            parquet.write_table(labelled.take(pa.array(np.sort(chosen))), path)
            inputs.append(f"{split}={path}")
        prepare(data, inputs, folder / "data")
        for path in folder.glob("*.parquet"):
            path.unlink()


def _as_arrow(X: Any) -> pa.Table:
    """A table of any kind as pyarrow; a numpy array gets the columns x0, x1, …"""
    if isinstance(X, np.ndarray):
        if X.ndim != 2:
            raise DataError(f"X must be a table or a two-dimensional array, got shape {X.shape}")
        return pa.table({f"x{index}": np.ascontiguousarray(X[:, index]) for index in range(X.shape[1])})
    try:
        return as_arrow(X)
    except NoTableError:
        raise DataError(
            f"X must be a pandas, polars or pyarrow table or a numpy array, got {type(X).__name__}"
        ) from None
