"""The exported model against the run it came from: same raw rows, same scores; and every refusal."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dmoe
from dmoe.cli.main import main
from dmoe.config.data import DataConfig
from dmoe.config.stored import stored_config
from dmoe.errors import ConfigError, DataError, DmoeError, MissingExtraError, UserError
from dmoe.export import extra
from dmoe.export.fields import field_inputs
from dmoe.export.graph import front_graph
from dmoe.export.manifest import Manifest, TableType
from dmoe.export.onnx_model import OnnxModel
from dmoe.export.tables import StoredEmbedding
from dmoe.export.write import export
from dmoe.nn.experts import EXPERTS
from dmoe.nn.experts.base import Expert
from dmoe.nn.tables.table import MultiTableEmbedding
from dmoe.prepare.prepare import prepare
from dmoe.schema import Schema
from dmoe.tokens.encoder import RawEncoder
from dmoe.tokens.vocabulary import read_vocabulary
from dmoe.weights.run import Run
from tests.export.conftest import trained
from tests.prepare.logs import COLUMNS, random_rows

pytestmark = pytest.mark.filterwarnings("ignore::dmoe.MissingWordsWarning")  # NA is one of the values

# Nasty raw values of each column of the log in tests/prepare/logs.py.
VALUES: dict[str, list[object]] = {
    "site": ["a", "b", "é", "日本", "😀", "", "?", "never seen", " a", "\0", None],
    "user": ["u1", "u2", "NA", "r3", "", "unseen", None],
    "time": ["14102123", "14101000", "", "?", None],
    "price": ["", "0", "-3", "1e3", "-0", "3e38", "1e-300", None],
    "age": ["?", "7", "-7.5", "1e30", "", None],
    "raw": ["+1.5", " 2 ", "-0", "3.4e38", "", None],
    "hits": ["0", "1", "2", "2.0000001", "3", "-2", "-2.9", "-1e30", "3e38", "7.389056", "499", "", "?", None],
}
ROWS = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()})


def table(rows: list[dict[str, object]]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in VALUES})


def reference(run: Run, rows: Any) -> np.ndarray:
    return dmoe.load(run.path).predict_proba(rows)


@pytest.mark.parametrize("folder", ["in_graph", "looked_up"])
def test_files_and_tables_score_as_the_run_does(
    run: Run, log: Path, folder: str, request: pytest.FixtureRequest
) -> None:
    model = dmoe.load(request.getfixturevalue(folder))
    assert isinstance(model, OnnxModel)
    expected = reference(run, log)
    assert expected.std() > 0.05  # parity of a constant would prove nothing
    np.testing.assert_allclose(model.predict_proba(log), expected, atol=2e-6)
    text = pd.DataFrame(random_rows(300, 8), columns=list(COLUMNS))
    np.testing.assert_allclose(model.predict_proba(text), reference(run, text), atol=2e-6)
    assert model.predict_proba(text[:0]).shape == (0,)


@pytest.mark.parametrize("folder", ["in_graph", "looked_up"])
@settings(max_examples=60)
@given(rows=st.lists(ROWS, min_size=1, max_size=5))
def test_any_values_score_as_the_run_does(
    run: Run, in_graph: Path, looked_up: Path, folder: str, rows: list[dict[str, object]]
) -> None:
    model = _opened(in_graph if folder == "in_graph" else looked_up)
    expected = _opened_run(run).predict_proba(table(rows))
    # Numbers of 3e38 lie beside small ones: float32 sums in another order differ in their last digits.
    np.testing.assert_allclose(model.predict_proba(table(rows)), expected, atol=5e-6)


_cache: dict[Path, Any] = {}


def _opened(folder: Path) -> Any:
    return _cache.setdefault(folder, dmoe.load(folder))


def _opened_run(run: Run) -> Any:
    return _opened(run.path)


@pytest.mark.parametrize("folder", ["in_graph", "looked_up"])
def test_ids_in_the_graph_are_those_of_the_encoder(run: Run, folder: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder)
    body = onnx.load(path / "model.onnx", load_external_data=False)
    ids = next(node.output[0] for node in body.graph.node if node.output[0] == "fields/ids")
    body.graph.output.append(onnx.helper.make_tensor_value_info(ids, onnx.TensorProto.INT64, None))
    (path.parent / "probe").mkdir(exist_ok=True)
    shutil.copy(path / "model.onnx.data", path.parent / "probe")
    onnx.save(body, path.parent / "probe" / "model.onnx")
    session = onnxruntime.InferenceSession(path.parent / "probe" / "model.onnx")
    rows = table([{name: values[i % len(values)] for name, values in VALUES.items()} for i in range(80)])
    model = OnnxModel.open(path)
    (found,) = session.run([ids], model.featuriser(model.raw_rows(rows, "table")))
    assert np.array_equal(found, RawEncoder(run.path).encode_table(rows).ids_BC.numpy())


ALL_TRAIN = {"kind": "ordered", "train": 1.0, "valid": 0.0, "test": 0.0}


def test_buckets_equal_python_at_every_boundary(tmp_path: Path) -> None:
    """floor(ln(x)²) in float32 is wrong at many integers; the graph works in float64."""
    numbers = [*range(-3, 3000), *(value for power in range(9, 60) for value in (2**power - 1, 2**power, 2**power + 1))]
    log = pd.DataFrame({"n": [str(number) for number in numbers] * 2, "y": [0, 1] * len(numbers)})
    log.to_csv(tmp_path / "log.csv", index=False)
    values = {"label": "y", "fields": {"numeric": {"n": {"transform": "bucket"}}}, "split": ALL_TRAIN}
    prepare(DataConfig.model_validate(values), [str(tmp_path / "log.csv")], tmp_path / "data")
    schema = Schema.read(tmp_path / "data")
    inputs = field_inputs(schema, stored_config(schema, tmp_path), ())
    tokens = {"n": read_vocabulary(tmp_path / "data", schema.categorical[0])}
    session = onnxruntime.InferenceSession(front_graph(schema, inputs, tokens).SerializeToString())
    (found,) = session.run(["fields/ids"], {"n": np.array([[float(number)] for number in numbers])})
    expected = RawEncoder(tmp_path / "data").encode_table(log[["n"]][: len(numbers)]).ids_BC.numpy()
    assert np.array_equal(
        found, RawEncoder(tmp_path / "data").encode_table(pd.DataFrame({"n": numbers})).ids_BC.numpy()
    )
    assert len(expected) == len(found)
    (odd,) = session.run(["fields/ids"], {"n": np.array([[np.inf], [-np.inf], [np.nan], [1e300], [-1e300]])})
    assert odd[:, 0].tolist() == [1, 1, 0, 1, 1]


def test_the_manifest_says_how_equal_they_are(run: Run, in_graph: Path) -> None:
    manifest = Manifest.read(in_graph)
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert manifest.parity.rows == 180
    assert manifest.parity.max_abs_probability < 2e-6
    assert manifest.parity.auc_torch == metrics["test"]["auc"]
    assert abs(manifest.parity.auc_export - manifest.parity.auc_torch) < 1e-6
    assert sum(one.share for one in manifest.reference_scores) == pytest.approx(1)
    assert manifest.reference_scores[-1].upper == 1
    assert manifest.experts == ("cin", "crossnet")
    assert {one.name: one.kind for one in manifest.inputs} == {
        "hits": "number", "hits_again": "number", "age_step": "text", "age_digit": "text", "price_part": "text",
        "site": "text", "user": "text", "weekday": "text", "hashed": "text",
        "price": "number", "age": "number", "raw": "number",
        "words": "id", "sites": "id", "profile": "text",
    }  # fmt: skip


@pytest.mark.parametrize("tables", ["float16", "int8"])
def test_smaller_tables_cost_little_and_the_cost_is_recorded(run: Run, tmp_path: Path, tables: Any) -> None:
    found = export(run, tmp_path / "model", tables=tables)
    parity = found.parity
    assert 0 < parity.max_abs_probability < 0.02
    assert abs(parity.auc_export - parity.auc_torch) < 0.02
    stored = onnx.load(tmp_path / "model" / "model.onnx", load_external_data=False)
    wide = {"float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[tables]
    own = [field.vocabulary_size for field in run.schema.categorical if field.vocabulary_name == field.name]
    assert sum(one.dims[0] for one in stored.graph.initializer if one.data_type == wide) == sum(own)


@pytest.mark.parametrize("stored", ["float32", "float16", "int8"])
def test_tables_are_stored_alike_in_ranges_of_any_length(stored: TableType, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = MultiTableEmbedding([13, 4], 0, [3, 2])
    torch.nn.init.normal_(tables.weight)
    whole = list(StoredEmbedding(tables, stored, 0).blocks())
    monkeypatch.setattr("dmoe.export.tables._BLOCK_NUMBERS", 21)
    parts = list(StoredEmbedding(tables, stored, 0).blocks())
    assert len(whole) == 1
    assert len(parts) == 5
    for name, value in whole[0].items():
        assert torch.equal(torch.cat([part[name] for part in parts]), value)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "schema.json", "vocabulary/site.tokens/ids.npy"])
def test_a_changed_file_is_refused(looked_up: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(looked_up, tmp_path / "model")
    content = bytearray((tmp_path / "model" / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / "model" / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: is not the file that was exported \(checksum\)"):
        dmoe.load(tmp_path / "model")


def test_absent_and_added_files_and_other_versions_are_refused(in_graph: Path, tmp_path: Path) -> None:
    shutil.copytree(in_graph, tmp_path / "model")
    (tmp_path / "model" / "extra.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"extra\.bin: is not listed in manifest\.json"):
        dmoe.load(tmp_path / "model")
    (tmp_path / "model" / "extra.bin").unlink()
    (tmp_path / "model" / "model.onnx.data").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"model\.onnx\.data: no such file"):
        dmoe.load(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    (tmp_path / "model" / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(DataError, match="format version 99"):
        dmoe.load(tmp_path / "model")
    (tmp_path / "model" / "manifest.json").write_text(json.dumps({**manifest, "inptus": 1}))
    with pytest.raises(DataError, match="unknown key 'inptus'; did you mean 'inputs'"):
        dmoe.load(tmp_path / "model")
    with pytest.raises(ConfigError, match="scored on the CPU, not on cuda"):
        dmoe.load(in_graph, device="cuda")


def test_a_model_behind_a_symbolic_link_loads(in_graph: Path, log: Path, tmp_path: Path) -> None:
    """ONNX Runtime refuses weights that a link leads out of the folder to."""
    (tmp_path / "current").symlink_to(in_graph)
    assert len(dmoe.load(tmp_path / "current").predict_proba(log)) == 900


def test_an_id_out_of_range_is_unseen_and_not_another_row(looked_up: Path) -> None:
    """ONNX Runtime's Gather reads row -1 as the last one without a word."""
    model = OnnxModel.open(looked_up)
    row = model.featuriser(model.raw_rows(table([{name: values[0] for name, values in VALUES.items()}]), "table"))
    row["user"] = np.array([[1]])
    unseen = model.score(row)["probability"]
    for bad in (-1, -(2**63), 10**6, 2**63 - 1):
        row["user"] = np.array([[bad]])
        assert model.score(row)["probability"] == unseen
    row["user"] = np.array([[2]])
    assert model.score(row)["probability"] != unseen


