"""That no part of a step on a device asks for a value: each such question would wait for all work so far.

The step runs on a pretended card (`tests.pretended_card`), which refuses what waits there, whichever module asks:
nothing is listed by hand but the models to train. Another mode finds the operations that CUDA adds up in whatever order
its threads come, which repeat no bits.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dmoe.config.run import DecorrelationConfig, OptimiserConfig, RunConfig, load_config, presets
from dmoe.decorrelation.moments import spectral_norm, top_by_squaring
from dmoe.distributed.world import World
from dmoe.kernels.row_parallel import compiled_loops_serve
from dmoe.nn.build import build_model
from dmoe.nn.experts import EXPERTS
from dmoe.schema import CategoricalField, Domain, NumericField, Schema, Task
from dmoe.shards.batch import Batch
from dmoe.training.engine import Engine
from dmoe.training.objective import make_objective
from tests.distributed.test_lane import Streams, ToItself
from tests.pretended_card import CUDA, Card, OnCard, card


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


@pytest.fixture
def a_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Card]]:
    with card(monkeypatch) as found:
        yield found


def test_the_card_sees_what_waits(a_card: type[Card]) -> None:
    here, pinned = torch.arange(3.0), torch.arange(3.0).pin_memory()
    x = here.to(CUDA)
    for ask in (
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: x.to("cpu"),
        lambda: x[x > 1],
        lambda: x[[0, 2]],
        lambda: torch.unique(x),
        lambda: torch.linalg.eigh(torch.outer(x, x)),
        lambda: torch.tensor([1.0], device=CUDA),
        lambda: here.to(CUDA, non_blocking=True),
        lambda: here.copy_(x),
    ):
        with pytest.raises(AssertionError, match="waits"), a_card.asks_nothing():
            ask()
    with a_card.asks_nothing():
        pinned.to(CUDA, non_blocking=True)
        torch.where(x > 1, x, 0.0).sum().sqrt()
        x.index_select(0, torch.zeros(1, dtype=torch.int64, device=CUDA))


@pytest.mark.usefixtures("a_card")
def test_the_card_sees_what_is_elsewhere() -> None:
    here, x = torch.ones(3), torch.ones(3, device="cuda")
    assert isinstance(x, OnCard)
    assert (x.device, x.is_cuda, compiled_loops_serve(x)) == (CUDA, True, False)
    for ask in (lambda: x + here, lambda: here * x, lambda: torch.cat([x, here])):
        with pytest.raises(RuntimeError, match="on the card and on the host"):
            ask()
    with pytest.raises(TypeError, match="numpy of a tensor on the card"):
        x.numpy()
    assert isinstance(torch.nn.Linear(3, 2).to("cuda")(x), OnCard)
    assert (x + 1).cpu().tolist() == (2 * here).tolist()


FIELDS = (*(CategoricalField(name=f"c{index}", vocabulary_size=6) for index in range(4)), NumericField(name="price"))
SCHEMA = Schema(label="click", fields=FIELDS)
TASKS = Schema(
    label="click",
    labels=(Task(name="click"), Task(name="buy", given="click"), Task(name="like")),
    domain=Domain(field="c0", names=("a", "b", "other"), of_id=(2, 2, 0, 1, 2, 2)),
    weight="w",
    fields=FIELDS,
)
SMALL = ["model.embedding_dim=20", "model.expert_units=6", "model.gate.units=3", "model.tower_units=[5]"]
EVERY_EXPERT = [[f"model.experts=[{{kind: {kind}}}, {{kind: fm}}]"] for kind in sorted(EXPERTS)]
NORMS = {"corr": ("frobenius", "spectral"), "cov": ("l1", "l2")}
EVERY_LOSS = [
    [f"decorrelation=[{{loss: {loss}, location: {location}, alpha: 1, norm: {norm}}}]"]
    for loss in get_args(DecorrelationConfig.model_fields["loss"].annotation)
    for location, norm in product(("output", "input", "intermediate"), NORMS.get(loss, ("null",)))
    if location == "output" or norm in ("null", "frobenius", "l2")
]
EVERY_GATE = [
    ["model.gate.kind=top-k", "model.gate.k=1", "model.gate.balance=switch", "model.gate.balance_weight=0.1"],
    ["model.gate.kind=noisy-top-k", "model.gate.k=1", "model.gate.balance=importance-load"],
    ["model.gate.kind=per-unit", "model.gate.dropout=0.2"],
    ["model.gate.balance=importance"],
]
OTHER = [
    ["training.precision=bfloat16"],
    ["model.experts=[{kind: deepfm, hidden_units: [5], batch_norm: true, dropout: 0.2}, {kind: fm}]"],
    ["model={form: benchmark, experts: [{kind: deepfm, hidden_units: [5]}]}", "decorrelation=[]"],
    ["decorrelation=[{alpha: 1, start_step: 2}, {loss: cov, alpha: 1, warmup_steps: 5, scale: dimension-free}]"],
]
OF_TASKS = [
    ["model.heads=task-and-domain", "training.balance=uncertainty", "training.domain_weights=equal"],
    ["model.tasks={buy: {loss: entire-space}}", "decorrelation=[{alpha: 1, within: domain}]"],
    ["model.heads=task-and-domain", "model.domain_towers=star", "model.gates=one", "model.foreign=open"],
    ["model.embedding_scale={fields: [c0]}", "model.tower_scale={fields: [c0, c1]}"],
]
# Those of one label in domains apart.
PRESETS = [name for name in presets() if name not in ("paper", "production", "crocodile")]
DOMAINS = TASKS.model_copy(update={"labels": (Task(name="click"),)})


def config_of(preset: str | None, *overrides: str) -> RunConfig:
    if preset is not None:
        return load_config(preset, ["training.recipe=fixed", "model.embedding_dim=8", *overrides])
    terms = "decorrelation=[{alpha: 1}]"
    experts = "model.experts=[{kind: crossnet}, {kind: dnn, hidden_units: [5]}]"
    return load_config(None, [*SMALL, terms, experts, *overrides])


def batch_of(schema: Schema) -> Batch:
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 2, (9, len(schema.tasks)), generator=draw).float()
    several = len(schema.tasks) > 1
    return Batch(
        torch.randint(0, 6, (9, 4), generator=draw).int(),
        torch.randn(9, 1, generator=draw),
        labels,
        torch.rand(labels.shape, generator=draw) < 0.8 if several else None,
        torch.rand(9, generator=draw) if several else None,
    )


def engine_on_card(config: RunConfig, schema: Schema, world: World | None = None, group: Any = None) -> Engine:
    model = build_model(config.model, schema, seed=1, world=world).to(CUDA)
    return Engine(
        model,
        make_objective(config, model, schema, None, group),
        OptimiserConfig(embedding="dense", embedding_l2=1e-4, network_l2=1e-4),
        clip_norm=1.0,
        device=CUDA,
        autocast=torch.bfloat16 if config.training.precision == "bfloat16" else None,
        world=world,
    )


def rows_are_known(engine: Engine, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on: kernels find them on a device without waiting, which other tests show."""
    rows = engine.model.embedding.batch_rows(batch.ids_BC)
    for one in rows:
        assert len(one.rows_U)
    monkeypatch.setattr(engine.model.embedding, "batch_rows", lambda _: rows)


