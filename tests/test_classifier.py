"""The scikit-learn estimator on tables whose clicks follow a known rule."""

import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_score

from dmoe import DMoEClassifier, UnseenValuesWarning
from dmoe.classifier import labels_of
from dmoe.errors import ConfigError, DataError

QUICK = [
    "model.embedding_dim=4", "model.experts.0.units=[8]", "model.expert_units=16", "training.batch_size=100",
    "training.epochs=4", "optimiser.lr=0.02",
]  # fmt: skip


def table(rows: int = 3000, seed: int = 0) -> tuple[pandas.DataFrame, np.ndarray]:
    """Clicks on the parity of two categorical fields: no field tells anything alone."""
    generator = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {
            "site": generator.choice(list("abcd"), rows),
            "ad": generator.integers(0, 4, rows),
            "price": generator.normal(size=rows),
        }
    )
    parity = (frame["site"].isin(["a", "c"]) ^ (frame["ad"] % 2 == 0)).to_numpy()
    return frame, np.where(generator.random(rows) < np.where(parity, 0.9, 0.1), "click", "none")


@pytest.fixture(scope="module")
def fitted():
    rows, labels = table()
    return DMoEClassifier(overrides=QUICK).fit(rows, labels)


def test_it_finds_the_rule_and_names_its_classes(fitted):
    rows, labels = table(seed=1)
    probability = fitted.predict_proba(rows)
    assert list(fitted.classes_) == ["click", "none"]
    np.testing.assert_allclose(probability.sum(1), 1, rtol=1e-6)
    # Bayes: the rule is right for 90 % of the rows.
    assert roc_auc_score(labels == "none", probability[:, 1]) > 0.87
    assert fitted.score(rows, labels) > 0.87


def test_tables_of_every_kind_and_unseen_values(fitted):
    rows, _ = table(50, seed=2)
    expected = fitted.predict_proba(rows)
    assert np.array_equal(fitted.predict_proba(pa.Table.from_pandas(rows)), expected)
    assert np.array_equal(fitted.predict_proba(polars.from_pandas(rows)), expected)
    odd = rows.assign(site="never seen", price=np.nan)
    with pytest.warns(UnseenValuesWarning) as said:
        assert np.isfinite(fitted.predict_proba(odd)).all()
    assert ["'site'" in str(said[0].message), "'price'" in str(said[1].message)] == [True, True]


def test_the_row_index_is_no_feature(fitted):
    rows, labels = table(600, seed=3)
    shuffled = rows.sample(frac=1, random_state=0)
    order = shuffled.index.to_numpy()
    quick = [*QUICK, "training.epochs=1"]
    model = DMoEClassifier(overrides=quick).fit(shuffled.rename_axis("impression"), labels[order])
    assert list(model.feature_names_in_) == ["site", "ad", "price"]
    np.testing.assert_allclose(fitted.predict_proba(shuffled), fitted.predict_proba(rows)[order], atol=1e-6)
    for indexed in (rows.set_index(["site", "ad"], drop=False), rows.set_axis(pandas.RangeIndex(5, 605))):
        assert np.array_equal(fitted.predict_proba(indexed), fitted.predict_proba(rows))


def test_columns_that_cannot_be_told_apart_or_read(fitted):
    rows, _ = table(50)
    with pytest.raises(DataError, match="column 'site' appears twice"):
        fitted.predict_proba(rows.set_axis(["site", "site", "price"], axis=1))
    mixed = rows.astype({"site": object})
    mixed.at[3, "site"] = {"a"}
    with pytest.raises(DataError, match="column 'site' holds values of Python type set"):
        fitted.predict_proba(mixed)


def test_it_can_be_cloned_and_cross_validated():
    rows, labels = table(600)
    model = clone(DMoEClassifier(overrides=[*QUICK, "training.epochs=1"]))
    assert model.get_params()["config"] == "d-moe"
    assert len(cross_val_score(model, rows, labels, cv=2)) == 2


def test_a_numpy_array_and_a_kept_run_folder(tmp_path):
    rows, labels = table(400)
    array = rows[["price"]].to_numpy()
    model = DMoEClassifier(overrides=[*QUICK, "training.epochs=1"], run_folder=str(tmp_path / "run")).fit(array, labels)
    assert model.predict(array).shape == (400,)
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_what_cannot_be_learned_from_is_refused(fitted):
    rows, labels = table(50)
    with pytest.raises(DataError, match="two classes, got 1"):
        DMoEClassifier().fit(rows, np.zeros(50))
    with pytest.raises(DataError, match="one label a row"):
        DMoEClassifier().fit(rows, labels[:-1])
    with pytest.raises(DataError, match="table or a numpy array"):
        DMoEClassifier().fit(["a"] * 50, labels)
    with pytest.raises(ConfigError, match="did you mean 'd-moe'"):
        DMoEClassifier("dmo-e").fit(rows, labels)
    with pytest.raises(NotFittedError):
        DMoEClassifier().predict(rows)
    with pytest.raises(DataError, match="site"):
        fitted.predict_proba(rows.drop(columns="site"))


