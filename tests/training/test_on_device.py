"""What a run does on a device, as far as a machine without one can show: doubles stand in for devices and streams."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dmoe.config.run import OptimiserConfig, TrainingConfig, load_config
from dmoe.distributed.world import World
from dmoe.errors import ConfigError, DataError
from dmoe.machine.device import matrix_products
from dmoe.nn.build import build_model
from dmoe.nn.objective import Objective
from dmoe.schema import Schema
from dmoe.shards.batch import Batch
from dmoe.training import checkpoint, loop
from dmoe.training.deterministic import repeatable
from dmoe.training.device import training_device
from dmoe.training.engine import Engine
from dmoe.training.loop import train
from dmoe.training.step_values import StepLoss
from dmoe.training.together import check_together
from tests.small_runs import small_config
from tests.training.test_loop import assert_same_bits, weights

CPU = torch.device("cpu")


@pytest.fixture
def read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, where reading a value waits for it."""
    real = Engine.__init__

    def made(self: Engine, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        self.at_once = False

    monkeypatch.setattr(Engine, "__init__", made)


@pytest.mark.usefixtures("read_later")
def test_losses_are_read_every_few_steps_and_at_an_evaluation_alone(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = StepLoss.read.__func__  # type: ignore[attr-defined]

    def counted(cls: type[StepLoss], values: list[torch.Tensor]) -> list[StepLoss]:
        read.append(len(values))
        found: list[StepLoss] = real(cls, values)
        return found

    monkeypatch.setattr(StepLoss, "read", classmethod(counted))
    monkeypatch.setattr(loop, "_STEPS_UNREAD", 5)
    train(small_config("training.epochs=1"), small_data, tmp_path / "run")
    assert read == [5, 5, 5, 1]  # of 16 steps


def bad_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Engine.step

    def spoilt(self: Engine, batch: Batch, number: int, following: Batch | None = None) -> torch.Tensor:
        if number == step:
            batch.ids_BC[3, 1] = 55
        return real(self, batch, number, following)

    monkeypatch.setattr(Engine, "step", spoilt)


NAMED = (
    r"stopped at step 19, batch 3 of 16 in epoch 2: row 3 of the batch: categorical field 1 'device' has id 55, "
    r"but its vocabulary has ids 0 to 6; encode"
)


def test_an_id_out_of_range_is_named_by_batch_row_field_and_value(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_at(18, monkeypatch)
    with pytest.raises(DataError, match=NAMED):
        train(small_config(), small_data, tmp_path / "run")


@pytest.mark.usefixtures("read_later")
def test_an_id_out_of_range_on_a_device_is_named_alike_when_losses_are_read(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_at(18, monkeypatch)
    real = Engine._step

    def as_there(self: Engine, batch: Batch, step: int, following: Batch | None) -> torch.Tensor:
        """Of ids on a device the first bad one is found there, and 0 is read for it."""
        ids_BC, found = self.model.embedding.in_range(batch.ids_BC)
        batch.ids_BC.copy_(ids_BC)
        values = real(self, batch, step, following)
        return torch.cat([values[:-3], found.double()])

    monkeypatch.setattr(Engine, "_step", as_there)
    with pytest.raises(DataError, match=NAMED):
        train(small_config(), small_data, tmp_path / "run")


def test_tables_on_the_host_work_on_the_next_batch_between_backward_and_its_gradients(
    small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is asked for a whole backward pass then, and nothing waits for it yet."""
    model = build_model(small_config().model, Schema.read(small_data), seed=1)
    engine = Engine(model, Objective(), OptimiserConfig(), clip_norm=None, device=CPU, host_tables=True)
    said: list[str] = []
    (store,) = engine.embeddings
    real = {name: getattr(store, name) for name in ("read", "catch_up", "write")}

    def saying(name: str) -> Any:
        def work(rows: torch.Tensor, *more: Any) -> Any:
            said.append(f"{name} {rows.tolist()}")
            return real[name](rows, *more)

        return work

    def batch(*ids: int) -> Batch:
        ids_BC = torch.tensor([ids] * 2, dtype=torch.int32)
        return Batch(ids_BC, torch.ones(2, 1), torch.tensor([[0.0], [1.0]]))

    first, second = batch(3, 1, 1), batch(3, 2, 1)
    engine.step(first, 0)
    for name in real:
        monkeypatch.setattr(store, name, saying(name))
    monkeypatch.setattr(
        engine.model, "forward", lambda *a, _real=engine.model.forward: said.append("forward") or _real(*a)
    )
    real_gradient = engine._gradient
    monkeypatch.setattr(engine, "_gradient", lambda *a: said.append("gradient") or real_gradient(*a))
    real_backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: said.append("backward") or real_backward(self))
    engine.step(first, 1, second)
    ours, next_ones = "[3, 13, 20]", "[3, 14, 20]"
    shown = [line for line in said if line != f"catch_up {ours}"]  # which read and write do by themselves
    assert shown == [f"read {ours}", "forward", "backward", f"catch_up {next_ones}", "gradient", f"write {ours}"]


def test_deterministic_sets_torch_to_it_and_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.backends.cudnn.benchmark,
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        )

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = state()
    with repeatable(False):
        assert state() == before
    with repeatable(True):
        assert state() == (True, False, False, ":4096:8")
    assert state() == before
    with pytest.raises(KeyError), repeatable(True):
        raise KeyError
    assert state() == before
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with repeatable(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    said = "CUBLAS_WORKSPACE_CONFIG=:4096:8, and the environment has ':0:0'"
    with pytest.raises(ConfigError, match=said), repeatable(True):
        pass


def test_an_operation_without_a_form_that_repeats_is_named() -> None:
    values = torch.rand(4, 4, requires_grad=True)
    said = r"training.deterministic: put_ does not have a deterministic.*; set it to false"
    with pytest.raises(ConfigError, match=said), repeatable(True):
        torch.zeros(9).put_(torch.tensor([1, 1]), values.detach()[0, :2], accumulate=False)
    with pytest.raises(RuntimeError, match="size"), repeatable(True):
        values + torch.ones(3)


def test_a_deterministic_run_is_the_run_and_its_configuration_says_so(small_data: Path, tmp_path: Path) -> None:
    plain = train(small_config("training.epochs=1"), small_data, tmp_path / "plain")
    strict = train(small_config("training.epochs=1", "training.deterministic=true"), small_data, tmp_path / "strict")
    assert_same_bits(plain, strict)
    assert not torch.are_deterministic_algorithms_enabled()
    assert strict.config.training.deterministic


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_products_have_the_bits_that_are_asked_for(before: str) -> None:
    torch.set_float32_matmul_precision(before)
    try:
        for tf32, wanted in ((False, "highest"), (True, "high")):
            with matrix_products(tf32=tf32):
                assert torch.get_float32_matmul_precision() == wanted
            assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_step_computes_in_float32_whatever_the_process_was_set_to(small_data: Path) -> None:
    seen: list[str] = []

    class Looks(Objective):
        def forward(self, *given: Any, **more: Any) -> Any:
            seen.append(torch.get_float32_matmul_precision())
            return super().forward(*given, **more)

    batch = Batch(torch.zeros(4, 3, dtype=torch.int32), torch.zeros(4, 1), torch.tensor([[0.0], [1], [0], [1]]))
    torch.set_float32_matmul_precision("medium")
    try:
        for tf32 in (False, True):
            model = build_model(small_config().model, Schema.read(small_data), seed=1)
            Engine(model, Looks(), OptimiserConfig(), clip_norm=1.0, device=CPU, tf32=tf32).step(batch, 0)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "high"]


def test_tf32_needs_a_device() -> None:
    with pytest.raises(ConfigError, match="'precision' tf32 is of CUDA devices"):
        load_config(None, ["training.precision=tf32", "training.device=cpu"])
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="tf32 is of CUDA devices, and torch sees none"):
            training_device(TrainingConfig(precision="tf32"), World())


@pytest.fixture
def four_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("four_devices")
def test_each_process_of_a_machine_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TrainingConfig()
    assert training_device(recipe, World()) == torch.device("cuda")
    assert training_device(TrainingConfig(device="cuda:2"), World()) == torch.device("cuda", 2)
    assert training_device(recipe, World(3, 8)) == torch.device("cuda", 3)
    monkeypatch.setenv("LOCAL_RANK", "1")  # the second of the second machine
    assert training_device(recipe, World(5, 8)) == torch.device("cuda", 1)
    assert training_device(TrainingConfig(device="cpu"), World(5, 8)) == CPU
    with pytest.raises(ConfigError, match="names one device for several processes; say cuda"):
        training_device(TrainingConfig(device="cuda:2"), World(5, 8))
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ConfigError, match="torch sees 4 here"):
        training_device(recipe, World(4, 8))


def test_several_processes_need_nccl_on_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(ConfigError, match="need NCCL on CUDA devices"):
        check_together(torch.device("cuda", 0))
    check_together(CPU)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    check_together(torch.device("cuda", 0))


def test_the_random_stream_of_the_device_that_trains_is_saved_and_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = torch.arange(16, dtype=torch.uint8)
    put: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: stream)
    monkeypatch.setattr(torch.cuda, "set_rng_state", put.append)
    state = {"step": 1, "evaluations": 0, "finished": False}
    checkpoint.save_checkpoint(tmp_path, checkpoint.Checkpoint({"model.x": torch.ones(2)}, state))
    assert checkpoint.load_checkpoint(tmp_path) is not None
    assert torch.equal(put[0], stream)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert checkpoint.load_checkpoint(tmp_path) is not None  # on a machine without one
    assert len(put) == 1


@pytest.mark.parametrize("name", ["mps", "mps:0"])
def test_mps_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="device mps is not supported: it lacks float64") as error:
        load_config(None, [f"training.device={name}"])
    assert "\n" not in str(error.value)


def test_tables_of_few_rows_are_dense_where_that_is_asked_for(small_data: Path, tmp_path: Path) -> None:
    """All of 24 rows stand in one table; the model is the same, but for roundings."""
    kinds, found = [], []
    for number, rows in enumerate((0, 23, 24)):
        config = small_config("training.epochs=1", f"optimiser.dense_rows={rows}")
        model = build_model(config.model, Schema.read(small_data), seed=1)
        engine = Engine(model, Objective(), config.optimiser, clip_norm=1.0, device=CPU)
        kinds.append([store.kind for store in engine.embeddings])
        found.append(weights(train(config, small_data, tmp_path / str(number))))
    assert kinds == [["deferred"], ["deferred"], ["dense"]]
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
        torch.testing.assert_close(found[2][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_dense_rows_belong_to_deferred_tables_of_whole_numbers() -> None:
    with pytest.raises(ConfigError, match="'dense_rows' is for embedding: deferred, got lazy"):
        load_config(None, ["optimiser.dense_rows=5", "optimiser.embedding=lazy"])
    with pytest.raises(ConfigError, match=r"'optimiser.dense_rows' updates whole tables, rounding bfloat16"):
        load_config(None, ["optimiser.dense_rows=5", "model.embedding_storage=bfloat16"])
