"""The scikit-learn estimator on tables whose clicks follow a known rule."""

import copy
import math
import pickle
import subprocess
import sys
import tempfile
import warnings
from decimal import Decimal

import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import has_fit_parameter

from dmoe import Callback, DMoEClassifier, FewRowsWarning, UnseenValuesWarning
from dmoe.errors import ConfigError, DataError, Interrupted, NonFiniteLossError
from dmoe.scoring.estimator_input import labels_of, split_rows

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
        (pandas.Series(values.astype(float)).astype("Float64"), [0, 1]),
        (pandas.Series(texts).astype("string"), ["no", "yes"]),
        ([np.int64(one) if one else 0.0 for one in values], [0, 1]),
        ([Decimal(int(one)) for one in values], [0, 1]),
        ([np.True_, *[False, True] * 9, False], [False, True]),
        (pa.array(texts).dictionary_encode(), ["no", "yes"]),
        (pandas.Series(values).astype("Int64"), [0, 1]),
        (pandas.Series(values == 1).astype("boolean"), [False, True]),
        (pandas.Series(texts).astype("category"), ["no", "yes"]),
        (pandas.Series(texts, dtype=object), ["no", "yes"]),
        (polars.Series(texts), ["no", "yes"]),
        (pa.chunked_array([values[:7], values[7:]]), [0, 1]),
    ):
        assert np.unique(labels_of(labels, 20)).tolist() == classes
    with pytest.warns(DataConversionWarning, match="column-vector y"):
        assert labels_of(pandas.DataFrame({"click": values}), 20).shape == (20,)


@pytest.mark.parametrize("missing", [None, math.nan, pandas.NA, pandas.NaT, np.float32("nan")])
@pytest.mark.parametrize(
    "carry",
    [
        list,
        lambda values: np.array(values, dtype=object),
        lambda values: pandas.Series(values, dtype=object),
        lambda values: pandas.Series([None if pandas.isna(one) else one for one in values], dtype="Int64"),
        lambda values: pandas.Series([None if pandas.isna(one) else one == 1 for one in values], dtype="boolean"),
        lambda values: pandas.Series([None if pandas.isna(one) else str(one) for one in values], dtype="string"),
        lambda values: pandas.Series([None if pandas.isna(one) else str(one) for one in values], dtype="category"),
        lambda values: polars.Series([None if pandas.isna(one) else one == 1 for one in values]),
        lambda values: pa.array([None if pandas.isna(one) else one == 1 for one in values]),
        lambda values: np.ma.array([0 if pandas.isna(one) else one for one in values], mask=[*[0] * 18, 1, 0]),
    ],
)
def test_a_missing_label_is_one_sentence(missing, carry):
    with pytest.raises(ValueError, match=r"^y: 1 of 20 labels are missing, the first in row 18 \(counted from 0\)"):
        labels_of(carry([*[1, 0] * 9, missing, 1]), 20)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([*[0, 1] * 9, "a", "b"], "types int, str; make them all"),
        ([*[0, 1] * 9, True, False], "types bool, int"),
        ([b"0", b"1"] * 10, "types bytes"),
        ([0, 2**70] * 10, "more than 64 bits"),
        (np.array([0, 1j] * 10), "types complex"),
        ([0.2, 0.7] * 10, r"Unknown label type: continuous, such as 0\.2"),
        ([0.0, math.inf] * 10, "infinite"),
        ([*[0, 1] * 9, 2, 3], "Only binary classification is supported.* got 4 classes: 0, 1, 2, 3"),
        ([0] * 20, "got 1 class: 0"),
        (None, "requires y to be passed, but the target y is None"),
        ([[0, 1]] * 20, "types list"),
        ("yes", "one label a row"),
    ],
)
def test_labels_that_are_none_are_one_sentence(labels, said):
    with pytest.raises(ValueError, match=said) as caught:
        labels_of(labels, 20)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("zeros", "ones"), [(10, 10), (4, 4), (10, 2), (30, 3)])
def test_a_few_rows_are_held_out(zeros, ones):
    is_second = np.arange(zeros + ones) < ones
    learn, stop = split_rows(is_second, 0.1, 0)
    assert sorted([*learn, *stop]) == list(range(zeros + ones))
    assert len(stop) >= 4
    for value in (False, True):
        assert (is_second[learn] == value).sum() >= (is_second[stop] == value).sum() >= 1


