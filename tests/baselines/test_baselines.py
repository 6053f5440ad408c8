"""The simple models: designs against loops, fits against scikit-learn's own encoders, folders read back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from dmoe.baselines import design as designs
from dmoe.baselines.beside import read_beside, run_faults, stand_beside
from dmoe.baselines.design import Design, tree_categories, tree_inputs
from dmoe.baselines.folder import Baseline, fit_baseline
from dmoe.baselines.target import BLOCKS, TargetEncoding
from dmoe.comparison import compare_runs
from dmoe.errors import DataError
from dmoe.report import write_report
from dmoe.schema import CategoricalField, MultiValuedField, NumericField, Schema
from dmoe.training.loop import train
from tests.training.conftest import small_config, write_data

SCHEMA = Schema(
    label="click",
    fields=(
        CategoricalField(name="site", vocabulary_size=5),
        MultiValuedField(name="tags", vocabulary_size=6, max_length=3),
        NumericField(name="price"),
    ),
)


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    site = draw.integers(0, 5, (count, 1))
    tags = np.sort(draw.integers(0, 6, (count, 3)))[:, ::-1]  # the padding is behind
    ids_RC = np.concatenate([site, tags], axis=1).astype(np.int32)
    return ids_RC, draw.normal(size=(count, 1)).astype(np.float32), draw.integers(0, 2, count).astype(float)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("baselines") / "data", {"train": 2000, "valid": 400, "test": 400})


def test_one_hot_design_equals_a_loop() -> None:
    ids_RC, numeric_RN, _ = rows(50)
    design = Design.of(SCHEMA, numeric_RN)
    got_RK = design.matrix(ids_RC, numeric_RN).toarray()
    assert got_RK.shape == (50, design.columns)
    edges = design.edges[0]
    for row in range(50):
        want = np.zeros(design.columns)
        want[ids_RC[row, 0]] += 1
        tags = [token for token in ids_RC[row, 1:] if token]
        for token in tags:
            want[5 + token] += 1 / len(tags)
        price = float(numeric_RN[row, 0])
        want[11 + sum(edge < price for edge in edges)] += 1
        want[-1] = np.sign(price) * np.log1p(abs(price))
        np.testing.assert_allclose(got_RK[row], want)


def test_many_ids_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(designs, "MOST_COLUMNS", 8)
    ids_RC, numeric_RN, _ = rows(50)
    design = Design.of(SCHEMA, numeric_RN)
    ids_part = design.matrix(ids_RC, numeric_RN).toarray()[:, : design.id_columns]
    assert design.id_columns == 8
    np.testing.assert_allclose(ids_part.sum(1), 1.0 + (ids_RC[:, 1:] > 0).any(1))
    assert len(np.unique(ids_part.argmax(1))) > 2


def test_target_encoding_equals_a_loop() -> None:
    ids_RC, numeric_RN, labels_R = rows(100)
    encoding = TargetEncoding.of(SCHEMA, ids_RC, numeric_RN, labels_R)
    got, first = encoding.training_matrix(ids_RC, numeric_RN, labels_R)
    assert first == 100 // BLOCKS
    later = encoding.matrix(ids_RC[:3], numeric_RN[:3]).toarray()

    def want(row: int, before: int) -> list[float]:
        values: list[float] = []
        for columns, several in (([0], False), ([1, 2, 3], True)):
            count = clicks = 0.0
            for column in columns:
                token = ids_RC[row, column]
                if token == 1 or (several and token == 0):
                    continue
                for earlier in range(before):
                    same = sum(ids_RC[earlier, other] == token for other in columns)
                    count += same
                    clicks += same * labels_R[earlier]
            rate = (clicks + 20 * labels_R.mean()) / (count + 20)
            values += [np.log(rate / (1 - rate)), np.log1p(count), float(count == 0)]
        return values

    for row in (10, 37, 99):
        np.testing.assert_allclose(got.toarray()[row - first, :6], want(row, row // 10 * 10))
    for row in range(3):
        np.testing.assert_allclose(later[row, :6], want(row, 100))


def test_tree_inputs_have_missing_values_and_lists() -> None:
    ids_RC, numeric_RN, _ = rows(20)
    inputs = tree_inputs(SCHEMA, ids_RC, numeric_RN)
    assert tree_categories(SCHEMA) == [0]
    assert inputs.shape == (20, 1 + 1 + 5 + 1)
    np.testing.assert_array_equal(np.isnan(inputs[:, 0]), ids_RC[:, 0] == 0)
    np.testing.assert_array_equal(inputs[:, 1], (ids_RC[:, 1:] > 0).sum(1))
    np.testing.assert_array_equal(inputs[:, 2 + 3], (ids_RC[:, 1:] == 4).any(1))


def test_logistic_regression_is_that_of_scikit_learn(data: Path, tmp_path: Path) -> None:
    found = fit_baseline("logistic", data, tmp_path / "lr")
    assert found.facts.chosen["encoding"] == "one-hot"
    table = {split: parquet.read_table(data / split).to_pydict() for split in ("train", "test")}

    def inputs(split: str) -> list[dict[str, float]]:
        columns = table[split]
        out = []
        for index in range(len(columns["click"])):
            price = columns["price"][index]
            row = {f"{name}={columns[name][index]}": 1.0 for name in ("site", "device", "hour")}
            edges = found.load_model().inputs.edges[0]  # type: ignore[attr-defined]
            row[f"price bin {sum(edge < price for edge in edges)}"] = 1.0
            row["price"] = np.sign(price) * np.log1p(abs(price))
            out.append(row)
        return out

    vectors = DictVectorizer()
    peer = LogisticRegression(C=found.facts.chosen["C"], max_iter=1000, tol=1e-8)
    peer.fit(vectors.fit_transform(inputs("train")), table["train"]["click"])
    want_R = peer.decision_function(vectors.transform(inputs("test")))
    ids_RC = np.stack([table["test"][name] for name in ("site", "device", "hour")], axis=1).astype(np.int32)
    got_R = found.load_model().logits(ids_RC, np.array(table["test"]["price"], np.float32)[:, None])
    np.testing.assert_allclose(got_R, want_R, atol=0.02)  # both stop near the optimum


def test_rates_serve_where_most_values_are_new(tmp_path: Path) -> None:
    """Each item comes in one block of time and is clicked by its own rate; a user's rate tells of all blocks."""
    draw = np.random.default_rng(5)
    folder = write_data(tmp_path / "data", {"train": 1, "valid": 1, "test": 1})
    sizes = {"site": 12, "device": 7, "hour": 5}
    schema = Schema(
        label="click",
        fields=(
            CategoricalField(name="item", vocabulary_size=2002),
            *(CategoricalField(name=name, vocabulary_size=size) for name, size in sizes.items()),
        ),
    )
    schema.write(folder)
    tokens = pa.table(
        {
            "value": [f"i{index}" for index in range(2000)],
            "count": pa.array([1] * 2000, pa.int64()),
            "id": pa.array(range(2, 2002), pa.int32()),
        }
    )
    parquet.write_table(tokens, folder / "vocabulary" / "item.parquet")
    item_effect, device_effect = draw.normal(size=2002) * 2, draw.normal(size=7)
    for split, count in {"train": 6000, "valid": 1000, "test": 1000}.items():
        ids = {name: draw.integers(0, size, count).astype(np.int32) for name, size in sizes.items()}
        item = np.ones(count, np.int32) if split != "train" else (2 + np.arange(count) // 3).astype(np.int32)
        effect = np.where(item == 1, draw.normal(size=count) * 2, item_effect[item])
        click = (draw.random(count) < 1 / (1 + np.exp(-effect - device_effect[ids["device"]]))).astype(np.uint8)
        parquet.write_table(pa.table({"item": item, **ids, "click": click}), folder / split / "part-00000.parquet")
    fit_baseline("logistic", folder, tmp_path / "lr")
    metrics = json.loads((tmp_path / "lr" / "metrics.json").read_text())
    assert metrics["test"]["relative_information_gain"] > 0.02


@pytest.mark.parametrize("kind", ["logistic", "lightgbm"])
def test_a_folder_is_read_back_compared_and_reported(kind: str, data: Path, tmp_path: Path) -> None:
    if kind == "lightgbm":
        pytest.importorskip("lightgbm")
    first = fit_baseline(kind, data, tmp_path / "a")  # type: ignore[arg-type]
    again = fit_baseline(kind, data, tmp_path / "b")  # type: ignore[arg-type]
    for name in ("baseline.json", "logistic.safetensors", "lightgbm.txt"):
        if (tmp_path / "a" / name).exists():
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    same = compare_runs(Baseline.open(first.path), again, data=data)
    assert same["auc"]["difference"] == same["logloss"]["difference"] == 0
    assert same["auc"]["first"] == json.loads((tmp_path / "a" / "metrics.json").read_text())["test"]["auc"]
    write_report([first.path, again.path], tmp_path / "report.html")
    assert "simple model" in (tmp_path / "report.html").read_text()


def test_a_run_stands_beside_the_regression_of_its_data(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "data"
    shutil.copytree(data, own)
    run = train(small_config("training.epochs=1"), own, tmp_path / "run")
    found = stand_beside(run, own)
    assert read_beside(run.path) == json.loads(json.dumps(found))
    assert Baseline.is_one(own / "baselines" / "logistic")
    stamp = (own / "baselines" / "logistic" / "baseline.json").stat().st_mtime_ns
    metrics = json.loads((run.path / "metrics.json").read_text())
    for split in ("valid", "test"):
        assert found["splits"][split]["auc"]["second"] == pytest.approx(metrics[split]["auc"], abs=1e-9)
    assert stand_beside(run, own) == found
    assert (own / "baselines" / "logistic" / "baseline.json").stat().st_mtime_ns == stamp, "it was fitted twice"
    paired = found["splits"]["test"]["auc"]
    loss = found["splits"]["test"]["logloss"]
    worse = (paired["difference"] < 0 and paired["p"] < 0.05) or (loss["difference"] > 0 and loss["p"] < 0.05)
    assert any("logistic regression is better" in line for line in run_faults(run.path)) == worse
    write_report([run.path], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "logistic regression, test" in page
    assert "against the logistic regression on the same test rows" in page


def test_errors_are_one_sentence(data: Path, tmp_path: Path) -> None:
    fit_baseline("logistic", data, tmp_path / "lr")
    with pytest.raises(DataError, match="exists already; pass --overwrite"):
        fit_baseline("logistic", data, tmp_path / "lr")
    with pytest.raises(DataError, match=r"is no folder of `dmoe baseline`"):
        fit_baseline("logistic", data, tmp_path, overwrite=True)
    (tmp_path / "lr" / "logistic.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match=r"logistic.safetensors: damaged"):
        Baseline.open(tmp_path / "lr").load_model()
    (tmp_path / "lr" / "baseline.json").write_text('{"format_version": 9}')
    with pytest.raises(DataError, match=r"baseline.json"):
        Baseline.open(tmp_path / "lr")
    one_class = write_data(tmp_path / "one", {"train": 20, "valid": 20}, label=1)
    with pytest.raises(DataError, match="both classes are needed"):
        fit_baseline("logistic", one_class, tmp_path / "lr2")