# Nine in a model: each export takes seconds.
@pytest.mark.slow
@pytest.mark.parametrize("kinds", [sorted(EXPERTS)[start::3] for start in range(3)], ids="-".join)
def test_every_expert_exports_and_survives_an_empty_batch(run: Run, tmp_path: Path, kinds: list[str]) -> None:
    """Einsum on an empty batch ends an ONNX Runtime process, so this asks in a process of its own."""
    # These split the table's width among the fields of the log.
    width = {"ffm": 2 * len(run.schema.fields) - 2, "onn": 2 * len(run.schema.fields)}
    experts = ", ".join(f"{{kind: {kind}}}" for kind in kinds)
    run = trained(
        tmp_path,
        f"model.experts=[{experts}]",
        f"model.embedding_dim={[width.get(kind, 4) for kind in kinds]}",
        "training.epochs=1",
    )
    export(run, tmp_path / "model")
    code = (
        "import numpy, onnxruntime, sys\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "types = {'tensor(string)': object, 'tensor(double)': numpy.float64, 'tensor(int64)': numpy.int64}\n"
        "rows = {one.name: numpy.empty((0, one.shape[1]), types[one.type]) for one in session.get_inputs()}\n"
        "assert session.run(['probability'], rows)[0].shape == (0, 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model" / "model.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        dmoe.load(tmp_path / "model").predict_proba(tmp_path / "log.csv"),
        reference(run, tmp_path / "log.csv"),
        atol=2e-6,
    )


