"""Steps with tables on a device equal those of the CPU: on CUDA, or with the kernels in Triton's interpreter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton runs on Linux only")

from dmoe.config.run import CowClipConfig, OptimiserConfig
from dmoe.disk.files import read_json_lines
from dmoe.errors import DataError, Interrupted
from dmoe.kernels.row_access import rows_of
from dmoe.nn.build import build_model, build_terms
from dmoe.nn.objective import Objective
from dmoe.nn.tables.bank import TokenField
from dmoe.nn.tables.fields import FieldEmbedding
from dmoe.nn.tables.lookup import TableRows
from dmoe.optim import DeferredAdam, make_embedding_optimiser
from dmoe.optim.deferred_device import DeferredAdamOnDevice
from dmoe.schema import CategoricalField, NumericField, Schema
from dmoe.shards.batch import Batch
from dmoe.training.device import moved_ahead
from dmoe.training.engine import Engine
from dmoe.training.loop import train
from dmoe.training.step_values import StepLoss
from tests.small_runs import small_config
from tests.training.test_loop import StopAt, assert_same_bits

needs_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = [12, 7, 5]
PLAIN = Schema(
    label="click",
    fields=(
        *(CategoricalField(name=f"c{place}", vocabulary_size=size) for place, size in enumerate(SIZES)),
        NumericField(name="price"),
    ),
)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`as_on_device()` from where on everything takes the form that a CUDA device has."""

    def begin() -> None:
        monkeypatch.setattr("dmoe.kernels.row_access.kernels_serve", lambda _: True)
        for module in ("tables.table", "tables.fields", "experts.pairs", "experts.gwpfm"):
            monkeypatch.setattr(f"dmoe.nn.{module}.compiled_loops_serve", lambda _: False)

    yield begin
    monkeypatch.undo()


def batches(count: int, rows: int = 9) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    return [
        Batch(
            torch.stack([(torch.rand(rows, generator=generator) ** 3 * size).int() for size in SIZES], 1),
            torch.randn(rows, 1, generator=generator),
            torch.randint(0, 2, (rows, 1), generator=generator).float(),
        )
        for _ in range(count)
    ]


def engine_of(optimiser: OptimiserConfig, *overrides: str, on_device: bool) -> Engine:
    config = small_config(*overrides)
    model = build_model(config.model, PLAIN, seed=1)
    torch.manual_seed(5)
    for table in model.embedding.row_tables():
        table.weight.data.normal_(std=0.3)
    device = DEVICE if on_device else torch.device("cpu")
    model.to(device)
    scales = [torch.linspace(0.2, 1, len(table.weight)) for table in model.embedding.row_tables()]
    objective = Objective(build_terms(config.decorrelation, model))
    l2_scales = scales if optimiser.embedding_l2 else None
    engine = Engine(model, objective, optimiser, clip_norm=0.5, device=device, l2_scales=l2_scales)
    engine.at_once = not on_device
    return engine


