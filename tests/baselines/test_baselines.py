"""The simple models: designs against loops, fits against scikit-learn's own encoders, folders read back."""

import json
import shutil
from pathlib import Path
from signal import SIGINT, default_int_handler, raise_signal, signal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from dmoe.baselines import design as designs
from dmoe.baselines import folder as folders
from dmoe.baselines import models
from dmoe.baselines.design import Design, tree_categories, tree_inputs
from dmoe.baselines.folder import Baseline, fit_baseline
from dmoe.baselines.kept import kept_logistic
from dmoe.baselines.target import BLOCKS, TargetEncoding
from dmoe.cli.main import main
from dmoe.config.data import DataConfig
from dmoe.errors import DataError, Interrupted
from dmoe.evaluation.baseline import read_beside, run_faults, stand_beside
from dmoe.evaluation.compare import compare_runs
from dmoe.prepare.prepare import prepare
from dmoe.report import write_report
from dmoe.schema import CategoricalField, MultiValuedField, NumericField, Schema
from dmoe.shards.files import EncodedRows
from dmoe.shards.reader import read_once
from dmoe.training.loop import train
from tests.small_runs import small_config, write_data

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


def test_a_baseline_tells_rows_with_unseen_values_apart(data: Path, tmp_path: Path) -> None:
    """As the evaluation of a model does: by the same counts, each side's logloss from the logits."""
    own = tmp_path / "data"
    shutil.copytree(data, own)
    schema = Schema.read(own)
    field, columns = schema.categorical[0], schema.id_columns[0]
    for part in (own / "test").glob("part-*.parquet"):
        table = parquet.read_table(part)
        values = np.where(np.arange(len(table)) % 3 == 0, 1, table[field.name].to_numpy()).astype(np.int32)
        parquet.write_table(table.set_column(table.column_names.index(field.name), field.name, pa.array(values)), part)
    run = train(small_config("training.epochs=1"), own, tmp_path / "run")
    beside = stand_beside(run, own)["unseen"]["test"]
    kept = Baseline.open(own / "baselines" / "logistic")
    found = json.loads((kept.path / "evaluation" / "test.json").read_text())["unseen"]
    of_run = json.loads((run.path / "evaluation" / "test.json").read_text())["unseen"]
    assert beside == found
    assert [(one["field"], one["values"], one["unseen"]) for one in found["fields"]] == [
        (one["field"], one["values"], one["unseen"]) for one in of_run["fields"]
    ]
    rows = list(read_once(own, "test", batch_size=1000).batches())
    ids_RC, labels_R = (np.concatenate([getattr(one, name).numpy() for one in rows]) for name in ("ids_BC", "labels_B"))
    numeric_RN = np.concatenate([one.numeric_BN.numpy() for one in rows])
    signed_R = np.where(labels_R > 0, -1, 1) * kept.load_model().logits(ids_RC, numeric_RN)
    unseen_R = (ids_RC[:, columns] == 1).any(1)
    assert unseen_R.mean() > 0.3
    side = found["fields"][0]["scores"]
    assert side["with"]["logloss"] == pytest.approx(np.log1p(np.exp(signed_R[unseen_R])).mean())
    assert side["without"]["logloss"] == pytest.approx(np.log1p(np.exp(signed_R[~unseen_R])).mean())
    write_report([run.path], tmp_path / "report.html")
    assert "on rows with unseen values" in (tmp_path / "report.html").read_text()


def test_a_kept_regression_of_other_rows_is_fitted_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever came before, the regression beside a run is that of its own memory; and that is said."""
    monkeypatch.setattr(folders, "_BATCH_ROWS", 100)
    own = tmp_path / "data"
    shutil.copytree(data, own)
    said: list[str] = []
    whole = kept_logistic(own, tmp_path, 4.0, said.append).facts
    entries = Schema.read(own).num_ids + 2 * len(Schema.read(own).numeric)
    small = 2 * 16 * entries * 500 / 2**30
    part = kept_logistic(own, tmp_path, small, said.append).facts
    assert (whole.rows, part.rows, part.valid_rows) == (2000, 500, 400)
    assert sum("fitted on 2,000 training rows" in one and "again, on 500" in one for one in said) == 1
    alone = fit_baseline("logistic", data, tmp_path / "alone", memory_gb=small)
    weights = own / "baselines" / "logistic" / "logistic.safetensors"
    assert weights.read_bytes() == (alone.path / "logistic.safetensors").read_bytes()
    stamp = weights.stat().st_mtime_ns
    assert kept_logistic(own, tmp_path, small * 0.99).facts == part, "a memory that changes nothing"
    assert weights.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("earlier", [False, True])
def test_the_first_interrupt_ends_a_fit_and_leaves_what_was(
    earlier: bool,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if earlier:
        fit_baseline("logistic", data, tmp_path / "lr")
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def interrupted(*_: object) -> None:
        raise_signal(SIGINT)

    # Where these tests run in the background, a shell had the signal ignored.
    before_this = signal(SIGINT, default_int_handler)
    request.addfinalizer(lambda: signal(SIGINT, before_this))
    for at in ("dmoe.baselines.models._fit_quietly", "dmoe.baselines.folder.write_evaluations"):
        with monkeypatch.context() as patch:
            patch.setattr(at, interrupted)
            with pytest.raises(SystemExit) as done:
                main(["baseline", str(data), "-o", str(tmp_path / "lr"), "--overwrite"])
        assert done.value.code == 130
        assert "interrupted; the same command starts again" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_first_interrupt_ends_the_fit_of_a_linear_part(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a training that otherwise stops at batches; resumed, it gives the bits of one that was not interrupted."""
    own = tmp_path / "data"
    shutil.copytree(data, own)
    config = small_config("training.epochs=1", "model.linear=true")
    with monkeypatch.context() as patch:
        patch.setattr("dmoe.baselines.models._fit_quietly", lambda *_: raise_signal(SIGINT))
        with pytest.raises(Interrupted, match="--resume"):
            train(config, own, tmp_path / "run")
    assert not (own / "baselines" / "logistic").exists()
    train(config, own, tmp_path / "run", resume=True)
    train(config, own, tmp_path / "whole")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


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