@pytest.mark.parametrize(
    "gate",
    [
        pytest.param("{kind: top-k, k: 1, balance: switch}", marks=pytest.mark.slow),
        "{kind: noisy-top-k, k: 2}",
        "{kind: per-unit}",
        "{fields: [site], dropout: 0.2}",
    ],
)
def test_every_gate_exports(tmp_path: Path, gate: str) -> None:
    experts = "model.experts=[{kind: crossnet, layers: 1}, {kind: fm}, {kind: lr}]"
    run = trained(tmp_path, experts, f"model.gate={gate}", "training.epochs=1")
    export(run, tmp_path / "model")
    expected = reference(run, tmp_path / "log.csv")
    np.testing.assert_allclose(dmoe.load(tmp_path / "model").predict_proba(tmp_path / "log.csv"), expected, atol=2e-6)


@pytest.mark.parametrize(("expert", "dim"), [("kind: lr", 1), ("kind: deepfm, hidden_units: [6]", 4)])
def test_single_models_in_the_benchmark_form_export(tmp_path: Path, expert: str, dim: int) -> None:
    layers = ("model.expert_units=500", "model.gate={}", "model.tower_units=[500]")
    form = (f"model.experts=[{{{expert}}}]", "model.form=benchmark", f"model.embedding_dim={dim}", "training.epochs=1")
    run = trained(tmp_path, *layers, *form)
    export(run, tmp_path / "model")
    expected = reference(run, tmp_path / "log.csv")
    assert len(set(expected.tolist())) > 10
    np.testing.assert_allclose(dmoe.load(tmp_path / "model").predict_proba(tmp_path / "log.csv"), expected, atol=2e-6)


