"""The scikit-learn estimator: tables in, the same preparation and training as the command line."""

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
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
from dmoe.evaluation.watch import CorrelationWatch
from dmoe.nn.experts.options import check_experts
from dmoe.prepare.prepare import prepare
from dmoe.schema import UNKNOWN
from dmoe.scoring.estimator_input import (
    LEAST_ROWS,
    GivenTable,
    InputError,
    as_given,
    as_input_errors,
    check_parameters,
    numeric_of,
    weights_of,
)
from dmoe.scoring.estimator_labels import Targets, split_targets, targets_of
from dmoe.scoring.predictor import Predictor
from dmoe.sources.pieces import table_rows
from dmoe.tokens.fields import convert
from dmoe.training.callbacks import Callback
from dmoe.training.loop import train
from dmoe.validation import validate
from dmoe.weights.run import Run

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
        warm_start: a further `fit` starts from the weights of the one before, whose columns it must have; tokens are
            matched by value.
        given: of several labels, those that have no meaning without another, as in {"sale": "click"}.
        label: of several labels, which one `predict_proba` and `predict` are about, also "click+sale" for both, or a
            list of them; by default all in the order of y. It may be set after `fit`.
        callbacks: each a `dmoe.Callback`, told how each training goes (docs/tracking.md); changes nothing of it.

    Attributes:
        classes_: the two labels, ascending, (2,); of several labels a list with those of each.
        label_names_: the names of several labels.
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
        warm_start: bool = False,
        given: Mapping[str, str] | None = None,
        label: str | Sequence[str] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config = config
        self.overrides = overrides
        self.numeric = numeric
        self.min_count = min_count
        self.validation_fraction = validation_fraction
        self.run_folder = run_folder
        self.warm_start = warm_start
        self.given = given
        self.label = label
        self.callbacks = callbacks

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, eval_set: Any = None) -> Self:
        """Prepares the rows and trains.

        Args:
            X: a pandas, polars or pyarrow table, a two-dimensional numpy array, or a list of rows. The index of a
                pandas table is no feature.
            y: labels of two classes, one a row: numbers, texts or booleans, also nullable or categorical ones. A frame
                or array of several columns holds several labels, each missing where it is not known.
            sample_weight: a number from 0 on for each row, by which its loss counts beside that of the others; what
                early stopping watches counts so too. Rows of weight 0 are left out.
            eval_set: (X, y) of other rows, which early stopping watches in place of some of X; their weights are 1.
        Raises: InputError, a DataError and ValueError, if y does not hold exactly two classes, labels are missing,
            there are fewer than four rows, or a value cannot be read; ConfigError; NonFiniteLossError.
        """
        check_parameters(self.overrides, self.validation_fraction, self.callbacks)
        configuration = load_config(self.config, self.overrides)
        check_experts(configuration.model.experts, str(self.config or "configuration"))
        if self.run_folder is not None and Path(self.run_folder).exists():
            raise InputError(f"run_folder: {self.run_folder} exists already; remove it or name another")
        with as_input_errors():
            given = as_given(X)
            targets = self._with_given(targets_of(y, given.table.num_rows))
            weights = weights_of(sample_weight, given.table.num_rows)
            if weights is not None and not weights.all():
                given = replace(given, table=given.table.filter(pa.array(weights > 0)))
                kept = targets.rows(weights > 0)
                for number, classes in enumerate(kept.classes):
                    if len({*kept.codes_RT[:, number].tolist()} & {0, 1}) < 2:
                        raise DataError(
                            "y must hold two classes, got 1 class in rows of a weight above 0 (classes: "
                            f"{', '.join(map(repr, classes.tolist()))})"
                        )
                targets, weights = kept, weights_of(weights[weights > 0], given.table.num_rows)
            return self._fit(given, targets, weights, self._watched(eval_set, given, targets), configuration)

    def _watched(self, eval_set: Any, given: GivenTable, targets: Targets) -> tuple[pa.Table, Targets] | None:
        """The rows that early stopping watches, if they are given, with the columns of `given`."""
        if eval_set is None:
            return None
        if isinstance(eval_set, list) and len(eval_set) == 1:
            eval_set = eval_set[0]
        if not isinstance(eval_set, tuple | list) or len(eval_set) != 2:
            raise DataError("eval_set must be a pair (X, y), or a list of one such pair")
        names = given.table.column_names
        table = as_given(eval_set[0], names).table
        lacking = [name for name in names if name not in table.column_names]
        if lacking:
            raise DataError(f"eval_set: X has no column '{lacking[0]}'")
        found = self._with_given(targets_of(eval_set[1], table.num_rows, like=targets))
        for number in range(len(targets.classes)):
            if not {0, 1} <= {*found.codes_RT[:, number].tolist()} or table.num_rows < LEAST_ROWS:
                raise DataError(f"eval_set: y must hold both classes in at least {LEAST_ROWS} rows")
        return table.select(names), found

    def _fit(
        self,
        given: GivenTable,
        targets: Targets,
        weights: NDArray[np.float64] | None,
        watched: tuple[pa.Table, Targets] | None,
        configuration: RunConfig,
    ) -> Self:
        folder = self._temporary_folder()
        run = Path(self.run_folder) if self.run_folder else folder / "run"
        earlier = getattr(self, "predictor_", None) if self.warm_start else None
        with _as_of_the_estimator(folder):
            self._prepare(given, targets, weights, watched, configuration.training.seed, folder)
            start = None if earlier is None else Run.open(earlier.folder)
            watch = CorrelationWatch(folder / "data") if self.callbacks else None
            train(configuration, folder / "data", run, start=start, callbacks=self.callbacks, on_evaluation=watch)
            predictor = Predictor.open(run, configuration.training.device)
        # All at once: a fit that fails leaves an earlier one whole.
        self.classes_: Any = targets.classes[0] if targets.names is None else targets.classes
        for name, value in (("label_names_", targets.names), ("feature_names_in_", given.names)):
            if value is not None:
                setattr(self, name, np.asarray(value, dtype=object) if name == "feature_names_in_" else value)
            elif hasattr(self, name):
                delattr(self, name)
        self.n_features_in_ = given.table.num_columns
        self._columns = given.table.column_names
        self._fitted_on_array = given.array
        self.predictor_: Predictor = predictor
        return self

    def predict_proba(self, X: Any) -> Any:
        """Probability of `classes_[0]` and `classes_[1]` for each row, (R, 2); unseen and missing values allowed.

        Of several labels that of `label`, or a list with an array for each.

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
            found = self.predictor_.predict_proba(table)
            if not isinstance(found, dict):
                return np.column_stack([1 - found, found])
            chosen = self.label if self.label is not None else self.label_names_
            several = [chosen] if isinstance(chosen, str) else list(chosen)
            for name in several:
                if name not in found:
                    raise DataError(f"label: the model has no '{name}'; it has {', '.join(found)}")
            both = [np.column_stack([1 - found[name], found[name]]) for name in several]
        return both[0] if isinstance(chosen, str) else both

    def predict(self, X: Any) -> NDArray[Any]:
        """The likelier class of each row, (R,); of several labels that of `label`, or (R, T) for each of them.

        Of joint labels, such as click+sale, it is whether all of them are of their second class.
        """
        check_is_fitted(self, "predictor_")
        found = self.predict_proba(X)
        if not isinstance(found, list):
            name = self.label if isinstance(self.label, str) and isinstance(self.classes_, list) else None
            return self._likelier(found, name)
        names = self.label_names_ if self.label is None else list(self.label)
        several = [self._likelier(one, name) for name, one in zip(names, found, strict=True)]
        alike = len({one.dtype.kind for one in several}) == 1
        return np.column_stack(several if alike else [one.astype(object) for one in several])

    def _likelier(self, probability_RC: NDArray[np.float32], name: str | None) -> NDArray[Any]:
        chosen: NDArray[Any] = self._classes_of(name)[(probability_RC[:, 1] > 0.5).astype(int)]
        return chosen

    def _classes_of(self, name: str | None) -> NDArray[Any]:
        if name is None:
            return np.asarray(self.classes_)
        if name in self.label_names_:
            return np.asarray(self.classes_[self.label_names_.index(name)])
        return np.array([False, True])

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

    def _said_of(self, targets: Targets, columns: Sequence[str]) -> dict[str, Any]:
        """`label` or `labels` of a data.yaml."""
        if targets.names is None:
            return {"label": columns[0]}
        said = {name: {"column": column} for name, column in zip(targets.names, columns, strict=True)}
        return {"labels": {name: one | self._given_of(name) for name, one in said.items()}}

    def _given_of(self, name: str) -> dict[str, str]:
        return {"given": self.given[name]} if self.given and name in self.given else {}

    def _with_given(self, targets: Targets) -> Targets:
        given = dict(self.given or {})
        if given and targets.names is None:
            raise DataError("given is about several labels, and y holds one; leave it out")
        for name in [*given, *given.values()]:
            if name not in (targets.names or []):
                raise DataError(f"given: y has no label '{name}' (it has {', '.join(targets.names or [])})")
        return targets.with_given(given) if given else targets

    def _prepare(
        self,
        given: GivenTable,
        targets: Targets,
        weights_R: NDArray[np.float64] | None,
        watched: tuple[pa.Table, Targets] | None,
        seed: int,
        folder: Path,
    ) -> None:
        table = given.table
        names = table.column_names
        columns = [_LABEL] if targets.names is None else [f"{_LABEL}{number}" for number in range(len(targets.names))]
        for reserved in (*columns, _WEIGHT):
            if reserved in names:
                raise DataError(f"column '{reserved}' is reserved; rename it")
        numeric = numeric_of(given, self.numeric)
        data = validate(
            DataConfig,
            {
                **self._said_of(targets, columns),
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
        weighed = None if weights_R is None else weights_R / weights_R.max()  # only their shares count
        if watched is None:
            learn, stop = split_targets(targets, self.validation_fraction, seed)
            whole = _labelled(table, columns, targets, weighed)
            parts = {"train": whole.take(learn), "valid": whole.take(stop)}
        else:
            ones = None if weighed is None else np.ones(watched[0].num_rows)
            parts = {
                "train": _labelled(table, columns, targets, weighed),
                "valid": _labelled(watched[0], columns, watched[1], ones),
            }
        inputs = []
        for split, rows in parts.items():
            path = folder / f"{split}.parquet"
            parquet.write_table(rows, path)
            inputs.append(f"{split}={path}")
        prepare(data, inputs, folder / "data", max_rejects=0)
        for path in folder.glob("*.parquet"):
            path.unlink()


def _labelled(
    table: pa.Table, columns: Sequence[str], targets: Targets, weights_R: NDArray[np.float64] | None
) -> pa.Table:
    """The rows with their labels, null where unknown, and weights."""
    for number, name in enumerate(columns):
        codes_R = targets.codes_RT[:, number]
        table = table.append_column(name, pa.array(codes_R, mask=codes_R == UNKNOWN))
    return table if weights_R is None else table.append_column(_WEIGHT, pa.array(weights_R))


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
