"""The scikit-learn estimator: tables in, the same preparation and training as the command line."""

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from dmoe.config.data import DataConfig
from dmoe.config.run import RunConfig, load_config
from dmoe.errors import DataError, Interrupted, NonFiniteLossError
from dmoe.nn.experts.options import check_experts
from dmoe.prepare.prepare import prepare
from dmoe.scoring.estimator_input import (
    GivenTable,
    InputError,
    as_given,
    as_input_errors,
    check_parameters,
    labels_of,
    numeric_of,
    split_rows,
    weights_of,
)
from dmoe.scoring.predictor import Predictor
from dmoe.sources.pieces import table_rows
from dmoe.tokens.fields import convert
from dmoe.training.loop import train
from dmoe.validation import validate

_LABEL = "__label__"
_WEIGHT = "__weight__"
# What of a run folder scoring needs.
_SCORING_FILES = ("config.yaml", "schema.json", "vocabulary", "model.safetensors", "pretrained")


class DMoEClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A D-MoE (arXiv 2505.17925) that learns from a table of raw columns.

    Args:
        config: a preset's name or the path of a run.yaml.
        overrides: `key.path=value` words that change it, as on the command line.
        numeric: columns taken as numbers; by default decimals and those of a floating type, but for whole numbers with
            missing values, which are ids that pandas made floats. All others, and those of a categorical dtype, are
            categorical.
        min_count: rows of the training part that a categorical value needs for an embedding of its own.
        validation_fraction: share of the rows, stratified by label, that early stopping watches. Where no four rows
            with both classes can be held out it watches the rows that are learnt from, and a FewRowsWarning says so.
        run_folder: where to keep the run folder; by default it is temporary and goes with the estimator.

    Attributes:
        classes_: the two labels, ascending, (2,).
        n_features_in_: how many columns `fit` saw.
        feature_names_in_: their names, if all had one that is a text; an array's columns have none.
        predictor_: the `dmoe.scoring.predictor.Predictor` behind `predict_proba`.

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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Prepares the rows and trains.

        Args:
            X: a pandas, polars or pyarrow table, a two-dimensional numpy array, or a list of rows. The index of a
                pandas table is no feature.
            y: labels of two classes, one a row: numbers, texts or booleans, also nullable or categorical ones.
            sample_weight: a number from 0 on for each row, by which its loss counts beside that of the others; what
                early stopping watches counts so too. Rows of weight 0 are left out.
        Raises: InputError, a DataError and ValueError, if y does not hold exactly two classes, labels are missing,
            there are fewer than four rows, or a value cannot be read; ConfigError; NonFiniteLossError.
        """
        check_parameters(self.overrides, self.validation_fraction)
        configuration = load_config(self.config, self.overrides)
        check_experts(configuration.model.experts, str(self.config or "configuration"))
        if self.run_folder is not None and Path(self.run_folder).exists():
            raise InputError(f"run_folder: {self.run_folder} exists already; remove it or name another")
        with as_input_errors():
            given = as_given(X)
            labels = labels_of(y, given.table.num_rows)
            weights = weights_of(sample_weight, given.table.num_rows)
            if weights is not None and not weights.all():
                given = replace(given, table=given.table.filter(pa.array(weights > 0)))
                labels = labels_of(labels[weights > 0], given.table.num_rows)
                weights = weights_of(weights[weights > 0], given.table.num_rows)
            return self._fit(given, labels, weights, configuration)

    def _fit(
        self,
        given: GivenTable,
        labels: NDArray[Any],
        weights: NDArray[np.float64] | None,
        configuration: RunConfig,
    ) -> Self:
        classes = np.unique(labels)
        folder = self._temporary_folder()
        run = Path(self.run_folder) if self.run_folder else folder / "run"
        with _as_of_the_estimator(folder):
            self._prepare(given, labels == classes[1], weights, configuration.training.seed, folder)
            train(configuration, folder / "data", run)
            predictor = Predictor.open(run, configuration.training.device)
        # All at once: a fit that fails leaves an earlier one whole.
        self.classes_ = classes
        self.n_features_in_ = given.table.num_columns
        self._columns = given.table.column_names
        if given.names is not None:
            self.feature_names_in_ = np.asarray(given.names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        self._fitted_on_array = given.array
        self.predictor_: Predictor = predictor
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Probability of `classes_[0]` and `classes_[1]` for each row, (R, 2); unseen and missing values allowed.

        Columns are taken by name, in any order and with others beside them; those of an array by place, as are all if
        `fit` saw an array.

        Raises: sklearn.exceptions.NotFittedError; InputError if a column of `fit` is missing or cannot be read.
        """
        check_is_fitted(self, "predictor_")
        with as_input_errors():
            given = as_given(X, self._columns)
            table = given.table
            if self._fitted_on_array and not given.array:
                if table.num_columns != self.n_features_in_:
                    raise DataError(
                        f"X has {table.num_columns} features, but DMoEClassifier is expecting {self.n_features_in_} "
                        "features as input"
                    )
                table = table.rename_columns(self._columns)
            if given.array != self._fitted_on_array:
                # scikit-learn's own words.
                warnings.warn(
                    "X does not have valid feature names, but DMoEClassifier was fitted with feature names"
                    if given.array
                    else "X has feature names, but DMoEClassifier was fitted without feature names",
                    stacklevel=2,
                )
            click_R = self.predictor_.predict_proba(table)
            assert not isinstance(click_R, dict)  # it was fitted to one label
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

    def _prepare(
        self,
        given: GivenTable,
        is_second_R: NDArray[np.bool_],
        weights_R: NDArray[np.float64] | None,
        seed: int,
        folder: Path,
    ) -> None:
        table = given.table
        names = table.column_names
        for reserved in (_LABEL, _WEIGHT):
            if reserved in names:
                raise DataError(f"column '{reserved}' is reserved; rename it")
        numeric = numeric_of(given, self.numeric)
        data = validate(
            DataConfig,
            {
                "label": _LABEL,
                **({} if weights_R is None else {"weight": _WEIGHT}),
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
        rejects = convert(table_rows(table, names, "X"), data, scoring=True).rejects
        if rejects:
            first = rejects[0]
            raise DataError(
                f"X: column '{first.column}', row {first.line - 1} (counted from 0): {first.reason}: {first.text!r}; "
                f"mend it, leave the row out, or make it missing (such rows: {len(rejects)})"
            )
        parts = split_rows(is_second_R, self.validation_fraction, seed)
        labelled = table.append_column(_LABEL, pa.array(is_second_R.astype(np.uint8)))
        if weights_R is not None:
            # Only their shares count, and float32 holds those of the largest.
            labelled = labelled.append_column(_WEIGHT, pa.array(weights_R / weights_R.max()))
        inputs = []
        for split, chosen in zip(("train", "valid"), parts, strict=True):
            path = folder / f"{split}.parquet"
            parquet.write_table(labelled.take(chosen), path)
            inputs.append(f"{split}={path}")
        prepare(data, inputs, folder / "data", max_rejects=0)
        for path in folder.glob("*.parquet"):
            path.unlink()


@contextmanager
def _as_of_the_estimator(folder: Path) -> Iterator[None]:
    """Errors of the engine as a caller of `fit` can use them: no sentence about files of `folder`, which goes, and
    Ctrl-C as the KeyboardInterrupt that ends a search over many fits, too."""
    try:
        yield
    except Interrupted:
        raise KeyboardInterrupt from None
    except (DataError, NonFiniteLossError) as error:
        if str(folder) not in str(error):
            raise
        kept = [one for one in str(error).split(". ") if str(folder) not in one]
        raise type(error)(". ".join(kept) or str(error).replace(str(folder), "the temporary folder")) from None