def test_labels_of_every_kind():
    values = np.array([0, 1] * 10)
    texts = np.where(values == 1, "yes", "no")
    for labels, classes in (
        (values.tolist(), [0, 1]),
        (values.reshape(-1, 1), [0, 1]),
        (pandas.Series(values).astype("Int64"), [0, 1]),
        (pandas.Series(values == 1).astype("boolean"), [False, True]),
        (pandas.Series(texts).astype("category"), ["no", "yes"]),
        (pandas.Series(texts, dtype=object), ["no", "yes"]),
        (polars.Series(texts), ["no", "yes"]),
        (pa.chunked_array([values[:7], values[7:]]), [0, 1]),
    ):
        assert np.unique(labels_of(labels, 20)).tolist() == classes
    for missing in (pandas.Series([*[1, 0] * 9, None, 1]).astype("Int64"), [*[1.0, 0.0] * 9, math.nan, 1.0]):
        with pytest.raises(ValueError, match="1 of 20 labels are missing, the first in row 18"):
            DMoEClassifier().fit(table(20)[0], missing)
    with pytest.raises(ValueError, match="types int, str"):
        DMoEClassifier().fit(table(20)[0], [*[0, 1] * 9, "a", "b"])
    with pytest.raises(ValueError, match="class 1 has 1 row"):
        DMoEClassifier().fit(table(20)[0], [0] * 19 + [1])
    with pytest.raises(ValueError, match="X holds 0 rows"):
        DMoEClassifier().fit(table(20)[0].iloc[:0], [])


def test_a_few_rows_are_learnt_from_or_refused():
    rows, _ = table(20)
    model = DMoEClassifier(overrides=[*QUICK, "training.epochs=1"]).fit(rows, [0, 1] * 10)
    assert model.predict_proba(rows.iloc[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match="too few to be evaluated"):
        DMoEClassifier(overrides=QUICK).fit(rows.iloc[:5], [0, 1, 0, 1, 0])


def test_rows_are_the_same_whatever_carries_them(fitted):
    rows, _ = table(40)
    want = fitted.predict_proba(rows)
    others = [
        rows[["price", "ad", "site"]],
        rows.assign(extra=1),
        rows.astype({"ad": float}),
        rows.astype({"ad": str}),
        rows.astype({"ad": "Int64", "site": "category"}),
        polars.from_pandas(rows),
        rows.to_numpy(),
        rows.to_numpy().tolist(),
    ]
    for other in others:
        np.testing.assert_allclose(fitted.predict_proba(other), want, atol=1e-6)
    with pytest.raises(ValueError, match="no column 'price'"):
        fitted.predict_proba(rows.drop(columns="price"))
    with pytest.raises(ValueError, match="X has 2 features, but DMoEClassifier is expecting 3 features"):
        fitted.predict_proba(rows.to_numpy()[:, :2])


def test_ids_that_a_missing_value_made_floats_stay_categories():
    rows, labels = table(200)
    rows["ad"] = rows["ad"].astype(float)
    rows.loc[3, "ad"] = math.nan
    model = DMoEClassifier(overrides=[*QUICK, "training.epochs=1"]).fit(rows, labels)
    kinds = {field.name: field.kind for field in model.predictor_.schema.fields}
    assert kinds == {"site": "categorical", "ad": "categorical", "price": "numeric"}


def test_a_pickle_needs_nothing_of_the_original(fitted, tmp_path):
    rows, _ = table(30)
    want = fitted.predict_proba(rows)
    kept = pickle.dumps(fitted)
    assert copy.deepcopy(fitted).predictor_.folder != fitted.predictor_.folder
    (tmp_path / "model.pkl").write_bytes(kept)
    rows.to_pickle(tmp_path / "rows.pkl")
    code = (
        "import pickle, pandas, numpy; model = pickle.load(open('model.pkl', 'rb')); "
        "numpy.save('scores.npy', model.predict_proba(pandas.read_pickle('rows.pkl')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), want)
