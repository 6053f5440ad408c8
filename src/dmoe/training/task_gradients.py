"""Whether tasks pull what they share the same way: the cosine of their gradients, for negative transfer to be seen.

Shape suffixes: T tasks.
"""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmoe.nn.model import DMoE
from dmoe.nn.task_losses import RowLabels, TaskLoss, TaskLosses
from dmoe.schema import Schema
from dmoe.shards.batch import Batch
from dmoe.shards.reader import read_once

_BATCHES = 8
_MOST_ROWS = 8192


def task_gradients(model: DMoE, data: Path, schema: Schema, batch_size: int, device: torch.device) -> dict[str, Any]:
    """For each pair of tasks the cosine of the gradients of their own losses at the experts and the rows of tables that
    a batch reads: its mean over batches of train, and the share of batches in which it is below 0.

    The batches lie evenly in train; one in which a task has no gradient says nothing of its pairs.
    """
    names = [task.name for task in schema.tasks]
    losses = TaskLosses([TaskLoss() for _ in names])
    reader = read_once(data, "train", batch_size=min(batch_size, _MOST_ROWS))
    found: dict[tuple[int, int], list[float]] = {pair: [] for pair in combinations(range(len(names)), 2)}
    was_training, count = model.training, min(_BATCHES, reader.num_batches)
    model.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)  # of dropout
            for number in range(count):
                batches = reader.batches(start_batch=number * reader.num_batches // count)
                gradients = _gradients(model, losses, next(batches).to(device))
                for (first, second), cosines in found.items():
                    cosine = _cosine(gradients[first], gradients[second])
                    if cosine is not None:
                        cosines.append(cosine)
    finally:
        model.train(was_training)
    return {
        "batches": count,
        "pairs": [
            {
                "first": names[first],
                "second": names[second],
                "cosine": float(np.mean(cosines)) if cosines else None,
                "below_0": float(np.mean(np.array(cosines) < 0)) if cosines else None,
            }
            for (first, second), cosines in found.items()
        ],
    }


def _gradients(model: DMoE, losses: TaskLosses, batch: Batch) -> list[list[Tensor | None]]:
    """Of each task's loss at what tasks may share."""
    rows = model.embedding.as_they_are(batch.ids_BC)
    for one in rows:
        one.values_US.requires_grad_()
    output = model(batch.ids_BC, batch.numeric_BN, rows)
    labels = RowLabels(batch.labels_BT, batch.known_BT, batch.weights_B, output.domain)
    losses_T, _ = losses.means([task.logit for task in output.tasks], labels)
    shared = [*(one.values_US for one in rows), *model.experts.parameters()]
    return [
        list(torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)) if loss.requires_grad else []
        for loss in losses_T
    ]


def _cosine(first: list[Tensor | None], second: list[Tensor | None]) -> float | None:
    norms = [sum(float(one.double().square().sum()) for one in own if one is not None) for own in (first, second)]
    if not all(norms):
        return None
    inner = sum(
        float((one.double() * other.double()).sum())
        for one, other in zip(first, second, strict=True)
        if one is not None and other is not None
    )
    return inner / float(np.sqrt(norms[0] * norms[1]))