class Einsum(Expert):
    def __init__(self, num_fields: int, embedding_dim: int) -> None:
        super().__init__()
        self.out_features = num_fields * num_fields
        self.scale = torch.nn.Parameter(torch.ones(embedding_dim))

    def forward(self, embeddings_BFD: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bfd,bgd,d->bfg", embeddings_BFD, embeddings_BFD, self.scale).flatten(1)


def test_an_expert_that_becomes_an_einsum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPERTS, "einsum", Einsum)
    run = trained(tmp_path, "model.experts=[{kind: einsum}, {kind: dnn}]", "training.epochs=1")
    with pytest.raises(DmoeError, match=r"torch\.einsum, with which ONNX Runtime dies on an empty batch"):
        export(run, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"categorical": ["site"]},
        {"numeric": {"price": {"transform": "log"}}},
        {"numeric": {"hits": {"transform": "bucket"}}},
        {"numeric": {"age": {}, "price": {"transform": "log", "standardise": True}}, "categorical": ["site"]},
    ],
    ids=["text", "log", "bucket", "mixed"],
)
def test_schemas_without_a_kind_of_field_export(tmp_path: Path, fields: dict[str, Any]) -> None:
    one = "model.experts=[{kind: crossnet}, {kind: dnn}]"
    run = trained(tmp_path, one, "training.epochs=1", fields=fields, derive={}, format={"missing": ["?", ""]})
    export(run, tmp_path / "model")
    expected = reference(run, tmp_path / "log.csv")
    np.testing.assert_allclose(dmoe.load(tmp_path / "model").predict_proba(tmp_path / "log.csv"), expected, atol=2e-6)


