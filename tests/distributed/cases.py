"""What processes of one group train together, and what one process makes of the same: a program of four ranks.

`python -m tests.distributed.cases FOLDER` under RANK and WORLD_SIZE writes FOLDER/results.json: for each case and
number of processes how far its weights are from those of one process, and whether replicas are equal to the bit.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dmoe.config.run import OptimiserConfig
from dmoe.decorrelation import BarlowTwinsLoss, CorrLoss, CovLoss, VICRegLoss
from dmoe.distributed.launch import ends_at_once
from dmoe.distributed.world import World, world_from_environment
from dmoe.nn.experts import expert_class
from dmoe.nn.model import DMoE
from dmoe.nn.objective import DecorrelationTerm, Objective
from dmoe.nn.tables.bank import TokenField
from dmoe.shards.batch import Batch
from dmoe.training.device import with_following
from dmoe.training.engine import Engine
from dmoe.training.step_values import StepLoss
from dmoe.weights.run import table_layouts
from dmoe.weights.stream import rows_in_order

STEPS = 50
ROWS = 37
SIZES = (2, 3, 4)
PLAIN: list[int | TokenField] = [130, 41, 7]
BANKS: list[int | TokenField] = [
    130,
    TokenField(41, width=3),
    TokenField(66, length=4, multi_valued=True, pooling="mean"),
    TokenField(130, length=3, multi_valued=True, shares=0, pooling="target"),
    TokenField(9, width=5, frozen=True),
    3,
]


@dataclass(frozen=True)
class Case:
    optimiser: dict[str, Any] = field(default_factory=dict)
    fields: list[int | TokenField] = field(default_factory=lambda: PLAIN)
    terms: Callable[[Any], list[DecorrelationTerm]] = lambda _: []
    model: dict[str, Any] = field(default_factory=dict)
    expert: dict[str, Any] = field(default_factory=dict)
    clip_norm: float | None = 0.2
    scales: bool = False
    sizes: tuple[int, ...] = (3,)
    shrinkage: float = 0.0
    host_tables: bool = False
    on_device: bool = False  # in the form that a step has on devices: the next batch is known, no value is read


def _corr(group: Any) -> list[DecorrelationTerm]:
    return [DecorrelationTerm(CorrLoss(process_group=group), "output", 3.0)]


def _spectral(group: Any) -> list[DecorrelationTerm]:
    return [DecorrelationTerm(CorrLoss("spectral", process_group=group), "output", 1.0)]


def _cov(group: Any) -> list[DecorrelationTerm]:
    return [DecorrelationTerm(CovLoss("l1", process_group=group), "pre-activation", 1.0, warmup_steps=9)]


def _others(group: Any) -> list[DecorrelationTerm]:
    return [
        DecorrelationTerm(BarlowTwinsLoss(process_group=group), "output", 2.0, start_step=5),
        DecorrelationTerm(VICRegLoss(process_group=group), "input", 0.1),
    ]


CASES = {
    "device": Case({"embedding_l2": 1e-3}, terms=_corr, sizes=(2, 3), on_device=True),
    "device, row clip": Case({"embedding_l2": 1e-4, "embedding_clip": {"r": 0.1, "zeta": 1e-4}}, on_device=True),
    "device, banks": Case(
        {"embedding": "dense", "embedding_l2": 1e-3},
        fields=BANKS,
        model={"expert_fields": [[0, 1, 2, 6], None]},
        on_device=True,
    ),
    # Rows are read, asked for and updated on the host, the next batch's ahead; the rest is where a device would be.
    "host tables": Case({"embedding_l2": 1e-3}, terms=_corr, sizes=(2, 3), on_device=True, host_tables=True),
    "host tables, row clip, banks": Case(
        {"embedding_l2": 1e-4, "embedding_clip": {"r": 0.1, "zeta": 1e-4}},
        fields=BANKS,
        model={"expert_fields": [[0, 1, 2, 6], None]},
        host_tables=True,
    ),
    "shrinkage": Case({"embedding_l2": 1e-3}, sizes=(2, 4), shrinkage=4.0),
    "shrinkage, banks": Case(
        {"embedding_l2": 1e-3},
        fields=BANKS,
        model={"expert_fields": [[0, 1, 2, 6], None]},
        shrinkage=4.0,
        on_device=True,
        host_tables=True,
    ),
    "dense": Case({"embedding": "dense", "embedding_l2": 1e-3}, terms=_corr),
    "deferred": Case({"embedding": "deferred", "embedding_l2": 1e-3}, terms=_corr, sizes=(2, 3, 4)),
    "deferred by rarity": Case({"embedding": "deferred", "embedding_l2": 1e-3}, scales=True),
    "deferred without L2": Case({"embedding": "deferred"}),
    "lazy": Case({"embedding": "lazy", "network_l2": 1e-3}, terms=_corr),
    "rowwise-adagrad": Case({"embedding": "rowwise-adagrad", "lr": 0.05}),
    "row clip": Case({"embedding": "deferred", "embedding_l2": 1e-4, "embedding_clip": {"r": 0.1, "zeta": 1e-4}}),
    "banks": Case({"embedding_l2": 1e-3}, fields=BANKS, terms=_corr, model={"expert_fields": [[0, 1, 2, 6], None]}),
    "spectral": Case({"embedding_l2": 1e-4}, terms=_spectral),
    "cov": Case({"embedding_l2": 1e-4}, terms=_cov),
    "other losses": Case({"embedding_l2": 1e-4}, terms=_others),
    # All rows are held by the first of four.
    "few rows": Case({"embedding_l2": 1e-3}, fields=[2, 3], sizes=(4,)),
    "importance": Case(model={"gate_options": {"balance": "importance", "balance_weight": 1.0}}),
    "switch": Case(model={"gate_options": {"kind": "top-k", "k": 1, "balance": "switch", "balance_weight": 1.0}}),
    "batch norm": Case(expert={"batch_norm": True}, clip_norm=None),
    "half": Case({"embedding_l2": 1e-3}, model={"embedding_storage": torch.bfloat16}, terms=_corr),
}


def batch_of(case: Case, step: int) -> Batch:
    """The batch of all; the last ones have a row or two."""
    generator = np.random.default_rng([17, step])
    rows = {STEPS - 1: 1, STEPS - 2: 2, STEPS - 3: 11}.get(step, ROWS)
    columns = [
        # A law as of words: frequent ids are small ones.
        np.minimum(generator.zipf(1.5, rows) - 1, (one if isinstance(one, int) else one.rows) - 1)
        for one in case.fields
        for _ in range(1 if isinstance(one, int) else one.length)
    ]
    return Batch(
        torch.from_numpy(np.stack(columns, axis=1).astype(np.int32)),
        torch.from_numpy(generator.normal(size=(rows, 2)).astype(np.float32)),
        torch.from_numpy((generator.random((rows, 1)) < 0.4).astype(np.float32)),
    )


def share_of(batch: Batch, step: int, world: World) -> Batch:
    """Rows fall to ranks at random; at some steps one rank has none."""
    if not world.several:
        return batch
    owners = np.random.default_rng([3, step]).integers(0, world.size, len(batch))
    if step % 7 == 3:
        owners = np.minimum(owners, world.size - 2)
    mine = torch.from_numpy(np.flatnonzero(owners == world.rank))
    return Batch(batch.ids_BC[mine], batch.numeric_BN[mine], batch.labels_BT[mine])


def train(case: Case, world: World) -> dict[str, torch.Tensor]:
    """The weights of all after some steps, whole, at the first process; elsewhere those that are replicated."""
    torch.manual_seed(5)
    read = case.model.get("expert_fields") or [None, None]
    fields = len(case.fields) + 2
    experts = [
        expert_class("crossnet")(fields if read[0] is None else len(read[0]), 4, layers=1),
        expert_class("dnn")(fields if read[1] is None else len(read[1]), 4, hidden_units=[8]),
    ]
    if case.expert:
        experts[1] = expert_class("deepfm")(fields, 4, hidden_units=[8], **case.expert)
    model = DMoE(
        case.fields, 2, 4, experts=experts, expert_units=6, gate_units=5, tower_units=(8,), world=world, **case.model
    )
    model.embedding.spread_fields(0.1)
    for number, one in enumerate(case.fields):
        if isinstance(one, TokenField) and one.frozen and one.width is not None:
            vectors = np.random.default_rng(1).normal(size=(one.rows, one.width))
            model.embedding.set_vectors(number, torch.from_numpy(vectors))
    if case.shrinkage:
        generator = np.random.default_rng(2)
        sizes = [one if isinstance(one, int) else one.rows for one in case.fields]
        model.embedding.shrink([generator.integers(0, 9, size) for size in sizes], case.shrinkage)
    scales = None
    if case.scales:
        scales = [torch.linspace(0.5, 1.5, table.num_rows) for table in model.embedding.row_tables()]
    engine = Engine(
        model,
        Objective(case.terms(world.group), process_group=world.group),
        OptimiserConfig(**{"lr": 0.01, **case.optimiser}),
        clip_norm=case.clip_norm,
        device=torch.device("cpu"),
        l2_scales=scales,
        host_tables=case.host_tables,
        world=world,
    )
    engine.at_once = not case.on_device
    batches = (share_of(batch_of(case, step), step, world) for step in range(STEPS))
    values = [engine.step(batch, step, following) for step, (batch, following) in enumerate(with_following(batches))]
    assert all(loss.total > 0 for loss in StepLoss.read(values))
    engine.flush()
    layouts = table_layouts(model)
    return {
        name: torch.cat(list(rows_in_order(value, layouts[name], world))) if name in layouts else value.detach()
        for name, value in model.embedding.folded(model.state_dict(), "embedding.").items()
    }


def main(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    world = world_from_environment(240.0)
    groups = {size: dist.new_group(list(range(size))) for size in SIZES}
    results: dict[str, Any] = {}
    only = sys.argv[2:]
    for name, case in CASES.items():
        if only and name not in only:
            continue
        alone = train(case, World()) if world.is_first else {}
        for size, group in groups.items():
            if world.rank >= size or size not in case.sizes:
                continue
            part = World(world.rank, size, group, world.store)
            found = train(case, part)
            sums = {key: hash(value.numpy().tobytes()) for key, value in found.items() if "tables.weight" not in key}
            replicas = part.gather([str(sums[key]) for key in sorted(sums)])
            if world.is_first:
                apart = {
                    key: float((value.double() - alone[key].double()).abs().max())
                    for key, value in found.items()
                    if value.numel()
                }
                moved = max(float(value.double().abs().max()) for key, value in alone.items() if "tables.weight" in key)
                results[f"{name}, {size}"] = {
                    "apart": max(apart.values()),
                    "where": max(apart, key=lambda key: apart[key]),
                    "replicas": all(one == replicas[0] for one in replicas),
                    "moved": moved,
                }
        world.barrier()
    if world.is_first:
        (folder / "results.json").write_text(json.dumps(results, indent=1))
    world.end()


if __name__ == "__main__":
    ends_at_once(lambda: main(Path(sys.argv[1])))
