"""Who takes part in `benchmarks.gpu`: dmoe in several forms, FuxiCTR and TorchRec. Each makes its step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.devices import Device
from benchmarks.gpu_cases import GpuCase
from benchmarks.workers import dmoe_worker
from dmoe.shards.batch import Batch
from dmoe.shards.prefetch import prefetch
from dmoe.training.device import moved_ahead, with_following

WARM_UP = 8
# Steps of a captured graph, which the host does not count: the history of a table has room for more.
MOST_REPLAYS = 900

Step = Callable[[], object]
Make = Callable[[GpuCase, list[Batch], Device], Step]


@dataclass
class Contestant:
    """One way to train a case: `make` gives what trains on the next batch. Figures are those of its rounds."""

    name: str
    make: Make
    milliseconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    failed: str | None = None


def ours(optimiser: str = "deferred", *, storage: str = "float32", compiled: bool = False, **options: Any) -> Make:
    """dmoe's `Engine`, `options` those of it; `compiled`: everything behind the tables by `torch.compile`."""

    def make(case: GpuCase, made: list[Batch], device: Device) -> Step:
        engine = case.engine(optimiser, storage, device.torch, **options)
        if compiled:
            compile_dense(engine.model, "inductor" if device.is_cuda else "aot_eager")
        pairs = with_following(_arriving(made, device, options.get("host_tables", False)))
        done = 0

        def step() -> None:
            nonlocal done
            batch, following = next(pairs)
            engine.step(batch, done, following)
            done += 1

        return step

    return make


def _arriving(made: list[Batch], device: Device, on_host: bool) -> Iterator[Batch]:
    source: Iterator[Batch] = cycle(made)
    if on_host or not device.is_cuda:
        return source
    return prefetch(moved_ahead(source, device.torch), depth=2, name="benchmark-moves")


def compile_dense(model: nn.Module, backend: str) -> None:
    """Has each part behind the tables compiled; shapes are those of the first batch."""
    for name, part in model.named_children():
        if name != "embedding":
            for one in part if isinstance(part, nn.ModuleList) else [part]:
                one.compile(backend=backend, dynamic=False)


def as_graph(case: GpuCase, made: list[Batch], device: Device) -> Step:
    """A whole step of dmoe, tables included, captured once and replayed: one launch a step."""
    if not device.is_cuda:
        raise RuntimeError("a CPU has no graphs to capture")
    engine = case.engine("deferred", "float32", device.torch)
    for group in engine.adam.param_groups:
        group["capturable"] = True
    batches = _arriving(made, device, on_host=False)
    static = next(batches).to(device.torch)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for number in range(3):
            engine.step(static, number)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        engine.step(static, 3)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if done > MOST_REPLAYS:
            raise RuntimeError(f"a captured step can be replayed {MOST_REPLAYS} times here; take fewer --steps")
        for here, there in zip(static.tensors(), next(batches).tensors(), strict=True):
            here.copy_(there)
        graph.replay()

    return step


def fuxictr(optimiser: str) -> Make:
    """FuxiCTR's layers and its own training step."""

    def make(case: GpuCase, made: list[Batch], device: Device) -> Step:
        from benchmarks.workers.fuxictr_worker import SparseTraining

        model, columns_of = case.peer(optimiser)
        model.device = device.torch  # type: ignore[assignment]
        model.to(device.torch)
        sparse = SparseTraining(model) if optimiser == "sparse" else None
        # Its loader hands over columns on the host; here they are on the device already, which favours it.
        columns = cycle([{name: one.to(device.torch) for name, one in columns_of(batch).items()} for batch in made])
        model.train()

        def step() -> None:
            batch = next(columns)
            if sparse is not None:
                sparse.step(batch)
            else:
                model.train_step(batch).item()  # type: ignore[operator]  # as its training loop reads it

        return step

    return make


def torchrec(case: GpuCase, made: list[Batch], device: Device) -> Step:
    """TorchRec's fused tables (FBGEMM: look-up, backward and Adam in one), with the same layers behind them.

    Its Adam moves the rows of a batch alone and knows no L2 of others, nor a bound on the norm of the whole gradient.
    """
    if not case.single:
        raise RuntimeError("has no such model: TorchRec takes part with dcnv2")
    from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim import RowWiseAdagrad
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    engine = case.engine("dense", "float32", torch.device("cpu"))
    (table,) = engine.tables
    sizes, width = table.vocabulary_sizes, table.widths[0]
    names = [f"f{number}" for number in range(len(sizes))]
    configs = [
        EmbeddingBagConfig(
            name=name, embedding_dim=width, num_embeddings=size, feature_names=[name], pooling=PoolingType.SUM
        )
        for name, size in zip(names, sizes, strict=True)
    ]
    # On a CPU FBGEMM has no Adam: there it is only tried that this runs.
    kind = torch.optim.Adam if device.is_cuda else RowWiseAdagrad
    tables = FusedEmbeddingBagCollection(
        tables=configs, optimizer_type=kind, optimizer_kwargs={"lr": 1e-3}, device=device.torch
    )
    model = engine.model
    assert isinstance(model, dmoe_worker.PeersModel)
    dense = nn.ModuleList([model.interaction, model.head]).to(device.torch)
    adam = torch.optim.Adam(dense.parameters(), lr=1e-3, fused=True)
    batches = cycle([(_jagged(KeyedJaggedTensor, names, one.to(device.torch)), one.to(device.torch)) for one in made])

    def step() -> None:
        jagged, batch = next(batches)
        embeddings_BFD = tables(jagged).values().view(len(batch), len(names), width)
        logit_B = model.head(model.interaction(embeddings_BFD)).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logit_B, batch.labels_B)
        loss.backward()
        nn.utils.clip_grad_norm_(dense.parameters(), dmoe_worker.CLIP_NORM)
        adam.step()
        adam.zero_grad()

    return step


def _jagged(kind: Any, names: list[str], batch: Batch) -> Any:
    """A batch as TorchRec takes it: one value of each field and row, field after field."""
    values: Tensor = batch.ids_BC.t().reshape(-1).long()
    return kind(keys=names, values=values, lengths=torch.ones_like(values))


def contestants(peers: bool) -> list[Contestant]:
    half = torch.bfloat16
    found = [
        Contestant("dmoe, deferred", ours()),
        Contestant("dmoe, deferred, TF32", ours(tf32=True)),
        Contestant("dmoe, deferred, bfloat16 autocast", ours(autocast=half)),
        Contestant("dmoe, deferred, bfloat16 tables and autocast", ours(autocast=half, storage="bfloat16")),
        Contestant("dmoe, deferred, dense part compiled", ours(compiled=True)),
        Contestant("dmoe, deferred, step as a CUDA graph", as_graph),
        Contestant("dmoe, dense", ours("dense")),
        Contestant("dmoe, deferred, tables in host memory", ours(host_tables=True)),
    ]
    if peers:
        found += [
            Contestant("FuxiCTR, Adam", fuxictr("adam")),
            Contestant("FuxiCTR, SparseAdam", fuxictr("sparse")),
            Contestant("TorchRec, FBGEMM's Adam of the rows read", torchrec),
        ]
    return found
