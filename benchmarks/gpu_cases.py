"""What `benchmarks.gpu` trains: cases of docs/performance.md, and the mixture of the preset `production`."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import batches, production
from benchmarks.arithmetic import dense_work
from benchmarks.cases import Case, all_cases, choose
from benchmarks.workers import dmoe_worker, production_dmoe_worker
from benchmarks.workers.production_form import load_rows
from dmoe.shards.batch import Batch
from dmoe.training.engine import Engine

CASES = ("cin-crossnet-l2", "dcnv2-l2", "3xdcnv2-l2", "growth-vocabulary-20000000", "growth-experts-8")
PRODUCTION = "production"
Layers = tuple[tuple[int, int, int], ...]  # rows, inputs, outputs of each product


@dataclass(frozen=True)
class GpuCase:
    """`engine(optimiser, storage, device, **options)` and `peer(optimiser)` make what trains on `batches`."""

    name: str
    batch_size: int
    rows: int  # of all vocabularies, and ids of a batch's row, and numbers that all tables have of a row
    ids: int
    width: int
    batches: Callable[[int], list[Batch]]
    engine: Callable[..., Engine]
    peer: Callable[[str], tuple[nn.Module, Callable[[Batch], dict[str, Tensor]]]]
    layers: Callable[[], Layers]
    single: bool = False  # one expert and a linear head, which TorchRec can have as well


def gpu_cases(names: list[str]) -> list[GpuCase]:
    """Raises: ValueError naming the one that is not known."""
    wanted = names or [*CASES, PRODUCTION]
    of_tables = [name for name in wanted if name != PRODUCTION]
    found = [of_table(case) for case in choose(of_tables, all_cases())] if of_tables else []
    if PRODUCTION in wanted:
        found.append(of_production(production.Case(production.PRESET_FIELDS, len(production.KINDS))))
    return found


def of_table(case: Case) -> GpuCase:
    sizes = batches.vocabulary_sizes(case.vocabulary_rows, case.num_fields)

    def made(count: int) -> list[Batch]:
        ids_RF = batches.draw_ids(sizes, case.batch_size * count, seed=0)
        clicks_R = np.random.default_rng([0, len(sizes)]).random(len(ids_RF)) < batches.CLICK_RATE
        found = []
        for start in range(0, len(ids_RF), case.batch_size):
            rows = slice(start, start + case.batch_size)
            labels_BT = torch.from_numpy(clicks_R[rows, None].astype(np.float32))
            found.append(Batch(torch.from_numpy(ids_RF[rows].copy()), torch.empty(len(labels_BT), 0), labels_BT))
        return found

    def engine(optimiser: str, storage: str, device: torch.device, **options: Any) -> Engine:
        job = case.job(replace(case.contestants[0], optimiser=optimiser, storage=storage))
        model = dmoe_worker.make_model(job)
        _place(model, device, options)
        return dmoe_worker.make_engine(model, job, str(device), **options)

    def peer(optimiser: str) -> tuple[nn.Module, Callable[[Batch], dict[str, Tensor]]]:
        from benchmarks.workers import fuxictr_worker as worker

        job = case.job(replace(case.contestants[0], optimiser=optimiser))
        torch.manual_seed(job["seed"])
        model = worker.Single(job) if job["head"] == "linear" else worker.MixtureOfExperts(job)
        return model, lambda batch: worker._as_columns(batch.ids_BC.numpy(), batch.labels_B.numpy())

    return GpuCase(
        case.name,
        case.batch_size,
        sum(sizes),
        case.num_fields,
        case.table_width,
        made,
        engine,
        peer,
        lambda: dense_work(case).layers,
        single=case.head == "linear" and case.experts == ("dcnv2",),
    )


def of_production(case: production.Case) -> GpuCase:
    job = case.job()

    def made(count: int) -> list[Batch]:
        with tempfile.TemporaryDirectory(prefix="dmoe-benchmark-") as folder:
            path = Path(folder) / "batches.npz"
            production.write_rows(path, job, count)
            return [production_dmoe_worker.as_batch(rows) for rows in load_rows(job | {"batches": str(path)})]

    def engine(optimiser: str, storage: str, device: torch.device, **options: Any) -> Engine:
        model = production_dmoe_worker.make_model(job, storage)
        _place(model, device, options)
        return production_dmoe_worker.make_engine(job, model, device, optimiser, **options)

    def peer(optimiser: str) -> tuple[nn.Module, Callable[[Batch], dict[str, Tensor]]]:
        from benchmarks.workers import production_fuxictr_worker as worker
        from benchmarks.workers.production_form import Rows

        if optimiser == "sparse":
            raise ValueError("FuxiCTR's poolings of lists take no sparse gradients")
        torch.manual_seed(job["seed"])
        return worker.Production(job), lambda batch: worker.as_columns(
            Rows(batch.ids_BC.numpy(), batch.numeric_BN.numpy(), batch.labels_B.numpy()), job
        )

    rows = sum(job["vocabulary_sizes"]) + sum(one["rows"] for one in job["lists"])
    ids = len(job["vocabulary_sizes"]) + sum(one["length"] for one in job["lists"])
    return GpuCase(
        PRODUCTION,
        case.batch_size,
        rows,
        ids,
        job["widths"][0],
        made,
        engine,
        peer,
        lambda: _linear_layers(production_dmoe_worker.make_model(job), made(1)[0]),
    )


def _place(model: nn.Module, device: torch.device, options: dict[str, Any]) -> None:
    if options.get("host_tables"):
        for table in model.embedding.row_tables():  # type: ignore[operator, union-attr]
            table.keep_rows_on_host()
    model.to(device)


def _linear_layers(model: nn.Module, batch: Batch) -> Layers:
    """Of all linear layers, as a batch goes through them."""
    found: list[tuple[int, int, int]] = []

    def look(module: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        found.append((given[0].numel() // module.in_features, module.in_features, module.out_features))

    hooks = [one.register_forward_hook(look) for one in model.modules() if isinstance(one, nn.Linear)]
    with torch.no_grad():
        model.eval()(batch.ids_BC, batch.numeric_BN)
    for hook in hooks:
        hook.remove()
    return tuple(found)