@pytest.mark.parametrize(
    ("preset", "schema", "overrides"),
    [
        *((None, SCHEMA, one) for one in (*EVERY_EXPERT, *EVERY_LOSS, *EVERY_GATE, *OTHER)),
        *((None, TASKS, one) for one in OF_TASKS),
        *((name, TASKS, []) for name in PRESETS),
        ("crocodile", DOMAINS, []),
    ],
    ids=lambda one: one if isinstance(one, str) else one[0][:60] if isinstance(one, list) and one else "",
)
def test_a_step_waits_for_nothing(
    a_card: type[Card], monkeypatch: pytest.MonkeyPatch, preset: str | None, schema: Schema, overrides: list[str]
) -> None:
    engine = engine_on_card(config_of(preset, *overrides), schema)
    batch = batch_of(schema).to(CUDA)
    engine.step(batch, 0)
    rows_are_known(engine, batch, monkeypatch)
    with a_card.asks_nothing():
        values: Tensor = engine.step(batch, 1)
    assert torch.isfinite(values).all()
    with FindsUnorderedSums() as sums:
        engine.step(batch, 2)
    assert not sums.found


@pytest.fixture(scope="module")
def alone() -> Iterator[Any]:
    """A group of torch.distributed of one process, which sends everything to itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "overrides",
    [
        *EVERY_LOSS[::3],
        *EVERY_GATE,
        OTHER[1],
        ["training.tables=host"],
    ],
    ids=lambda one: one[0][:60],
)
def test_a_step_of_several_processes_waits_for_nothing_but_the_others(
    a_card: type[Card], alone: Any, overrides: list[str]
) -> None:
    config = config_of(None, *overrides)
    world = ToItself(Streams())
    world.group = alone
    engine = engine_on_card(config, SCHEMA, world, alone)
    batch = batch_of(SCHEMA).pinned()
    engine.step(batch, 0, batch)
    with a_card.asks_nothing():
        values = engine.step(batch, 1, batch)
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squaring_finds_what_an_eigensolver_finds(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(draw.normal(size=(7, 7)))
    for singular in (
        [3, 2, 1, 1, 0, 0, 0],
        [1, 1, 1, 0.5, 0, 0, 0],
        [1, 0.9999, 0, 0, 0, 0, 0],
        [1e-12] * 7,
        [1e12, 1],
    ):
        matrix = torch.from_numpy((rotation[:, : len(singular)] * singular) @ draw.normal(size=(len(singular), 9)))
        matrix = matrix.to(dtype).requires_grad_()
        found = []
        for waits in (False, True):
            monkeypatch.setattr("dmoe.decorrelation.moments.eigensolver_waits", lambda _, waits=waits: waits)
            norm = spectral_norm(matrix)
            (gradient,) = torch.autograd.grad(norm, matrix)
            found.append((norm.detach(), gradient))
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        largest = torch.linalg.svdvals(matrix.detach().double())[0]
        torch.testing.assert_close(found[1][0].double(), largest, rtol=tolerance, atol=0)
        torch.testing.assert_close(found[1][0], found[0][0], rtol=tolerance, atol=0)
        torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-9)
    assert torch.equal(top_by_squaring(torch.zeros(3, 3)), torch.zeros(3))
    assert top_by_squaring(torch.full((2, 2), torch.nan)).isnan().all()
    assert top_by_squaring(torch.full((2, 2), torch.inf)).isnan().all()
