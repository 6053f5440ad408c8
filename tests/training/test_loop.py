"""The training loop: determinism, exact resume, the recipe, and what stops it."""

import json
import math
import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from dmoe.disk.files import read_json, read_json_lines
from dmoe.errors import ConfigError, DataError, Interrupted, NonFiniteLossError
from dmoe.evaluation.evaluate import quick_metrics
from dmoe.schema import FORMAT_VERSION, Schema
from dmoe.shards.batch import Batch
from dmoe.shards.reader import SplitReader
from dmoe.training.engine import Engine
from dmoe.training.loop import train
from dmoe.training.progress import Silent
from dmoe.training.step_values import StepLoss
from dmoe.weights.run import Run
from tests.small_runs import small_config, write_data


def weights(run: Run) -> dict[str, torch.Tensor]:
    return run.load_weights()


def assert_same_bits(first: Run, second: Run) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


class StopAt(Silent):
    """Sends this process SIGINT during the given step, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, epoch: int, rows: int, loss: StepLoss) -> None:  # noqa: ARG002
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(small_data, tmp_path):
    first = train(small_config(), small_data, tmp_path / "a")
    second = train(small_config(), small_data, tmp_path / "b")
    other = train(small_config("training.seed=8"), small_data, tmp_path / "c")
    assert_same_bits(first, second)
    assert not torch.equal(weights(first)["head.weight"], weights(other)["head.weight"])


def test_alpha_zero_is_the_baseline_to_the_bit(small_data, tmp_path):
    baseline = train(small_config("decorrelation=[]"), small_data, tmp_path / "none")
    zero = train(small_config("decorrelation=[{alpha: 0}]"), small_data, tmp_path / "zero")
    some = train(small_config(), small_data, tmp_path / "some")
    assert_same_bits(baseline, zero)
    assert not torch.equal(weights(baseline)["experts.0.align.weight"], weights(some)["experts.0.align.weight"])


@pytest.mark.parametrize(
    ("embedding", "storage"),
    [
        *((kind, "float32") for kind in ("deferred", "dense", "lazy", "rowwise-adagrad")),
        ("deferred", "bfloat16"),
        ("deferred", "float16"),
    ],
)
@pytest.mark.parametrize("step", [1, 16, 25])
def test_an_interrupted_run_resumes_to_the_same_bits(small_data, tmp_path, embedding, storage, step):
    overrides = [f"optimiser.embedding={embedding}", "model.tower_dropout=0.2", "training.epochs=2"]
    overrides += [f"model.embedding_storage={storage}", "model.field_std=0.1"]
    overrides += ["training.unseen={site: 0.3, device: 0.1}", "training.base_rate=true"]
    if embedding in ("lazy", "rowwise-adagrad"):
        overrides.append("optimiser.embedding_l2=0")
    config = small_config(*overrides)
    whole = train(config, small_data, tmp_path / "whole")
    with pytest.raises(Interrupted, match="resume"):
        train(config, small_data, tmp_path / "cut", watcher=StopAt(step))
    assert not (tmp_path / "cut" / "metrics.json").exists()
    resumed = train(config, small_data, tmp_path / "cut", resume=True)
    assert_same_bits(whole, resumed)
    assert not (resumed.path / "checkpoint").exists()

    def without_times(run: Run) -> list[dict]:
        lines = read_json_lines(run.path / "metrics.jsonl")
        return [{key: value for key, value in line.items() if "second" not in key} for line in lines]

    assert without_times(whole) == without_times(resumed)


@pytest.mark.parametrize("name", ["model.head.weight", "embedding.0.last_step", "adam.exp_avg.head.bias"])
def test_a_state_of_another_model_is_refused(small_data, tmp_path, name):
    with pytest.raises(Interrupted):
        train(small_config(), small_data, tmp_path / "run", watcher=StopAt(3))
    (path,) = (tmp_path / "run" / "checkpoint").glob("*/state.safetensors")
    tensors = load_file(path)
    tensors[name.replace("last", "lost").replace("head", "feet")] = tensors.pop(name)
    save_file(tensors, path)
    wanted = r"checkpoint: is not the state of this configuration .*--overwrite|optimiser state 'deferred' has tensors"
    with pytest.raises(DataError, match=wanted):
        train(small_config(), small_data, tmp_path / "run", resume=True)


def test_the_run_folder_holds_what_it_should(small_data, tmp_path):
    run = train(small_config(), small_data, tmp_path / "run")
    names = {path.name for path in run.path.iterdir()}
    assert names >= {
        "config.yaml", "schema.json", "vocabulary", "model.safetensors", "metrics.jsonl", "metrics.json",
        "steps.jsonl", "evaluation", "environment.json",
    }  # fmt: skip
    metrics = read_json(run.path / "metrics.json")
    reader = SplitReader(small_data, "test", batch_size=50)
    found = quick_metrics(run.load_model(), reader, torch.device("cpu"))
    assert metrics["test"]["auc"] == pytest.approx(found["auc"], abs=1e-6)
    assert metrics["test"]["logloss"] == pytest.approx(found["logloss"], abs=1e-6)
    assert metrics["valid"]["auc"] > 0.6
    assert Run.open(run.path).config == small_config()
    environment = read_json(run.path / "environment.json")
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["peak_memory_bytes"] > 1e7


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_a_run_with_tables_in_16_bits_is_loaded_as_it_was_evaluated(small_data, tmp_path, storage):
    run = train(small_config(f"model.embedding_storage={storage}"), small_data, tmp_path / "run")
    assert weights(run)["embedding.banks.0.tables.weight"].dtype == getattr(torch, storage)
    assert weights(run)["head.weight"].dtype == torch.float32
    metrics = read_json(run.path / "metrics.json")
    found = quick_metrics(run.load_model(), SplitReader(small_data, "test", batch_size=50), torch.device("cpu"))
    assert metrics["test"]["auc"] == pytest.approx(found["auc"], abs=1e-6)
    assert metrics["valid"]["auc"] > 0.6


def test_best_weights_are_kept_and_lr_falls_on_a_plateau(small_data, tmp_path):
    run = train(small_config("training.epochs=30", "optimiser.lr=0.05"), small_data, tmp_path / "run")
    lines = read_json_lines(run.path / "metrics.jsonl")
    scores = [line["valid"]["auc"] - line["valid"]["logloss"] for line in lines]
    best = read_json(run.path / "metrics.json")
    assert lines[best["best_epoch"] - 1]["valid"]["auc"] == pytest.approx(best["valid"]["auc"], abs=1e-6)
    assert max(scores) == scores[best["best_epoch"] - 1]
    assert len(lines) < 30
    lr, record, failures = 0.05, -math.inf, 0
    for line, score in zip(lines, scores, strict=True):
        assert line["lr"] == pytest.approx(lr)
        assert line["best"] == (score > record + 1e-6)
        if line["best"]:
            record, failures = score, 0
        else:
            lr, failures = max(lr * 0.1, 1e-6), failures + 1
    assert failures == 2


def test_several_evaluations_an_epoch(small_data, tmp_path):
    run = train(small_config("training.epochs=1", "training.evaluations_per_epoch=3"), small_data, tmp_path / "run")
    assert [line["step"] for line in read_json_lines(run.path / "metrics.jsonl")] == [6, 12, 16]


def test_a_diverging_loss_names_the_batch_and_keeps_finite_weights(small_data, tmp_path):
    config = small_config("optimiser.lr=1e6", "training.clip_norm=null", "decorrelation=[]")
    with pytest.raises(NonFiniteLossError, match=r"step \d+, batch \d+ of 16 in epoch 1.*lower|Lower"):
        train(config, small_data, tmp_path / "run")


@pytest.mark.parametrize(("step", "said"), [(3, "No weights were kept"), (20, "best weights so far are kept")])
def test_a_diverging_loss_says_truly_which_weights_are_kept(small_data, tmp_path, monkeypatch, step, said):
    real = Engine.step

    def failing(self: Engine, batch: Batch, number: int, following: Batch | None = None) -> torch.Tensor:
        if number == step:
            raise NonFiniteLossError("the loss is nan")
        return real(self, batch, number, following)

    monkeypatch.setattr(Engine, "step", failing)
    with pytest.raises(NonFiniteLossError, match=said):
        train(small_config("decorrelation=[]"), small_data, tmp_path / "run")
    assert Run(tmp_path / "run").weights.is_file() == (step == 20)  # an epoch has 16 steps


@pytest.fixture
def losses_are_read_later(monkeypatch):
    """As on a device, where reading a value waits for it."""
    real = Engine.__init__

    def made(self: Engine, *arguments, **options) -> None:
        real(self, *arguments, **options)
        self.at_once = False

    monkeypatch.setattr(Engine, "__init__", made)
    return monkeypatch


def test_reading_losses_later_changes_no_bit_and_no_line(small_data, tmp_path, request):
    config = small_config("training.clip_norm=0.05", "training.evaluations_per_epoch=2")
    now = train(config, small_data, tmp_path / "now")
    request.getfixturevalue("losses_are_read_later").setattr("dmoe.training.loop._STEPS_UNREAD", 3)
    later = train(config, small_data, tmp_path / "later")
    with pytest.raises(Interrupted):
        train(config, small_data, tmp_path / "cut", watcher=StopAt(20))
    resumed = train(config, small_data, tmp_path / "cut", resume=True)
    for run in (later, resumed):
        assert_same_bits(now, run)
        assert read_json_lines(run.path / "steps.jsonl") == read_json_lines(now.path / "steps.jsonl")
        for one, other in zip(*(read_json_lines(each.path / "metrics.jsonl") for each in (now, run)), strict=True):
            timed = {"seconds", "rows_per_second"}
            assert {key: one[key] for key in one.keys() - timed} == {key: other[key] for key in other.keys() - timed}


def test_a_loss_that_diverged_is_named_by_its_batch_when_it_is_read(small_data, tmp_path, request):
    config = small_config("optimiser.lr=1e6", "training.clip_norm=null", "decorrelation=[]")
    with pytest.raises(NonFiniteLossError) as at_once:
        train(config, small_data, tmp_path / "now")
    request.getfixturevalue("losses_are_read_later")
    with pytest.raises(NonFiniteLossError) as later:
        train(config, small_data, tmp_path / "later")
    assert str(later.value).replace("later", "now") == str(at_once.value)


def test_batches_of_one_row_and_a_data_set_smaller_than_a_batch(tmp_path):
    data = write_data(tmp_path / "data", {"train": 40, "valid": 40})
    one = train(small_config("training.batch_size=1", "training.epochs=1", "decorrelation=[]"), data, tmp_path / "one")
    ragged = train(small_config("training.batch_size=39", "training.epochs=1"), data, tmp_path / "ragged")
    large = train(small_config("training.batch_size=1000", "training.epochs=1"), data, tmp_path / "large")
    for run in (one, ragged, large):
        assert all(torch.isfinite(value).all() for value in weights(run).values())
    assert "test" not in read_json(one.path / "metrics.json")


def test_one_class_in_a_split_is_refused_before_training(tmp_path):
    data = write_data(tmp_path / "data", {"train": 100, "valid": 20}, label=1)
    with pytest.raises(DataError, match="every row has click 1"):
        train(small_config(), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.experts=[{kind: ffm}, {kind: dnn}]",
            r"model.experts\[0\] \(ffm\): embedding_dim must be a multiple of 3",
        ),
        ("model.gate.fields=[sites]", r"model.gate.fields: no field .*'sites' in the data; did you mean 'site'"),
        ("decorrelation=[{location: intermediate}]", r"location 'intermediate' needs two experts"),
    ],
)
def test_a_model_that_cannot_be_built_leaves_no_folder_and_takes_none(small_data, tmp_path, override, message):
    run = train(small_config("training.epochs=1"), small_data, tmp_path / "run")
    before = (run.path / "model.safetensors").read_bytes()
    bad = small_config("model.experts=[{kind: fm}, {kind: crossnet}]", override)
    with pytest.raises(ConfigError, match=message):
        train(bad, small_data, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=message):
        train(bad, small_data, run.path, overwrite=True)
    assert (run.path / "model.safetensors").read_bytes() == before


def test_an_existing_run_is_not_touched(small_data, tmp_path):
    run = train(small_config("training.epochs=1"), small_data, tmp_path / "run")
    before = (run.path / "model.safetensors").read_bytes()
    with pytest.raises(DataError, match="exists already"):
        train(small_config(), small_data, run.path)
    with pytest.raises(DataError, match="complete"):
        train(small_config("training.epochs=1"), small_data, run.path, resume=True)
    with pytest.raises(ConfigError, match="differs"):
        train(small_config("training.epochs=9"), small_data, run.path, resume=True)
    assert (run.path / "model.safetensors").read_bytes() == before
    train(small_config("training.epochs=2"), small_data, run.path, overwrite=True)
    assert (run.path / "model.safetensors").read_bytes() != before


def test_another_data_set_is_refused(small_data, tmp_path):
    run = train(small_config("training.epochs=1"), small_data, tmp_path / "run")
    other = write_data(tmp_path / "other", {"train": 50, "valid": 20})
    schema = json.loads((other / "schema.json").read_text())
    schema["fields"][0]["vocabulary_size"] += 1
    (other / "schema.json").write_text(json.dumps(schema))
    with pytest.raises(DataError, match=r"schema\.json differs"):
        run.data_folder(other)


def test_a_run_is_not_resumed_on_other_rows_of_the_same_schema(tmp_path):
    config = small_config("training.epochs=1", "decorrelation=[]")
    sizes = {"train": 200, "valid": 100}
    data = write_data(tmp_path / "data", sizes)
    with pytest.raises(Interrupted):
        train(config, data, tmp_path / "run", watcher=StopAt(2))
    others = {
        "drawn anew": write_data(tmp_path / "drawn", sizes, seed=1),
        "other order": write_data(tmp_path / "order", sizes),
        "one label": write_data(tmp_path / "label", sizes),
        "other valid": write_data(tmp_path / "valid", {**sizes, "valid": 99}),
    }
    for name, change in {"order": reversed_rows, "label": one_label_flipped}.items():
        path = tmp_path / name / "train" / "part-00000.parquet"
        parquet.write_table(change(parquet.read_table(path)), path)
    for other in others.values():
        assert Schema.read(other) == Schema.read(data)
        with pytest.raises(DataError, match="holds other rows"):
            train(config, other, tmp_path / "run", resume=True)
    moved = data.rename(tmp_path / "moved")
    resumed = train(config, moved, tmp_path / "run", resume=True)
    assert_same_bits(train(config, moved, tmp_path / "whole"), resumed)


def reversed_rows(table: pa.Table) -> pa.Table:
    return table.take(pa.array(range(table.num_rows - 1, -1, -1)))


def one_label_flipped(table: pa.Table) -> pa.Table:
    click = table["click"].to_numpy().copy()
    click[7] = 1 - click[7]
    return table.set_column(table.column_names.index("click"), "click", pa.array(click))


def test_a_run_of_another_format_version_is_refused(small_data, tmp_path):
    run = train(small_config("training.epochs=1"), small_data, tmp_path / "run")
    schema = json.loads((run.path / "schema.json").read_text())
    schema["format_version"] = 99
    (run.path / "schema.json").write_text(json.dumps(schema))
    with pytest.raises(DataError, match=f"format version 99, but this dmoe reads version {FORMAT_VERSION}"):
        Run.open(run.path)


def test_a_damaged_weight_file_is_named(small_data, tmp_path: Path):
    run = train(small_config("training.epochs=1"), small_data, tmp_path / "run")
    (run.path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(DataError, match=r"model\.safetensors: damaged"):
        Run.open(run.path).load_model()
