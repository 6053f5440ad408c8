"""The simple models: how each is fitted, kept and asked for logits. No format of theirs holds code.

Shape suffixes as in `dmoe.baselines.design`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dmoe.baselines.design import Design, Floats, Ids, Numbers, tree_categories, tree_inputs
from dmoe.baselines.target import TargetEncoding
from dmoe.baselines.tree_text import checked_trees
from dmoe.disk.files import give_usual_mode
from dmoe.errors import DataError, MissingExtraError
from dmoe.metrics.scores import logloss
from dmoe.schema import Schema
from dmoe.shards.files import EncodedRows

Kind: TypeAlias = Literal["logistic", "lightgbm"]
KINDS: tuple[Kind, ...] = ("logistic", "lightgbm")
NAMES: dict[str, str] = {"logistic": "logistic regression", "lightgbm": "gradient-boosted trees (LightGBM)"}

# Called with one line on what was just tried.
Tell: TypeAlias = Callable[[str], None]


class Model(Protocol):
    """A fitted simple model."""

    def logits(self, ids_RC: Ids, numeric_RN: Numbers) -> Floats:
        """(R,) logits of the click probability."""

    def save(self, folder: Path) -> None: ...

    def facts(self) -> dict[str, Any]:
        """What was chosen, and `parameters`, how many numbers it learnt."""


Encoding: TypeAlias = Literal["one-hot", "target"]

# From the strongest penalty on: L-BFGS starts each from the last, and two in a row that are worse end the search.
_STRENGTHS: dict[Encoding, tuple[float, ...]] = {
    "one-hot": (1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "target": (1e-3, 1.0),  # a few inputs a field: the penalty hardly matters
}
_ITERATIONS = 100
_WEIGHTS = "logistic.safetensors"


@dataclass(frozen=True, slots=True)
class Logistic:
    """Logistic regression on one-hot ids and binned numbers, or on each id's earlier click rate.

    One-hot is the stronger where values come again, rates where most of them are new. The encoding and the strength of
    the L2 penalty are those of the best validation logloss.
    """

    inputs: Design | TargetEncoding
    weights_K: Floats
    intercept: float
    strength: float

    @staticmethod
    def fit(train: EncodedRows, valid: EncodedRows, schema: Schema, seed: int, tell: Tell) -> "Logistic":  # noqa: ARG004
        """Maximum likelihood by L-BFGS. Draws nothing."""
        ids_RC, numeric_RN, labels_R = train.ids_RC, train.numeric_RN, train.labels_R.astype(np.float64)
        design = Design.of(schema, numeric_RN)
        matrix = design.matrix(ids_RC, numeric_RN)
        loss, found = _best(design, matrix, labels_R, valid, "one-hot", tell, train.weights_R)
        if schema.categorical:
            target = TargetEncoding.of(schema, ids_RC, numeric_RN, labels_R)
            matrix, first = target.training_matrix(ids_RC, numeric_RN, labels_R)
            if 0 < labels_R[first:].sum() < len(labels_R) - first:
                weights_R = None if train.weights_R is None else train.weights_R[first:]
                other_loss, other = _best(target, matrix, labels_R[first:], valid, "target", tell, weights_R)
                found = other if other_loss < loss else found
        return found

    @staticmethod
    def load(folder: Path, schema: Schema) -> "Logistic":
        path = folder / _WEIGHTS
        try:
            tensors = load_file(path)
            edges = tuple(tuple(tensors[f"edges.{index}"].tolist()) for index in range(len(schema.numeric)))
            (intercept, strength) = tensors["intercept_strength"].tolist()
            inputs: Design | TargetEncoding = Design(schema, edges)
            if "rate" in tensors:
                indices = range(len(schema.categorical))
                rows, clicks = (tuple(tensors[f"{what}.{index}"] for index in indices) for what in ("rows", "clicks"))
                numbers = Design(schema.model_copy(update={"fields": schema.numeric}), edges)
                inputs = TargetEncoding(schema, numbers, float(tensors["rate"][0]), rows, clicks)
            found = Logistic(inputs, tensors["weights"], intercept, strength)
        except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
            raise DataError(f"{path}: damaged or unreadable ({error})") from None
        if found.weights_K.shape != (inputs.columns,):
            raise DataError(f"{path}: does not fit schema.json; fit the baseline again")
        return found

    @property
    def encoding(self) -> Encoding:
        return "one-hot" if isinstance(self.inputs, Design) else "target"

    def logits(self, ids_RC: Ids, numeric_RN: Numbers) -> Floats:
        logits_R: Floats = self.inputs.matrix(ids_RC, numeric_RN) @ self.weights_K + self.intercept
        return logits_R

    def save(self, folder: Path) -> None:
        tensors = {"weights": self.weights_K, "intercept_strength": np.array([self.intercept, self.strength])}
        numbers = self.inputs
        if isinstance(numbers, TargetEncoding):
            tensors["rate"] = np.array([numbers.rate])
            tensors |= {f"rows.{index}": one for index, one in enumerate(numbers.rows_V)}
            tensors |= {f"clicks.{index}": one for index, one in enumerate(numbers.clicks_V)}
            numbers = numbers.numbers
        tensors |= {f"edges.{index}": np.array(one) for index, one in enumerate(numbers.edges)}
        save_file(tensors, folder / _WEIGHTS)
        give_usual_mode(folder / _WEIGHTS)

    def facts(self) -> dict[str, Any]:
        return {"encoding": self.encoding, "C": self.strength, "parameters": self.inputs.columns + 1}


def _best(
    inputs: Design | TargetEncoding,
    matrix: Any,
    labels_R: Floats,
    valid: EncodedRows,
    encoding: Encoding,
    tell: Tell,
    weights_R: Any = None,
) -> tuple[float, Logistic]:
    """The regression of the strength that is best on `valid`, and its logloss there."""
    from sklearn.linear_model import LogisticRegression

    held_out = inputs.matrix(valid.ids_RC, valid.numeric_RN)
    regression = LogisticRegression(max_iter=_ITERATIONS, warm_start=True)
    best: tuple[float, Logistic] | None = None
    worse = 0
    for strength in _STRENGTHS[encoding]:
        regression.set_params(C=strength)
        _fit_quietly(regression, matrix, labels_R, weights_R)
        weights_K, intercept = regression.coef_[0].copy(), float(regression.intercept_[0])
        loss = logloss(valid.labels_R, held_out @ weights_K + intercept, valid.weights_R)
        worse = worse + 1 if best is not None and loss >= best[0] else 0
        if best is None or loss < best[0]:
            best = loss, Logistic(inputs, weights_K, intercept, strength)
        if worse == 2:
            break
    assert best is not None  # there is at least one strength
    tell(f"logistic regression, {encoding}: C {best[1].strength:g}, valid logloss {best[0]:.5f}")
    return best


def _fit_quietly(regression: Any, matrix: Any, labels_R: Any, weights_R: Any) -> None:
    """Stopping at the iteration limit is no fault here: the penalty is chosen on held-out rows all the same."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(matrix, labels_R, sample_weight=weights_R)