def test_an_empty_text_that_is_a_value_is_not_a_missing_one(tmp_path: Path) -> None:
    run = trained(
        tmp_path, "training.epochs=1", fields={"categorical": ["site"], "numeric": ["n"]}, derive={"n": HOUR},
        format={"missing": ["?"]},
    )  # fmt: skip
    export(run, tmp_path / "model")
    rows = pa.table({"site": pa.array(["", None, "?", "a"]), "time": ["14102123"] * 4})
    found = dmoe.load(tmp_path / "model").predict_proba(rows)
    np.testing.assert_allclose(found, reference(run, rows), atol=2e-6)
    assert found[0] != found[1] == found[2]


HOUR = {"column": "time", "take": "hour", "format": "yymmddhh"}


def test_bad_rows_are_named_as_the_run_names_them(run: Run, in_graph: Path) -> None:
    rows = pd.DataFrame(random_rows(5, 1), columns=list(COLUMNS))
    rows.loc[2, "age"] = "old"
    for scorer in (dmoe.load(run.path), dmoe.load(in_graph)):
        with pytest.raises(DataError, match="table:3: column 'age': not a number: 'old'"):
            scorer.predict_proba(rows)
        with pytest.raises(DataError, match="no column 'site'"):
            scorer.predict_proba(rows.drop(columns="site"))
        with pytest.raises(DataError, match="expected a pandas, polars or pyarrow table, got list"):
            scorer.predict_proba([1, 2])


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def test_command_line(run: Run, log: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("export", run.path, "-o", tmp_path / "model", "--json") == 0
    said = json.loads(capfd.readouterr().out)
    assert said["max_abs_probability"] < 2e-6
    assert said["version"] == Manifest.read(tmp_path / "model").version
    assert call("export", run.path, "-o", tmp_path / "model") == 2
    assert "pass --overwrite" in capfd.readouterr().err
    assert call("export", run.path, "-o", tmp_path / "model", "--overwrite", "--tables", "int8") == 0
    assert "largest difference in probability" in capfd.readouterr().out
    (tmp_path / "precious").mkdir()
    assert call("export", run.path, "-o", tmp_path / "precious", "--overwrite") == 2
    assert call("export", tmp_path / "absent", "-o", tmp_path / "other") == 2
    assert call("export", run.path, "-o", tmp_path / "other", "--max-graph-tokens", -1) == 2
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(UserError, match="tables must be one of float32, float16, int8, got 'bfloat16'"):
        export(run, tmp_path / "model", tables="bfloat16", overwrite=True)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "precious"]
    assert call("predict", tmp_path / "model", log, "-o", tmp_path / "out.parquet") == 0
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == 900


def test_a_model_folder_has_the_precision_of_its_export(in_graph: Path) -> None:
    with pytest.raises(ConfigError, match="leave --precision out"):
        dmoe.load(in_graph, precision="bfloat16")


def test_an_unequal_export_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmoe.export.write._TOLERANCE", 0.0)
    with pytest.raises(DmoeError, match="differs from the run by"):
        export(run, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_absent_extras_are_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"onnx is not installed; pip install 'dmoe\[export\]'"):
        export(run, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    assert extra.require("json", "export") is json
    assert issubclass(MissingExtraError, UserError)
