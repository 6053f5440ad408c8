"""Whole runs on a device: near those of the CPU, repeated, resumed, in 16 bits, with tables in host memory, exported.

Without a device the same bodies run on the CPU in the form that a device has: kernels in the interpreter, values read
later. What only a card can show (memory, that nothing is waited for) is skipped there, or stands in other files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton runs on Linux only")

from dmoe.disk.files import read_json, read_json_lines
from dmoe.errors import Interrupted
from dmoe.evaluation.evaluate import evaluate_run
from dmoe.export.write import export
from dmoe.optim import DeferredAdam, make_embedding_optimiser
from dmoe.prepare.prepare import prepare
from dmoe.training.engine import Engine
from dmoe.training.loop import train
from dmoe.weights.run import Run
from tests.prepare.logs import config as log_config
from tests.prepare.logs import random_rows, write_csv
from tests.small_runs import small_config, write_data
from tests.training.test_loop import StopAt, assert_same_bits, weights

HAS_DEVICE = torch.cuda.is_available()
DEVICE = "cuda" if HAS_DEVICE else "cpu"
# An interpreter is slow.
pytestmark = [] if HAS_DEVICE else [pytest.mark.slow]
needs_device = pytest.mark.skipif(not HAS_DEVICE, reason="torch finds no CUDA device")
BASE = ["training.epochs=1", "optimiser.embedding_l2=1e-4", "training.batch_size=32"]


@pytest.fixture(autouse=True)
def _as_on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if HAS_DEVICE:
        yield
        return
    begin_as_there(monkeypatch)
    yield


def begin_as_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmoe.kernels.row_access.kernels_serve", lambda _: True)
    for module in ("tables.table", "tables.fields", "experts.pairs", "experts.gwpfm"):
        monkeypatch.setattr(f"dmoe.nn.{module}.compiled_loops_serve", lambda _: False)
    real = Engine.__init__

    def made(self: Engine, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        self.at_once = False

    monkeypatch.setattr(Engine, "__init__", made)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "set", {"train": 160, "valid": 150, "test": 100})


def on_cpu(monkeypatch: pytest.MonkeyPatch, config: Any, data: Path, output: Path) -> Run:
    """The run of loops on the CPU."""
    monkeypatch.undo()
    found = train(config, data, output)
    if not HAS_DEVICE:
        begin_as_there(monkeypatch)
    return found


@pytest.mark.parametrize("overrides", [[], ["model.embedding_storage=bfloat16"]], ids=["float32", "bfloat16 tables"])
def test_a_run_repeats_resumes_and_is_near_that_of_the_cpu(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    config = small_config(f"training.device={DEVICE}", *BASE, *overrides)
    whole = train(config, data, tmp_path / "whole")
    assert_same_bits(whole, train(config, data, tmp_path / "again"))
    with pytest.raises(Interrupted):
        train(config, data, tmp_path / "cut", watcher=StopAt(3))
    assert_same_bits(whole, train(config, data, tmp_path / "cut", resume=True))
    cpu = on_cpu(monkeypatch, small_config("training.device=cpu", *BASE, *overrides), data, tmp_path / "cpu")
    for name, value in weights(cpu).items():
        tolerance = 3e-2 if overrides else 1e-3
        torch.testing.assert_close(weights(whole)[name], value, rtol=tolerance, atol=tolerance, msg=name)
    there, here = (read_json_lines(run.path / "metrics.jsonl")[-1] for run in (whole, cpu))
    assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-2 if overrides else 1e-4)


def test_a_run_begun_on_the_cpu_goes_on_on_a_device(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`device: auto` is what the machine has: the state is the same either way."""
    config = small_config(*BASE)
    whole = on_cpu(monkeypatch, small_config(*BASE, "training.device=cpu"), data, tmp_path / "whole")
    monkeypatch.undo()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(Interrupted):
        train(config, data, tmp_path / "cut", watcher=StopAt(3))
    monkeypatch.undo()
    if not HAS_DEVICE:
        begin_as_there(monkeypatch)
    moved = train(config, data, tmp_path / "cut", resume=True)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(moved)[name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_tables_in_host_memory_train_the_same_model(data: Path, tmp_path: Path) -> None:
    device = train(small_config(f"training.device={DEVICE}", *BASE), data, tmp_path / "device")
    config = small_config(f"training.device={DEVICE}", "training.tables=host", *BASE)
    if not HAS_DEVICE:  # rows on the host are those of loops
        pytest.skip("two CPU devices: tests/training/test_host_tables.py")
    host = train(config, data, tmp_path / "host")
    assert_same_bits(host, train(config, data, tmp_path / "again"))
    for name, value in weights(device).items():
        torch.testing.assert_close(weights(host)[name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_a_run_is_exported_and_evaluated_as_on_the_cpu(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", random_rows(250, 1))
    prepare(log_config(), [str(log)], tmp_path / "data")
    run = train(small_config(f"training.device={DEVICE}", *BASE), tmp_path / "data", tmp_path / "run")
    export(run, tmp_path / "model")  # which proves parity with the run by itself
    assert (tmp_path / "model" / "model.onnx").is_file()
    there = evaluate_run(run, splits=["test"], device=DEVICE)["test"]
    here = evaluate_run(run, splits=["test"], device="cpu")["test"]
    assert there["auc"] == pytest.approx(here["auc"], abs=1e-6)
    assert there["logloss"] == pytest.approx(here["logloss"], rel=1e-6)
    assert read_json(run.path / "metrics.json")["test"]["auc"] == pytest.approx(here["auc"], abs=1e-6)


@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_deferred_equals_dense_there(l2: float) -> None:
    """In float64, over 100 steps that leave most rows out."""
    weight = torch.randn(30, 3, dtype=torch.float64).to(DEVICE)
    scale_V = torch.linspace(0.2, 1, 30)
    deferred, dense = (
        make_embedding_optimiser(kind, weight.clone(), lr=1e-2, l2=l2, l2_scale_V=scale_V)
        for kind in ("deferred", "dense")
    )
    assert not isinstance(deferred, DeferredAdam)  # but what devices have
    generator = np.random.default_rng(0)
    for number in range(100):
        rows = torch.from_numpy(np.unique((generator.random(3) ** 3 * 30).astype(np.int64))).to(DEVICE)
        gradient = torch.from_numpy(generator.normal(size=(len(rows), 3))).to(DEVICE)
        scale = torch.tensor(0.3 if number % 7 == 0 else 1.0, dtype=torch.float64, device=DEVICE)
        torch.testing.assert_close(deferred.read(rows), dense.read(rows), rtol=0, atol=1e-9)
        for store in (deferred, dense):
            store.write(rows, gradient, scale)
    deferred.flush()
    torch.testing.assert_close(deferred.weight, dense.weight, rtol=0, atol=1e-9)


@needs_device
@pytest.mark.parametrize("overrides", [["training.precision=tf32"], ["training.precision=bfloat16"]])
def test_products_of_fewer_bits_train_and_repeat(data: Path, tmp_path: Path, overrides: list[str]) -> None:
    config = small_config("training.device=cuda", *BASE, *overrides)
    one = train(config, data, tmp_path / "one")
    assert_same_bits(one, train(config, data, tmp_path / "two"))


@needs_device
def test_a_strict_run_has_the_bits_of_strict_runs(data: Path, tmp_path: Path) -> None:
    config = small_config("training.device=cuda", "training.deterministic=true", *BASE)
    one = train(config, data, tmp_path / "one")
    assert_same_bits(one, train(config, data, tmp_path / "two"))


@needs_device
def test_a_run_takes_memory_for_its_tables_and_three_batches(data: Path, tmp_path: Path) -> None:
    """Weights, both moments, a counter a row; the rest does not grow with the tables."""
    train(small_config("training.device=cuda", *BASE), data, tmp_path / "first")  # what libraries keep
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train(small_config("training.device=cuda", *BASE), data, tmp_path / "second")
    assert torch.cuda.max_memory_allocated() - before < 64e6