_BOOSTER = "lightgbm.txt"
_ROUNDS = 1000
_PATIENCE = 30
_BOOSTING = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 63,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True, slots=True)
class Trees:
    """LightGBM with native categories, stopped by the validation logloss."""

    schema: Schema
    booster: Any
    rounds: int

    @staticmethod
    def fit(train: EncodedRows, valid: EncodedRows, schema: Schema, seed: int, tell: Tell) -> "Trees":
        """Raises: MissingExtraError if LightGBM is not installed."""
        lightgbm = _lightgbm()
        categories = tree_categories(schema)
        sets = [
            lightgbm.Dataset(
                tree_inputs(schema, rows.ids_RC, rows.numeric_RN),
                rows.labels_R,
                weight=rows.weights_R,
                categorical_feature=categories,
                free_raw_data=True,
            )
            for rows in (train, valid)
        ]
        sets[1].reference = sets[0]
        booster = lightgbm.train(
            {**_BOOSTING, "seed": seed % 2**31},
            sets[0],
            num_boost_round=_ROUNDS,
            valid_sets=[sets[1]],
            callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
        )
        tell(f"LightGBM: {booster.best_iteration} trees, valid logloss {_last(booster):.5f}")
        return Trees(schema, booster, booster.best_iteration)

    @staticmethod
    def load(folder: Path, schema: Schema) -> "Trees":
        lightgbm = _lightgbm()
        path = folder / _BOOSTER
        try:
            text = checked_trees(path.read_text(encoding="utf-8"), _num_inputs(schema))
            booster = lightgbm.Booster(model_str=text)
        except (lightgbm.basic.LightGBMError, OSError, ValueError) as error:
            raise DataError(f"{path}: damaged or unreadable ({error})") from None
        return Trees(schema, booster, booster.current_iteration())

    def logits(self, ids_RC: Ids, numeric_RN: Numbers) -> Floats:
        logits_R: Floats = self.booster.predict(tree_inputs(self.schema, ids_RC, numeric_RN), raw_score=True)
        return logits_R

    def save(self, folder: Path) -> None:
        (folder / _BOOSTER).write_text(self.booster.model_to_string(num_iteration=self.rounds), encoding="utf-8")

    def facts(self) -> dict[str, Any]:
        return {"trees": self.rounds, "parameters": _leaves(self.booster, self.rounds)}


def _num_inputs(schema: Schema) -> int:
    row = np.zeros((1, schema.num_ids), np.int32), np.zeros((1, len(schema.numeric)), np.float32)
    return int(tree_inputs(schema, *row).shape[1])


def _last(booster: Any) -> float:
    scores = booster.best_score.get("valid_0", {})
    return float(scores.get("binary_logloss", float("nan")))


def _leaves(booster: Any, rounds: int) -> int:
    return sum(int(tree["num_leaves"]) for tree in booster.dump_model(num_iteration=rounds)["tree_info"])


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise MissingExtraError("the lightgbm baseline needs LightGBM: pip install 'dmoe[baselines]'") from None
    return lightgbm


MODELS: dict[Kind, Any] = {"logistic": Logistic, "lightgbm": Trees}