@pytest.mark.parametrize("rows", [2, 3, 5, 9])
def test_rates_of_fewer_rows_than_blocks(rows: int) -> None:
    """A row each is a block: all but the first are learnt from."""
    ids_RC = np.ones((rows, SCHEMA.num_ids), np.int32)
    numeric_RN = np.zeros((rows, len(SCHEMA.numeric)), np.float32)
    labels_R = np.arange(rows) % 2.0
    encoding = TargetEncoding.of(SCHEMA, ids_RC, numeric_RN, labels_R)
    matrix, first = encoding.training_matrix(ids_RC, numeric_RN, labels_R)
    assert (matrix.shape[0], first) == (rows - 1, 1)


def prepared(folder: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    """Rows of two labels, a site and a weight, the last fifth of them valid."""
    folder.mkdir()
    lines = ["click,like,site,w", *(",".join(row) for row in rows)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    labels = {"click": {}, "like": {"missing": "negative"}}
    plan = {"labels": labels, "weight": "w", "fields": {"categorical": ["site"]}}
    split = {"kind": "ordered", "train": 0.8, "valid": 0.2, "test": 0.0}
    config = DataConfig.model_validate({**plan, "split": split})
    prepare(config, [str(folder / "log.csv")], folder / "data")
    return folder / "data"


def test_rows_count_where_the_main_label_is_known_and_by_their_weight(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    drawn = [(str(int(draw.random() < 0.2 + 0.1 * (index % 5))), f"s{index % 5}") for index in range(500)]
    weights = draw.choice(["1", "3"], 500).tolist()
    some = [(click, str(n % 2), site, w) for n, ((click, site), w) in enumerate(zip(drawn, weights, strict=True))]
    unknown = [("", "1", f"s{n % 5}", "1") for n in range(500)]
    mixed = prepared(tmp_path / "mixed", [row for pair in zip(some, unknown, strict=True) for row in pair])
    alone = prepared(tmp_path / "alone", some)
    fits = {
        name: fit_baseline("logistic", data, tmp_path / f"b-{name}")
        for name, data in (("mixed", mixed), ("alone", alone))
    }
    ids = np.arange(7, dtype=np.int32)[:, None]
    logits = {name: one.load_model().logits(ids, np.empty((7, 0), np.float32)) for name, one in fits.items()}
    assert np.array_equal(logits["mixed"], logits["alone"])
    assert read_once(mixed, "valid", batch_size=9).num_rows == 200
    scores = [json.loads((one.path / "metrics.json").read_text())["valid"] for one in fits.values()]
    assert scores[0] == scores[1]


def test_a_weight_is_so_many_rows() -> None:
    draw = np.random.default_rng(1)
    schema = Schema(label="click", fields=(CategoricalField(name="site", vocabulary_size=6),))
    times = draw.integers(1, 4, 300)

    def of(start: int, stop: int, repeats: np.ndarray | None) -> EncodedRows:
        ids, labels = sites[start:stop], clicks[start:stop]
        weights = times[start:stop].astype(np.float32) if repeats is None else None
        if repeats is not None:
            ids, labels = np.repeat(ids, repeats[start:stop], axis=0), np.repeat(labels, repeats[start:stop], axis=0)
        return EncodedRows(ids, np.empty((len(ids), 0), np.float32), labels, weights)

    sites = draw.integers(0, 6, (300, 1)).astype(np.int32)
    clicks = (draw.random((300, 1)) < 0.1 + 0.15 * sites).astype(np.uint8)
    found = []
    for repeats in (None, times):
        train, valid = of(0, 200, repeats), of(200, 300, repeats)
        inputs = Design.of(schema, train.numeric_RN)
        matrix = inputs.matrix(train.ids_RC, train.numeric_RN)
        labels_R = train.labels_R.astype(np.float64)
        found.append(models._best(inputs, matrix, labels_R, valid, "one-hot", lambda _: None, train.weights_R))
    (loss, weighted), (other_loss, repeated) = found
    assert loss == pytest.approx(other_loss, abs=1e-4)
    assert weighted.strength == repeated.strength
    assert np.allclose(weighted.weights_K, repeated.weights_K, atol=2e-3)
