"""That no part of a step on a device asks for a value: each such question would wait for all work so far.

The step runs on the CPU in the form that other devices take, under a mode that refuses the operations that wait there.
Another one finds the operations that CUDA adds up in whatever order its threads come, which repeat no bits.
"""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dmoe.config.run import DecorrelationConfig, OptimiserConfig, load_config
from dmoe.nn.build import build_model, build_terms
from dmoe.nn.experts import EXPERTS
from dmoe.nn.objective import Objective
from dmoe.nn.tables.lookup import BatchRows
from dmoe.schema import CategoricalField, NumericField, Schema
from dmoe.shards.batch import Batch
from dmoe.training.engine import Engine

WAITING = ("_local_scalar_dense", "nonzero", "_unique", "unique", "bincount", "masked_select", "is_nonzero")
BY_INDEX = ("index", "index_put", "index_put_", "_index_put_impl_")


class RefusesToWait(TorchDispatchMode):
    """Raises where a device's stream would have to be waited for: a value is read, or a shape depends on one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        waits = name == "equal" or name.startswith(WAITING)
        if name in BY_INDEX:  # by a mask: as many rows as it has ones
            waits = any(one is not None and one.dtype == torch.bool for one in args[1])
        assert not waits, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


class FindsUnorderedSums(TorchDispatchMode):
    """Which operations of torch's list of those that do not repeat on CUDA (`use_deterministic_algorithms`) are met.

    Where each place is added to once there is no order; `index_put` with `accumulate` sorts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        if name in ("index_add", "scatter_add", "scatter_reduce", "index_reduce"):
            index = args[2].sort(dim=args[1] if name.startswith("scatter") else 0).values
            if bool((index.diff(dim=args[1] if name.startswith("scatter") else 0) == 0).any()):
                self.found.add(name)
        elif name in ("cumsum", "cumprod", "put", "histc", "kthvalue", "median") and args[0].is_floating_point():
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def test_the_other_mode_sees_sums_without_an_order() -> None:
    x = torch.zeros(3)
    for repeats, ask in (
        (True, lambda: x.index_add(0, torch.tensor([1, 1]), torch.ones(2))),
        (False, lambda: x.index_add(0, torch.tensor([1, 2]), torch.ones(2))),
        (True, lambda: x.scatter_add(0, torch.tensor([1, 1]), torch.ones(2))),
        (True, lambda: x.cumsum(0)),
        (False, lambda: torch.arange(3).cumsum(0)),
    ):
        with FindsUnorderedSums() as mode:
            ask()
        assert bool(mode.found) == repeats


def test_the_mode_sees_what_waits() -> None:
    x = torch.arange(3.0)
    for ask in (lambda: x.sum().item(), lambda: bool(x.any()), lambda: x[x > 1], lambda: torch.unique(x)):
        with pytest.raises(AssertionError, match="waits"), RefusesToWait():
            ask()


SCHEMA = Schema(
    label="click",
    fields=(
        *(CategoricalField(name=f"c{index}", vocabulary_size=6) for index in range(4)),
        NumericField(name="price"),
    ),
)
EVERY_EXPERT = [[f"model.experts=[{{kind: {kind}}}, {{kind: fm}}]"] for kind in sorted(EXPERTS)]
EVERY_LOSS = [
    [f"decorrelation=[{{loss: {loss}, location: {location}, alpha: 1}}]"]
    for loss in get_args(DecorrelationConfig.model_fields["loss"].annotation)
    for location in ("output", "input", "intermediate")
]
EVERY_GATE = [
    ["model.gate.kind=top-k", "model.gate.k=1", "model.gate.balance=switch", "model.gate.balance_weight=0.1"],
    ["model.gate.kind=noisy-top-k", "model.gate.k=1", "model.gate.balance=importance-load"],
    ["model.gate.kind=per-unit", "model.gate.dropout=0.2"],
]


@pytest.mark.parametrize("overrides", [*EVERY_EXPERT, *EVERY_LOSS, *EVERY_GATE], ids=lambda one: one[0][:60])
def test_a_step_waits_for_nothing(overrides: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("dmoe.nn.tables.table.compiled_loops_serve", lambda _: False)
    monkeypatch.setattr("dmoe.nn.tables.fields.compiled_loops_serve", lambda _: False)
    monkeypatch.setattr("dmoe.nn.experts.pairs.adds_in_no_order", lambda _: True)
    for module in ("pairs", "gwpfm"):
        monkeypatch.setattr(f"dmoe.nn.experts.{module}.compiled_loops_serve", lambda _: False)
    small = ["model.embedding_dim=20", "model.expert_units=6", "model.gate.units=3", "model.tower_units=[5]"]
    small += ["decorrelation=[{alpha: 1}]", "model.experts=[{kind: crossnet}, {kind: dnn, hidden_units: [5]}]"]
    config = load_config(None, [*small, *overrides])
    model = build_model(config.model, SCHEMA, seed=1)
    optimiser = OptimiserConfig(embedding="dense", embedding_l2=1e-4, network_l2=1e-4)
    objective = Objective(build_terms(config.decorrelation, model))
    engine = Engine(model, objective, optimiser, clip_norm=1.0, device=torch.device("cpu"))
    engine.at_once = False
    batch = Batch(torch.randint(0, 6, (9, 4)).int(), torch.randn(9, 1), torch.randint(0, 2, (9, 1)).float())
    engine.step(batch, 0)
    rows: list[BatchRows] = model.embedding.batch_rows(batch.ids_BC)
    for one in rows:
        assert len(one.rows_U)  # found before: on a device they are found there, without waiting
    monkeypatch.setattr(model.embedding, "batch_rows", lambda _: rows)
    monkeypatch.setattr(model.embedding, "check_ids", lambda _: None)
    with RefusesToWait():
        values: Tensor = engine.step(batch, 1)
    assert torch.isfinite(values).all()
    with FindsUnorderedSums() as sums:
        engine.step(batch, 2)
    assert not sums.found
