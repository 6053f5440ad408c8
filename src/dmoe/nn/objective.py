"""The objective (eq. 12 of arXiv 2505.17925): logloss, balance of gates, de-correlation.

Shape suffixes as in `dmoe.nn.model`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from dmoe.decorrelation.checks import ProcessGroup, global_rows, resolve
from dmoe.decorrelation.domains import centred_in_domains
from dmoe.decorrelation.losses import PairLoss
from dmoe.nn.output import DMoEOutput, Group, Location
from dmoe.nn.task_losses import RowLabels, TaskLosses


class DecorrelationTerm(nn.Module):
    """`alpha/(B-1) · Σ_groups L` at one location (eq. 12).

    `alpha` acts from step `start_step` on, growing linearly to its full value over `warmup_steps`.

    Args:
        loss: of `dmoe.decorrelation`.
        pairs: for each level the pairs of experts to be told apart, None for all of them; by default all.
        domains: the number of domains within each of which outputs are centred first; by default none is told apart.
    """

    def __init__(
        self,
        loss: PairLoss,
        location: Location,
        alpha: float,
        *,
        start_step: int = 0,
        warmup_steps: int = 0,
        pairs: Sequence[frozenset[tuple[int, int]] | None] | None = None,
        domains: int | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.location, self.alpha = loss, location, alpha
        self.start_step, self.warmup_steps = start_step, warmup_steps
        self.pairs, self.domains = pairs, domains

    def alpha_at(self, step: int) -> float:
        """The weight at a step, counted from 0."""
        done = step + 1 - self.start_step
        if done <= 0:
            return 0.0
        return self.alpha * min(1.0, done / self.warmup_steps) if self.warmup_steps else self.alpha

    def forward(self, output: DMoEOutput, step: int, rows: int | None = None) -> Tensor:
        """`rows`: B, of all ranks; by default those of `output`.

        The loss is undefined for a batch of one row, which contributes 0.
        """
        rows = output.logit.shape[0] if rows is None else rows
        alpha = self.alpha_at(step)
        if rows < 2 or alpha == 0:
            return output.logit.new_zeros(())
        groups = [self._of_group(group, output.domain) for group in output.groups(self.location)]
        return torch.stack(groups).sum() * (alpha / (rows - 1))

    def _of_group(self, group: Group, domain_B: Tensor | None) -> Tensor:
        layers: Sequence[Tensor] = group.layers
        if self.domains is not None:
            if domain_B is None:
                raise ValueError("the domains of rows are not known to the model, so nothing is centred within them")
            layers = centred_in_domains(layers, domain_B, self.domains, self.loss.process_group)
        chosen = None if self.pairs is None else self.pairs[group.level]
        loss: Tensor = self.loss(layers, None if chosen is None else _places(chosen, group.experts))
        return loss


def _places(pairs: frozenset[tuple[int, int]], experts: Sequence[int]) -> list[tuple[int, int]]:
    """Where pairs of experts stand among those of a group."""
    numbered = combinations(range(len(experts)), 2)
    return [(p, q) for p, q in numbered if (experts[p], experts[q]) in pairs]


@dataclass(frozen=True, slots=True)
class Losses:
    """The parts of eq. 12 for one batch, scalars that nobody has to wait for; `total` is what to minimise."""

    total: Tensor
    logloss: Tensor  # mean over the rows; of several tasks, as they are balanced
    decorrelation: Tensor  # weighted
    gate: Tensor | None = None  # what a balanced gate adds
    tasks: Tensor | None = None  # (T,) of several: each one's mean logloss


class Objective(nn.Module):
    """Eq. 12: the mean logloss, what a balanced gate adds, and the de-correlation terms.

    With no term the total is the logloss itself, so alpha = 0 is the ME-MoE baseline to the bit.

    Args:
        terms: with losses of the same `process_group`.
        tasks: what adds up the losses of several tasks, of rows with weights, or of domains; by default the loss is the
            mean over the rows of the one label that there is. Its parameters are learned with the model's.
        process_group: as for `CorrLoss`: the batch is then that of all ranks, however unevenly they share it, and the
            mean over ranks of the gradients of `total` is the gradient of one process on the whole batch.
    """

    def __init__(
        self,
        terms: Sequence[DecorrelationTerm] = (),
        *,
        tasks: TaskLosses | None = None,
        process_group: ProcessGroup = None,
    ) -> None:
        super().__init__()
        self.terms, self.tasks, self.process_group = list(terms), tasks, process_group

    def forward(self, output: DMoEOutput, labels: RowLabels, step: int = 0) -> Losses:
        """`step` counted from 0."""
        group, rows = resolve(self.process_group), len(output.logit)
        if group is not None:
            rows = global_rows(rows, group, output.logit.device)
        of_tasks = None
        if self.tasks is not None:
            logits = [_single(task.logit) for task in output.tasks]
            logloss, of_tasks = self.tasks(logits, labels, group)
        else:
            logit_B = _single(output.logit)
            labels_B = labels.labels_BT[:, 0].to(logit_B.dtype)
            if group is None:
                logloss = functional.binary_cross_entropy_with_logits(logit_B, labels_B)
            else:
                summed = functional.binary_cross_entropy_with_logits(logit_B, labels_B, reduction="sum")
                logloss = summed * (dist.get_world_size(group) / rows)
        total = logloss if output.gate_loss is None else logloss + output.gate_loss
        if not self.terms:
            return Losses(total, logloss, logloss.new_zeros(()), output.gate_loss, of_tasks)
        decorrelation = torch.stack([term(output, step, rows) for term in self.terms]).sum()
        return Losses(total + decorrelation, logloss, decorrelation, output.gate_loss, of_tasks)


def _single(logit_B: Tensor) -> Tensor:
    """In float32 where autocast left 16 bits."""
    return logit_B.float() if logit_B.dtype in (torch.float16, torch.bfloat16) else logit_B