@pytest.mark.parametrize(("zeros", "ones"), [(3, 1), (2, 2), (3, 2), (19, 1)])
def test_where_none_can_be_held_out_it_says_so(zeros, ones):
    rows, _ = table(zeros + ones)
    labels = [0] * zeros + [1] * ones
    with pytest.warns(FewRowsWarning, match=f"{zeros} rows of one class and {ones} of the other"):
        model = DMoEClassifier(overrides=[*QUICK, "training.epochs=1"]).fit(rows, labels)
    assert model.predict_proba(rows.iloc[:0]).shape == (0, 2)
    assert np.isfinite(model.predict_proba(rows)).all()


def test_three_rows_are_refused():
    with pytest.raises(ValueError, match="n_samples=3, too few to learn from; at least 4 rows") as caught:
        DMoEClassifier(overrides=QUICK).fit(table(3)[0], [0, 1, 0])
    assert tempfile.gettempdir() not in str(caught.value)


def test_what_fit_cannot_use_is_one_sentence_of_the_table():
    rows, labels = table(50)
    quick = {"overrides": [*QUICK, "training.epochs=1"]}
    cases = [
        ({}, rows.assign(price=rows["price"].where(rows.index != 7, np.inf)),
         r"X: column 'price', row 7 \(counted from 0\): number out of range: 'inf'"),
        ({}, csr_matrix(rows[["ad", "price"]].to_numpy()), "X is sparse"),
        ({}, rows[["ad", "price"]].to_numpy() + 1j, "Complex data not supported"),
        ({}, rows["price"].to_numpy(), r"shape \(50,\)\. Reshape your data"),
        ({}, rows.iloc[:, :0], r"0 feature\(s\) \(shape=\(50, 0\)\) while a minimum of 1"),
        ({}, np.empty((50, 1), dtype="V8"), "column 'x0' holds"),
        ({"numeric": ["prize"]}, rows, "numeric: X has no column 'prize'"),
        ({"numeric": "price"}, rows, r"write \['price'\]"),
        ({"validation_fraction": 1.0}, rows, "validation_fraction must lie between"),
        ({"run_folder": "."}, rows, r"run_folder: \. exists already"),
    ]  # fmt: skip
    for options, passed, said in cases:
        with pytest.raises(ValueError, match=said) as caught:
            DMoEClassifier(**{**quick, **options}).fit(passed, labels)
        assert "\n" not in str(caught.value)
        assert tempfile.gettempdir() not in str(caught.value)
    with pytest.raises(ConfigError, match="overrides must be a list"):
        DMoEClassifier(overrides="training.epochs=1").fit(rows, labels)
    with pytest.raises(NonFiniteLossError, match=r"stopped at step .* Lower optimiser\.lr") as diverged:
        DMoEClassifier(overrides=[*QUICK, "optimiser.lr=1e6", "training.clip_norm=null"]).fit(*table(400))
    assert tempfile.gettempdir() not in str(diverged.value)


def test_a_weight_is_a_share_of_the_loss():
    rows, labels = table(200)
    generator = np.random.default_rng(3)
    weights = generator.choice([0.0, 1.0, 3.0], 200)
    fit = DMoEClassifier(overrides=[*QUICK, "training.epochs=1"]).fit
    scores = fit(rows, labels, sample_weight=weights).predict_proba(rows)
    # Twice as large ones are the same; rows of weight 0 are not there; equal ones are none.
    assert np.array_equal(fit(rows, labels, 2 * weights).predict_proba(rows), scores)
    kept = weights > 0
    left = fit(rows[kept], labels[kept], pandas.Series(weights[kept])).predict_proba(rows)
    assert np.array_equal(left, scores)
    plain = fit(rows, labels).predict_proba(rows)
    assert np.array_equal(fit(rows, labels, np.full(200, 7)).predict_proba(rows), plain)
    assert not np.allclose(plain, scores, atol=1e-3)


