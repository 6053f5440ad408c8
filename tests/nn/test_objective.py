"""The objective of a batch that several processes share, against one process on the whole of it."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from dmoe.decorrelation import CorrLoss, CovLoss
from dmoe.nn.experts import CIN, CrossNet
from dmoe.nn.model import DMoE
from dmoe.nn.objective import DecorrelationTerm, Objective
from dmoe.nn.task_losses import RowLabels

SHARES = [7, 12, 1]


def made() -> DMoE:
    torch.manual_seed(1)
    model = DMoE(
        [6, 4], 1, 3, experts=[CIN(3, 3, units=[4]), CrossNet(3, 3)], expert_units=5, gate_units=4, tower_units=[6]
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double()


def objective(group: str | None) -> Objective:
    terms = [
        DecorrelationTerm(CorrLoss(process_group=group), "output", 3.0),
        DecorrelationTerm(CovLoss(process_group=group), "input", 0.5),
    ]
    return Objective(terms, process_group=group)


def rows_of(first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    count = sum(SHARES)
    ids = torch.stack([torch.randint(0, size, (count,), generator=generator) for size in (6, 4)], 1)
    numeric = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (count,), generator=generator).double()
    return ids[first:last], numeric[first:last], labels[first:last]


def _of_rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(SHARES))
    model = made()
    parallel = nn.parallel.DistributedDataParallel(model)
    first = sum(SHARES[:rank])
    ids, numeric, labels = rows_of(first, first + SHARES[rank])
    losses = objective("world")(parallel(ids, numeric), RowLabels(labels[:, None]))
    losses.total.backward()
    logloss = losses.logloss.detach().clone()
    dist.all_reduce(logloss)
    gradients = [parameter.grad for parameter in model.parameters()]
    torch.save((logloss / len(SHARES), losses.decorrelation.detach(), gradients), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_shares_of_any_size_have_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_of_rank, (str(tmp_path),), nprocs=len(SHARES))
    model = made()
    ids, numeric, labels = rows_of(0, sum(SHARES))
    losses = objective(None)(model(ids, numeric), RowLabels(labels[:, None]))
    losses.total.backward()
    assert losses.decorrelation > 0.01
    for rank in range(len(SHARES)):
        logloss, decorrelation, gradients = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(logloss, losses.logloss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(decorrelation, losses.decorrelation.detach(), rtol=1e-9, atol=0)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-8, atol=1e-10)


def test_the_parts_add_up() -> None:
    model = made()
    ids, numeric, labels = rows_of(0, 9)
    losses = objective(None)(model(ids, numeric), RowLabels(labels[:, None]))
    torch.testing.assert_close(losses.total, losses.logloss + losses.decorrelation)
    assert losses.gate is None
    plain = Objective()(model(ids, numeric), RowLabels(labels[:, None]))
    assert torch.equal(plain.total, plain.logloss)
    assert plain.decorrelation == 0