@pytest.mark.parametrize(
    ("settings", "storage"),
    [
        ({"embedding_l2": 1e-3}, "float32"),  # counts in the norm of the gradient
        ({}, "bfloat16"),
        ({"embedding_l2": 1e-4, "embedding_clip": CowClipConfig(r=0.05)}, "float32"),
        ({"embedding": "dense", "embedding_l2": 1e-3, "embedding_clip": CowClipConfig(r=0.05)}, "float32"),
        ({"embedding": "lazy"}, "float32"),
        ({"embedding": "rowwise-adagrad"}, "float32"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_steps_on_a_device_equal_those_on_the_cpu(kernels: Any, settings: dict[str, Any], storage: str) -> None:
    optimiser = OptimiserConfig(lr=0.01, network_l2=1e-4, **settings)
    given = batches(4)
    found = []
    for on_device in (False, True):
        if on_device:
            kernels()
        engine = engine_of(optimiser, f"model.embedding_storage={storage}", on_device=on_device)
        losses = StepLoss.read([engine.step(batch.to(engine.device), step) for step, batch in enumerate(given)])
        engine.flush()
        weights = {name: tensor.float().cpu() for name, tensor in engine.model.state_dict().items()}
        found.append((losses, weights, engine))
    (losses, weights, _), (losses_there, weights_there, engine) = found
    is_deferred = settings.get("embedding", "deferred") == "deferred"
    assert all(isinstance(store, DeferredAdamOnDevice) == is_deferred for store in engine.embeddings)
    for ours, theirs in zip(losses_there, losses, strict=True):
        assert ours.total == pytest.approx(theirs.total, rel=1e-5)
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)
    for name, tensor in weights.items():
        # Adam divides by the size of a gradient, so where that is close to nothing a rounding shows.
        torch.testing.assert_close(weights_there[name], tensor, rtol=1e-3, atol=3e-5, msg=name)


@pytest.mark.parametrize("shrunk", [False, True])
def test_fields_of_every_kind_are_looked_up_alike(kernels: Any, shrunk: bool) -> None:
    """Several banks: lists, a shared vocabulary, a width of its own, fields of one table alone, numeric ones."""
    fields = [
        6,
        TokenField(9, length=3, multi_valued=True),
        TokenField(5, width=2),
        TokenField(6, length=2, multi_valued=True, shares=0, pooling="target"),
        4,
    ]
    readers = [[0, 1], [0, 1], [1], [0, 1], [0], [1]]
    ids = torch.stack([torch.randint(0, size, (11,)) for size in (6, 9, 9, 9, 5, 6, 6, 4)], dim=1).int()
    numeric = torch.randn(11, 1)
    torch.manual_seed(2)
    embedding = FieldEmbedding(fields, 1, [3, 5], readers=readers)
    for parameter in embedding.parameters():
        parameter.data.normal_()
    if shrunk:
        embedding.shrink([np.arange(field if isinstance(field, int) else field.rows) for field in fields], 2.0)
    found = []
    for on_device in (False, True):
        if on_device:
            kernels()
            embedding = embedding.to(DEVICE)
            ids, numeric = ids.to(DEVICE), numeric.to(DEVICE)
        rows = []
        for batch, table in zip(embedding.batch_rows(ids), embedding.row_tables(), strict=True):
            rows.append(TableRows(batch, rows_of(table.weight.detach(), batch.rows_U).requires_grad_()))
            assert (batch.on_device is not None) == on_device
        outputs = embedding(ids, numeric, rows)
        sum((output.square() * (place + 1)).sum() for place, output in enumerate(outputs)).backward()
        dense = []
        for one, table in zip(rows, embedding.row_tables(), strict=True):
            whole_VS = torch.zeros(len(table.weight) + 1, table.weight.shape[1], device=ids.device)
            whole_VS[one.rows_U] = one.gradient_US  # of spare places to one more row at the end
            dense.append(whole_VS[:-1].cpu())
        others = [one.grad.cpu() for one in embedding.parameters() if one.grad is not None and one.numel()]
        found.append([*(output.detach().cpu() for output in outputs), *dense, *others])
        embedding.zero_grad(set_to_none=True)
    assert len(found[0]) > 6
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_ids_out_of_range_are_read_as_0_and_reported() -> None:
    embedding = FieldEmbedding([4, TokenField(3, length=2, multi_valued=True), TokenField(4, shares=0)], 0, [2])
    ids = torch.tensor([[3, 2, 2, 3], [0, 0, 3, 4], [-1, 9, 0, 0]])
    fine, position = embedding.in_range(ids)
    assert position.tolist() == [1, 2, 3]
    assert fine.tolist() == [[3, 2, 2, 3], [0, 0, 0, 0], [0, 0, 0, 0]]
    same, position = embedding.in_range(ids[:1])
    assert position.tolist() == [-1, -1, -1]
    assert torch.equal(same, ids[:1])
    assert embedding.in_range(ids[:0])[1].tolist() == [-1, -1, -1]
    embedding.name_columns(["site", "tags", "tags", "shop"])
    values = torch.tensor([0.5, 0.5, 0.0, 1.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    with pytest.raises(DataError, match=r"row 1 of the batch: categorical field 2 'tags' has id 3.* ids 0 to 2"):
        StepLoss.read([values])[0].check(embedding)
    with pytest.raises(DataError, match=r"row 1 of the batch: categorical field 2 'tags' has id 3.* ids 0 to 2"):
        embedding.check_ids(ids)  # the same, said at once


@needs_device  # on the CPU the step raises it at once
def test_a_device_reports_an_id_out_of_range_with_the_losses() -> None:
    engine = engine_of(OptimiserConfig(lr=0.01), on_device=True)
    (batch,) = batches(1)
    batch.ids_BC[4, 1] = 7
    values = engine.step(batch.to(DEVICE), 0)
    with pytest.raises(DataError, match="row 4 of the batch: categorical field 1 'c1' has id 7"):
        StepLoss.read([values])[0].check(engine.model.embedding)


@needs_device
@pytest.mark.parametrize("settings", [{"embedding_l2": 1e-3}, {"embedding": "lazy"}, {"embedding": "rowwise-adagrad"}])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_the_device_is_not_waited_for(settings: dict[str, Any], precision: torch.dtype | None) -> None:
    engine = engine_of(OptimiserConfig(lr=0.01, **settings), on_device=True)
    engine.autocast = precision
    given = [batch.to(DEVICE) for batch in batches(6)]
    for step, batch in enumerate(given[:2]):
        engine.step(batch, step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = [engine.step(batch, step) for step, batch in enumerate(given[2:], start=2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for loss in StepLoss.read(values):
        loss.check(engine.model.embedding)


@needs_device
def test_batches_moved_ahead_stay_as_they_are_while_the_device_is_behind() -> None:
    ids, numeric = torch.zeros(100_000, 3, dtype=torch.int32), torch.zeros(100_000, 1)
    made = (Batch(ids + number, numeric + number, numeric[:, :1] + number) for number in range(12))
    found = []
    for batch in moved_ahead(made, torch.device("cuda")):
        torch.cuda._sleep(20_000_000)
        found.append(torch.stack([batch.ids_BC.double().mean(), batch.labels_B.double().mean()]))
        del batch
    assert torch.stack(found).tolist() == [[number, number] for number in range(12)]


@needs_device
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_runs_on_a_device_repeat_resume_and_are_near_those_on_the_cpu(
    small_data: Path, tmp_path: Path, storage: str
) -> None:
    config = small_config("training.device=cuda", f"model.embedding_storage={storage}")
    whole = train(config, small_data, tmp_path / "whole")
    assert_same_bits(whole, train(config, small_data, tmp_path / "again"))
    with pytest.raises(Interrupted):
        train(config, small_data, tmp_path / "cut", watcher=StopAt(9))
    assert_same_bits(whole, train(config, small_data, tmp_path / "cut", resume=True))
    cpu = train(small_config("training.device=cpu", f"model.embedding_storage={storage}"), small_data, tmp_path / "cpu")
    last, last_there = (read_json_lines(run.path / "metrics.jsonl")[-1]["valid"] for run in (cpu, whole))
    assert last_there["auc"] == pytest.approx(last["auc"], abs=0.01)
    assert last_there["logloss"] == pytest.approx(last["logloss"], abs=0.01)


def table_steps(store: Any, numbers: range, norms: list[float] | None = None, clip_norm: float | None = None) -> None:
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        rows = torch.unique((torch.rand(3, generator=generator) ** 3 * len(store.weight)).long())
        gradient = torch.randn(len(rows), store.weight.shape[1], generator=generator, dtype=torch.float64)
        rows, gradient = rows.to(store.weight.device), gradient.to(store.weight.device, store.weight.dtype)
        store.read(rows)
        if norms is not None:
            norms.append(float(store.grad_norm_squared(rows, gradient, clip_norm)))
        store.write(rows, gradient, 0.5)


@pytest.mark.parametrize("clip_norm", [None, 1e-3, 1e6])
def test_the_norm_is_that_of_the_dense_gradient_where_it_counts(kernels: Any, clip_norm: float | None) -> None:
    weight = torch.randn(9, 3, dtype=torch.float64)
    settings = {"lr": 1e-2, "l2": 0.05, "l2_scale_V": torch.linspace(0.2, 1, 9)}
    cpu, ours = DeferredAdam(weight.clone(), **settings), None
    kernels()
    ours = make_embedding_optimiser("deferred", weight.to(DEVICE), **settings)
    norms: list[float] = []
    norms_there: list[float] = []
    table_steps(cpu, range(5), norms, clip_norm)
    table_steps(ours, range(5), norms_there, clip_norm)
    assert norms_there == pytest.approx(norms, rel=1e-9)
    cpu.flush()
    ours.flush()
    torch.testing.assert_close(ours.weight.cpu(), cpu.weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_a_state_continues_to_the_same_bits_and_on_the_cpu(kernels: Any, l2: float) -> None:
    weight = torch.randn(9, 3)
    kernels()
    whole = make_embedding_optimiser("deferred", weight.to(DEVICE, copy=True), lr=1e-2, l2=l2)
    cut = make_embedding_optimiser("deferred", weight.to(DEVICE, copy=True), lr=1e-2, l2=l2)
    table_steps(whole, range(9))
    table_steps(cut, range(5))
    state = {name: tensor.clone() for name, tensor in cut.state_dict(flush=False).items()}
    again = make_embedding_optimiser("deferred", cut.weight.clone(), lr=1e-2, l2=l2)
    elsewhere = DeferredAdam(cut.weight.cpu().clone(), lr=1e-2, l2=l2)
    for store in (again, elsewhere):
        store.load_state_dict({name: tensor.to(store.weight.device) for name, tensor in state.items()})
        table_steps(store, range(5, 9))
    back = make_embedding_optimiser("deferred", elsewhere.weight.to(DEVICE, copy=True), lr=1e-2, l2=l2)
    back.load_state_dict(elsewhere.state_dict(flush=False))
    for store in (whole, again, elsewhere, back):
        store.flush()
    assert torch.equal(again.weight, whole.weight)
    for store in (elsewhere, back):
        torch.testing.assert_close(store.weight.cpu(), whole.weight.cpu(), rtol=0, atol=2e-6)
