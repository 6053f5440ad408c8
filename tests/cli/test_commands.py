"""The commands as a user calls them: the whole way on a small generated log, and every kind of bad input."""

import json
from pathlib import Path

import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from sklearn.metrics import roc_auc_score

import dmoe
from dmoe.cli.main import main
from dmoe.evaluation.evaluate import scored_batches
from dmoe.shards.batch import SCORING_ROWS
from dmoe.shards.reader import SplitReader
from dmoe.training import finish
from dmoe.weights.run import Run

SMALL = [
    "model.embedding_dim=4", "model.experts.0.units=[8]", "model.expert_units=16", "training.batch_size=500",
    "training.epochs=1",
]  # fmt: skip


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(capfd):
    """Runs `dmoe` in this process and gives exit code, standard output and standard error."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """log.csv, data and run, made once by the commands themselves."""
    path = tmp_path_factory.mktemp("way")
    for arguments in (
        ["generate", path / "log.csv", "--rows", 12000, "--preset", "toy", "--seed", 3],
        ["prepare", "--config", path / "log.data.yaml", "--input", path / "log.csv", "--output", path / "data"],
        ["train", "d-moe", *SMALL, "--data", path / "data", "--output", path / "run"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert not stopped.value.code
    return path


def read(path: Path) -> np.ndarray:
    return parquet.read_table(path)["probability"].to_numpy()


def encoded_probabilities(folder: Path, split: str) -> np.ndarray:
    model = Run.open(folder / "run").load_model()
    reader = SplitReader(folder / "data", split, batch_size=SCORING_ROWS)
    parts = [torch.sigmoid(output.logit) for _, output in scored_batches(model, reader.batches(), torch.device("cpu"))]
    return torch.cat(parts).numpy()


def raw_rows_of(folder: Path, split: str) -> pandas.DataFrame:
    whole = pandas.read_csv(folder / "log.csv", dtype=str, keep_default_na=False)
    sizes = [len(encoded_probabilities(folder, name)) for name in ("train", "valid", "test")]
    start = {"train": 0, "valid": sizes[0], "test": sizes[0] + sizes[1]}[split]
    return whole.iloc[start : start + sizes[("train", "valid", "test").index(split)]]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_predicting_raw_rows_equals_evaluating_the_encoded_ones_to_the_bit(folder, call, tmp_path, split):
    raw_rows_of(folder, split).drop(columns="click").to_csv(tmp_path / "raw.csv", index=False)
    result = call("predict", folder / "run", tmp_path / "raw.csv", "-o", tmp_path / "out.parquet", "--json")
    assert (result.code, json.loads(result.out)["rows"]) == (0, 1200)
    assert np.array_equal(read(tmp_path / "out.parquet"), encoded_probabilities(folder, split))


def test_bfloat16_moves_probabilities_a_little(folder, call, tmp_path):
    raw_rows_of(folder, "test").to_csv(tmp_path / "raw.csv", index=False)
    result = call(
        "predict", folder / "run", tmp_path / "raw.csv", "-o", tmp_path / "out.csv", "--precision", "bfloat16"
    )
    assert result.code == 0
    expected, fast = encoded_probabilities(folder, "test"), pandas.read_csv(tmp_path / "out.csv")["probability"]
    # Eight bits of mantissa: a logit moves by a few times 2^-8 of itself.
    assert 0 < np.abs(fast - expected).max() < 0.01


def test_tables_of_every_kind_score_alike_and_in_order(folder, tmp_path):
    predictor = dmoe.load(folder / "run")
    rows = raw_rows_of(folder, "test")
    expected = encoded_probabilities(folder, "test")
    numeric = rows.assign(**{name: pandas.to_numeric(rows[name]) for name in ("price", "age")})
    assert np.array_equal(predictor.predict_proba(numeric), expected)
    assert np.array_equal(predictor.predict_proba(pa.Table.from_pandas(numeric)), expected)
    assert np.array_equal(predictor.predict_proba(polars.from_pandas(numeric)), expected)
    rows.to_csv(tmp_path / "raw.csv", index=False)
    assert np.array_equal(predictor.predict_proba(tmp_path / "raw.csv"), expected)
    np.testing.assert_allclose(predictor.predict_proba(numeric[:1]), expected[:1], rtol=1e-5)
    assert predictor.predict_proba(numeric[:0]).shape == (0,)


def test_tables_in_16_bits_are_predicted_with_as_evaluated(folder, call, tmp_path):
    run = tmp_path / "half"
    trained = call(
        "train", "d-moe", *SMALL, "model.embedding_storage=bfloat16", "--data", folder / "data", "--output", run
    )
    assert trained.code == 0
    assert Run.open(run).load_weights()["embedding.banks.0.tables.weight"].dtype == torch.bfloat16
    evaluated = call("evaluate", run, "--split", "test", "--json")
    assert evaluated.code == 0
    probabilities = dmoe.load(run).predict_proba(raw_rows_of(folder, "test"))
    clicks = raw_rows_of(folder, "test")["click"].astype(int)
    auc = json.loads(evaluated.out)["test"]["auc"]
    # Two rows whose probabilities differ in the last bit may change places.
    assert roc_auc_score(clicks, probabilities) == pytest.approx(auc, abs=1e-5)


def test_unseen_and_missing_values_are_scored(folder):
    predictor = dmoe.load(folder / "run")
    row = raw_rows_of(folder, "test")[:1].drop(columns="click")
    assert not np.array_equal(predictor.predict_proba(row.assign(site="never seen")), predictor.predict_proba(row))
    assert np.isfinite(predictor.predict_proba(row.assign(site="", age=""))).all()


def test_evaluate_correlation_and_report(folder, call, tmp_path):
    result = call("evaluate", folder / "run", "--json")
    found = json.loads(result.out)
    assert (result.code, set(found)) == (0, {"train", "valid", "test"})
    assert f"AUC {found['test']['auc']:.6f}" in call("evaluate", folder / "run", "--split", "test").out
    result = call("correlation", folder / "run", "--json")
    assert json.loads(result.out)["correlation"]["output"]["total"] == pytest.approx(
        found["test"]["correlation"]["output"]["total"]
    )
    assert "noise floor" in call("correlation", folder / "run").out
    result = call("report", folder / "run", "-o", tmp_path / "report.html")
    assert (result.code, (tmp_path / "report.html").stat().st_size > 10_000) == (0, True)


def test_lists_and_resolved_configuration(call):
    assert "d-moe" in call("config").out
    assert "alpha: 30.0" in call("config", "--preset", "d-moe", "decorrelation.0.alpha=30").out
    assert {expert["kind"] for expert in json.loads(call("experts", "--json").out)["experts"]} >= {
        "fm", "nfm", "dnn", "deepfm", "crossnet", "dcnv2", "cin", "xdeepfm",
    }  # fmt: skip
    assert "crossnet: " in call("experts").out
    found = json.loads(call("experts", "crossnet", "--fields", 39, "--dim", 10, "--json").out)
    (expert,) = found["experts"]
    assert (found["fields"], found["dim"], expert["source"]) == (39, 10, "Wang et al., WWW 2021, eq. 1")
    assert expert["cost"] == {
        "parameters": 3 * (390**2 + 390),
        "flops": 3 * (2 * 390**2 + 3 * 390),
        "out_features": 390,
    }
    assert expert["options"]["low_rank"] == {"type": "int | None", "default": None}
    assert "must be a multiple of 23 (one vector for each other field), got 16" in call("experts", "ffm").out
    assert "Intermediates:" in call("experts", "cin").out
    assert call("experts", "cim").code == 2


def test_every_built_in_expert_names_its_equation_and_source(call):
    for expert in json.loads(call("experts", "--json").out)["experts"]:
        assert expert["source"], expert["kind"]
        assert "`" in expert["equation"], expert["kind"]
        assert (expert["cost"] is None) == (expert["kind"] in ("ffm", "onn")), expert["kind"]
    assert call("--version").out.strip()
    assert call("train", "--help").code == 0


def test_both_scales_of_alpha_are_said(folder, call, tmp_path):
    words = ["train", "d-moe", *SMALL, "decorrelation.0.alpha=10"]
    result = call(*words, "--data", folder / "data", "--output", tmp_path / "run")
    assert "alpha 10 at scale paper = 0.625 at scale dimension-free" in result.err.replace("\n", " ")


def test_a_dead_expert_is_named(folder, call, tmp_path, monkeypatch):
    words = ["train", "d-moe", *SMALL, "--data", folder / "data"]
    alive = call(*words, "--output", tmp_path / "alive")
    assert (alive.code, "is dead" in alive.err) == (0, False)
    # It takes a long training to lose an expert for sure, so what the evaluation finds is put in its place.
    summary = finish.summary_of
    found = {"dead_columns": [16, 15], "cec": None}
    monkeypatch.setattr(finish, "summary_of", lambda evaluation: summary(evaluation) | found)
    lost = call(*words, "--output", tmp_path / "lost")
    assert "warning: expert 0 (cin) is dead: each of its 16 outputs is the same for every row" in lost.err
    assert "expert 1" not in lost.err
    assert "CEC undefined\n" in lost.out


def test_json_is_the_only_thing_on_stdout(folder, call, tmp_path):
    result = call("train", "me-moe", *SMALL, "--data", folder / "data", "--output", tmp_path / "run", "--json")
    found = json.loads(result.out)
    assert 0.5 < found["test"]["auc"] < 1
    assert "valid AUC" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "d-moe", "training.epoch=1"], "unknown key 'training.epoch'; did you mean 'epochs'"),
        (["train", "d-moe", "model.experts.0.kind=cim"], "no expert 'cim'; did you mean 'cin'"),
        (["train", "d-mo"], "did you mean 'd-moe'"),
        (["train", "absent.yaml"], "absent.yaml: no such file"),
    ],
)
def test_a_wrong_configuration_exits_2_with_one_clear_line(folder, call, tmp_path, arguments, message):
    result = call(*arguments, "--data", folder / "data", "--output", tmp_path / "run")
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run").exists()


def test_wrong_folders_exit_2(folder, call, tmp_path):
    result = call("train", "d-moe", "--data", tmp_path / "nowhere", "--output", tmp_path / "run")
    assert (result.code, "nowhere: no such folder" in result.err) == (2, True)
    result = call("train", "d-moe", "--data", tmp_path, "--output", tmp_path / "run")
    assert (result.code, "has no schema.json" in result.err) == (2, True)
    result = call("train", "d-moe", *SMALL, "--data", folder / "data", "--output", folder / "run")
    assert (result.code, "exists already; pass --resume" in result.err) == (2, True)
    for command in ("evaluate", "correlation", "report"):
        result = call(command, tmp_path / "nowhere", *(["-o", tmp_path / "r.html"] if command == "report" else []))
        assert (result.code, "nowhere" in result.err, "Traceback" in result.err) == (2, True, False)
    assert call("evaluate", folder / "run", "--split", "tset").code == 2
    assert call("evaluate", folder / "run", "--device", "tpu").code == 2


def test_predict_refuses_what_it_cannot_do(folder, call, tmp_path):
    log = folder / "log.csv"
    for output in (tmp_path / "out.txt", tmp_path / "nowhere" / "out.csv", log):
        assert call("predict", folder / "run", log, "-o", output).code == 2
    result = call("predict", folder / "run", tmp_path / "absent.csv", "-o", tmp_path / "out.csv")
    assert (result.code, "absent.csv" in result.err) == (2, True)
    (tmp_path / "short.csv").write_text("slot,hour\n1,2\n")
    result = call("predict", folder / "run", tmp_path / "short.csv", "-o", tmp_path / "out.csv")
    assert (result.code, "short.csv: no column 'price'" in result.err) == (2, True)
    lines = log.read_text().splitlines()
    (tmp_path / "broken.csv").write_text("\n".join([*lines[:5], "1,2,3", *lines[5:9]]) + "\n")
    result = call("predict", folder / "run", tmp_path / "broken.csv", "-o", tmp_path / "out.csv")
    assert (result.code, "broken.csv:6" in result.err) == (2, True)
    assert not list(tmp_path.glob("*out*"))


def test_predictions_as_csv(folder, call, tmp_path):
    assert call("predict", folder / "run", folder / "log.csv", "-o", tmp_path / "out.csv").code == 0
    table = pandas.read_csv(tmp_path / "out.csv")
    assert (list(table.columns), len(table)) == (["probability"], 12000)


def test_a_full_disk_is_said_and_leaves_nothing(folder, call, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
    result = call("predict", folder / "run", folder / "log.csv", "-o", tmp_path / "out.parquet")
    assert (result.code, "No space left on device" in result.err, "Traceback" in result.err) == (1, True, False)
    assert not list(tmp_path.iterdir())