def test_heavy_rows_pull_the_mean():
    rows, labels = table(1500)
    heavy = np.where(labels == "none", 9.0, 1.0)
    rates = [
        DMoEClassifier(overrides=QUICK).fit(rows, labels, sample_weight=weight).predict_proba(rows)[:, 1].mean()
        for weight in (None, heavy)
    ]
    assert rates[0] == pytest.approx((labels == "none").mean(), abs=0.05)
    assert rates[1] == pytest.approx(heavy[labels == "none"].sum() / heavy.sum(), abs=0.1)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0] * 49, r"one number a row: 50 rows, got shape \(49,\)"),
        ([[1.0]] * 50, "one number a row"),
        ([1.0] * 49 + [-2.0], r"-2 in row 49 \(counted from 0\); weights are numbers from 0 on"),
        ([float("nan")] + [1.0] * 49, "nan in row 0"),
        ([1.0] * 49 + [float("inf")], "inf in row 49"),
        (["much"] * 50, "sample_weight must hold one number a row"),
        ([0.0] * 50, "sample_weight is zero in every row"),
    ],
)
def test_weights_that_are_none_are_told(weights, said):
    rows, labels = table(50)
    with pytest.raises(ValueError, match=said):
        DMoEClassifier().fit(rows, labels, sample_weight=weights)


def test_weights_must_leave_two_classes():
    rows, labels = table(50)
    assert has_fit_parameter(DMoEClassifier(), "sample_weight")
    with pytest.raises(ValueError, match="must hold two classes, got 1 class"):
        DMoEClassifier().fit(rows, labels, sample_weight=(labels == "click") * 1.0)


def test_a_fit_that_fails_leaves_the_earlier_one_whole():
    rows, labels = table(100)
    model = DMoEClassifier(overrides=[*QUICK, "training.epochs=1"]).fit(rows, labels)
    want = model.predict_proba(rows)
    with pytest.raises(ValueError, match="number out of range"):
        model.fit(pandas.DataFrame({"price": [np.inf, 1.5] * 50}), [0, 1] * 50)
    assert list(model.classes_) == ["click", "none"]
    assert np.array_equal(model.predict_proba(rows), want)


