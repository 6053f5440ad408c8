"""The estimator with several labels, rows to stop by, and weights to start from."""

import pickle

import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest

from dmoe import DMoEClassifier, FewRowsWarning
from dmoe.scoring.estimator_labels import split_targets, targets_of

QUICK = [
    "model.embedding_dim=4", "model.experts.0.units=[8]", "model.expert_units=16", "training.batch_size=100",
    "training.epochs=3", "optimiser.lr=0.02",
]  # fmt: skip


def table(rows: int = 900, seed: int = 0) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """A click by the site; a sale, known where there is a click, by the ad; a like that half of the rows know."""
    draw = np.random.default_rng(seed)
    frame = pandas.DataFrame({"site": draw.choice(list("abcd"), rows), "ad": draw.integers(0, 4, rows).astype(str)})
    click = draw.random(rows) < np.where(frame["site"].isin(["a", "b"]), 0.8, 0.2)
    sale = draw.random(rows) < np.where(frame["ad"].isin(["0", "1"]), 0.8, 0.2)
    like = pandas.Series(np.where(draw.random(rows) < 0.5, "yes", "no"), dtype=object)
    like[draw.random(rows) < 0.5] = None
    return frame, pandas.DataFrame({"click": click.astype(int), "sale": np.where(click, sale, np.nan), "like": like})


@pytest.fixture(scope="module")
def fitted() -> DMoEClassifier:
    rows, labels = table()
    return DMoEClassifier("d-moe-tasks", overrides=QUICK, given={"sale": "click"}).fit(rows, labels)


def test_each_label_has_its_own_probability(fitted: DMoEClassifier) -> None:
    rows, _ = table(40, seed=1)
    assert fitted.label_names_ == ["click", "sale", "like"]
    assert [one.tolist() for one in fitted.classes_] == [[0, 1], [0, 1], ["no", "yes"]]
    every = fitted.predict_proba(rows)
    assert [one.shape for one in every] == [(40, 2)] * 3
    sites, ads = rows["site"].isin(["a", "b"]), rows["ad"].isin(["0", "1"])
    assert every[0][sites, 1].min() > every[0][~sites, 1].max()
    assert every[1][ads, 1].min() > every[1][~ads, 1].max()
    predicted = fitted.predict(rows)
    assert all({*column} <= {*classes} for column, classes in zip(predicted.T, fitted.classes_, strict=True))
    np.testing.assert_array_equal(predicted[:, 0].astype(int), (every[0][:, 1] > 0.5).astype(int))
    try:
        for label, expected in (("sale", every[1]), (["like", "click"], [every[2], every[0]])):
            np.testing.assert_array_equal(fitted.set_params(label=label).predict_proba(rows), expected)
        fitted.set_params(label="click+sale")
        np.testing.assert_allclose(fitted.predict_proba(rows)[:, 1], every[0][:, 1] * every[1][:, 1], rtol=1e-5)
        assert fitted.predict(rows).dtype == bool
        assert set(fitted.set_params(label="like").predict(rows)) <= {"no", "yes"}
        with pytest.raises(ValueError, match=r"label: the model has no 'lik'; it has click, sale, click\+sale, like"):
            fitted.set_params(label="lik").predict_proba(rows)
    finally:
        fitted.set_params(label=None)
    copied = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    np.testing.assert_array_equal(copied.predict_proba(rows)[1], every[1])


def test_labels_on_every_carrier() -> None:
    _, labels = table(60)
    want = targets_of(labels, 60)
    arrow = pa.Table.from_pandas(labels)
    for carrier in (arrow, polars.from_arrow(arrow), labels.convert_dtypes(), labels.astype(object)):
        found = targets_of(carrier, 60)
        assert found.names == want.names
        assert [one.tolist() for one in found.classes] == [one.tolist() for one in want.classes]
        np.testing.assert_array_equal(found.codes_RT, want.codes_RT)
    numbers = labels.drop(columns="like").to_numpy()
    assert targets_of(numbers, 60).names == ["y0", "y1"]
    np.testing.assert_array_equal(targets_of(numbers.tolist(), 60).codes_RT, want.codes_RT[:, :2])
    assert targets_of(labels["click"], 60).names is None


