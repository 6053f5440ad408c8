"""The scikit-learn estimator on tables whose clicks follow a known rule."""

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
        DMoEClassifier().fit([["a"]] * 50, labels)
    with pytest.raises(ConfigError, match="did you mean 'd-moe'"):
        DMoEClassifier("dmo-e").fit(rows, labels)
    with pytest.raises(NotFittedError):
        DMoEClassifier().predict(rows)
    with pytest.raises(DataError, match="site"):
        fitted.predict_proba(rows.drop(columns="site"))