def test_a_search_ends_with_an_interrupt(monkeypatch):
    def interrupted(*_, **__):
        raise Interrupted("interrupted at step 3")

    monkeypatch.setattr("dmoe.scoring.estimator.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cross_val_score(DMoEClassifier(overrides=QUICK), *table(100), cv=2)


def test_categorical_dtypes_are_respected():
    rows, labels = table(200)
    rows["price"] = rows["price"].round(1)
    quick = [*QUICK, "training.epochs=1"]
    plain = rows.astype({"price": "category"})
    kinds = []
    for carrier in (plain, pa.Table.from_pandas(plain), polars.from_pandas(rows.astype({"site": "category"}))):
        fields = DMoEClassifier(overrides=quick).fit(carrier, labels).predictor_.schema.fields
        kinds.append({field.name: field.kind for field in fields})
    assert kinds[0] == kinds[1] == dict.fromkeys(["site", "ad", "price"], "categorical")
    assert kinds[2] == {"site": "categorical", "ad": "categorical", "price": "numeric"}


def test_names_are_those_of_a_table():
    rows, labels = table(200)
    array = rows.to_numpy()
    model = DMoEClassifier(overrides=[*QUICK, "training.epochs=1"]).fit(array, labels)
    assert model.n_features_in_ == 3
    assert not hasattr(model, "feature_names_in_")
    want = model.predict_proba(array)
    with pytest.warns(UserWarning, match="X has feature names, but DMoEClassifier was fitted without"):
        np.testing.assert_array_equal(model.predict_proba(rows), want)
    model.fit(rows, labels)
    assert list(model.feature_names_in_) == ["site", "ad", "price"]
    model.fit(rows.set_axis(range(3), axis=1), labels)
    assert not hasattr(model, "feature_names_in_")


@pytest.mark.parametrize("kind", ["default", "pandas", "polars"])
def test_the_end_of_a_pipeline(kind):
    rows, labels = table(200)
    columns = make_column_transformer((StandardScaler(), ["price"]), remainder="passthrough")
    quick = DMoEClassifier(overrides=[*QUICK, "training.epochs=1"])
    model = make_pipeline(columns.set_output(transform=kind), quick).fit(rows, labels)
    assert model.predict_proba(rows).shape == (200, 2)
    assert hasattr(model[-1], "feature_names_in_") == (kind != "default")


@pytest.mark.slow
def test_a_search_in_two_processes():
    rows, labels = table(600)
    search = GridSearchCV(
        DMoEClassifier(overrides=QUICK), {"min_count": [1, 5]}, cv=2, n_jobs=2, scoring="roc_auc", error_score="raise"
    )
    alone = clone(search).set_params(n_jobs=1).fit(rows, labels)
    both = search.fit(rows, labels)
    np.testing.assert_array_equal(both.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(both.predict_proba(rows), alone.predict_proba(rows))


@given(st.data())
@settings(max_examples=25)
def test_a_carrier_of_the_rows_changes_no_probability(fitted, data):
    count = data.draw(st.integers(1, 12))
    values = {
        "site": st.one_of(st.none(), st.sampled_from(["a", "b", "c", "d", "new", "01", "é"])),
        "ad": st.one_of(st.none(), st.integers(-2, 5)),
        "price": st.one_of(st.none(), st.floats(-1e6, 1e6)),
    }
    drawn = {name: data.draw(st.lists(one, min_size=count, max_size=count)) for name, one in values.items()}
    types = pa.schema({"site": pa.string(), "ad": pa.int64(), "price": pa.float64()})
    arrow = pa.table(drawn, schema=types)
    array = np.array([[*row] for row in zip(*drawn.values(), strict=True)], dtype=object).reshape(count, 3)
    frame = arrow.to_pandas()
    carriers = {
        "pandas": frame, "pandas nullable": frame.convert_dtypes(),
        "pandas objects": pandas.DataFrame(drawn, dtype=object), "pandas index": frame.set_axis(range(5, 5 + count)),
        "pandas Arrow": arrow.to_pandas(types_mapper=pandas.ArrowDtype),
        "polars": polars.from_arrow(arrow), "batch": arrow.to_batches()[0], "numpy": array, "rows": array.tolist(),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        want = fitted.predict_proba(arrow)
        for name, carrier in carriers.items():
            np.testing.assert_array_equal(fitted.predict_proba(carrier), want, err_msg=name)


def test_fits_on_every_carrier_are_equal():
    rows, labels = table(100)
    rows = rows.astype({"ad": "Int64"})
    rows.loc[3, ["site", "ad"]] = None, pandas.NA
    rows.loc[5, "price"] = None
    arrow = pa.Table.from_pandas(rows)
    array = rows.astype(object).where(rows.notna(), None).to_numpy()
    want = None
    for carrier in (arrow, rows, polars.from_arrow(arrow), arrow.to_pandas(), array):
        model = DMoEClassifier(overrides=[*QUICK, "training.epochs=1"]).fit(carrier, labels)
        found = model.predict_proba(carrier)
        want = found if want is None else want
        np.testing.assert_array_equal(found, want, err_msg=type(carrier).__name__)


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
    ]
    for other in others:
        np.testing.assert_allclose(fitted.predict_proba(other), want, atol=1e-6)
    for other in (rows.to_numpy(), rows.to_numpy().tolist()):
        with pytest.warns(UserWarning, match="X does not have valid feature names"):
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


class Seen(Callback):
    """Notes what it is told; fails where it is asked to."""

    def __init__(self, failing: bool = False) -> None:
        self.told: list[str] = []
        self.failing = failing

    def on_start(self, start):
        self.told.append(f"start {start.step}")
        if self.failing:
            raise ConnectionError("no route")

    def on_evaluation(self, metrics):
        self.told.append(f"evaluation {'cec' in metrics}")

    def on_end(self, metrics, run):
        self.told.append(f"end {(run / 'metrics.json').is_file()} {'valid' in metrics}")


def test_callbacks_see_each_fit_and_change_nothing_of_it(fitted):
    rows, labels = table()
    seen = Seen()
    model = DMoEClassifier(overrides=QUICK, callbacks=[seen]).fit(rows, labels)
    assert seen.told[0] == "start 0"
    assert seen.told[-1] == "end True True"
    assert set(seen.told[1:-1]) == {"evaluation True"}
    assert np.array_equal(model.predict_proba(rows), fitted.predict_proba(rows))
    copy = clone(model)
    assert copy.callbacks[0] is not seen
    assert copy.callbacks[0].told == seen.told
    assert pickle.loads(pickle.dumps(model)).callbacks[0].told == seen.told  # noqa: S301


def test_a_callback_that_fails_is_warned_of_and_what_is_none_refused():
    rows, labels = table(200)
    failing = DMoEClassifier(overrides=[*QUICK, "training.epochs=1"], callbacks=[Seen(failing=True)])
    with pytest.warns(UserWarning, match=r"callback Seen failed \(ConnectionError: no route\); training goes on"):
        failing.fit(rows, labels)
    for wrong in ("tensorboard", [Seen], [print], 3):
        with pytest.raises(ValueError, match=r"callbacks must be a list of dmoe\.Callback, got "):
            DMoEClassifier(overrides=QUICK, callbacks=wrong).fit(rows, labels)