def test_held_out_rows_hold_each_class_of_each_label() -> None:
    _, labels = table(300)
    targets = targets_of(labels, 300).with_given({"sale": "click"})
    learn, stop = split_targets(targets, 0.1, 0)
    assert sorted([*learn, *stop]) == list(range(300))
    for part in (learn, stop):
        assert all({0, 1} <= {*targets.codes_RT[part, task].tolist()} for task in range(3))
    few = targets_of(pandas.DataFrame({"a": [0, 1] * 10, "b": [1, *[0] * 19]}), 20)
    with pytest.warns(FewRowsWarning, match="label '.' has too few rows of a class"):
        split_targets(few, 0.1, 0)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda y: y.assign(like=None), {}, "y: label 'like' must hold two classes .* got no known label"),
        (lambda y: y.assign(sale=1), {}, "y: label 'sale' must hold two classes .* got one class"),
        (lambda y: y.assign(sale=y.index % 3), {}, "label 'sale' must hold two classes .* got 3 classes"),
        (lambda y: y.assign(sale=0.5), {}, "label 'sale' holds numbers that are no classes"),
        (
            lambda y: y.apply(lambda one: one.mask(y.index == 7)),
            {},
            r"no label is known in 1 of 60 rows, the first is row 7",
        ),
        (lambda y: y, {"given": {"buy": "click"}}, "given: y has no label 'buy'"),
        (lambda y: y["click"], {"given": {"sale": "click"}}, "given is about several labels, and y holds one"),
        (lambda y: y.iloc[:-1], {}, "label 'click' must hold one label a row: 60 rows"),
    ],
)
def test_labels_that_cannot_be_learnt_are_one_sentence(change, options, said) -> None:
    rows, labels = table(60)
    with pytest.raises(ValueError, match=said) as caught:
        DMoEClassifier("d-moe-tasks", overrides=QUICK, **options).fit(rows, change(labels))
    assert "\n" not in str(caught.value)


def test_early_stopping_watches_the_rows_that_are_given(tmp_path) -> None:
    rows, labels = table(400)
    other, watched = table(120, seed=5)
    quick = [*QUICK, "training.epochs=1"]
    model = DMoEClassifier(overrides=quick, run_folder=str(tmp_path / "run"))
    model.fit(rows, labels["click"], eval_set=[(other[["ad", "site"]], watched["click"])])
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]
    assert '"rows": 400' in line
    data = pandas.read_json(tmp_path / "run" / "evaluation" / "valid.json", typ="series")
    assert (data["rows"], data["positives"]) == (120, watched["click"].sum())
    weighed = DMoEClassifier(overrides=quick).fit(
        rows, labels["click"], sample_weight=np.arange(400) + 1, eval_set=(other, watched["click"])
    )
    assert weighed.predict_proba(other).shape == (120, 2)


@pytest.mark.parametrize(
    ("eval_set", "said"),
    [
        (5, r"eval_set must be a pair \(X, y\)"),
        (lambda x, y: (x[["ad"]], y), "eval_set: X has no column 'site'"),
        (lambda x, y: (x, y * 2), "eval_set: y: 2 is none of the classes 0, 1"),
        (lambda x, y: (x, y * 0), "eval_set: y must hold both classes in at least 4 rows"),
        (lambda x, y: (x, pandas.DataFrame({"a": y, "b": y})), "eval_set: y must hold one label, got the labels a, b"),
        (lambda x, y: (x, y.where(y.index > 0)), "eval_set: y: 1 of 60 labels are missing"),
    ],
)
def test_rows_to_stop_by_that_do_not_fit_are_one_sentence(eval_set, said) -> None:
    rows, labels = table(60)
    given = eval_set(rows, labels["click"]) if callable(eval_set) else eval_set
    with pytest.raises(ValueError, match=said):
        DMoEClassifier(overrides=QUICK).fit(rows, labels["click"], eval_set=given)


def test_a_warm_start_goes_on_from_what_was_learnt() -> None:
    rows, labels = table(600)
    later, next_labels = table(60, seed=9)
    quick = [*QUICK, "training.epochs=1", "optimiser.lr=1e-6"]
    learnt = DMoEClassifier(overrides=QUICK, warm_start=True).fit(rows, labels["click"])
    before = learnt.predict_proba(later)
    learnt.set_params(overrides=quick).fit(later, next_labels["click"])
    cold = DMoEClassifier(overrides=quick).fit(later, next_labels["click"])
    # Steps of next to nothing leave the earlier model, but for its calibration, which orders rows alike.
    sites = later["site"].isin(["a", "b"])
    warm = learnt.predict_proba(later)[:, 1]
    assert warm[sites].min() > warm[~sites].max()
    assert before.shape == learnt.predict_proba(later).shape
    assert not np.array_equal(cold.predict_proba(later)[:, 1], warm)
