"""Losses of several tasks: on the rows whose label is known, on the entire space, and what balances them.

Shape suffixes: B rows, T tasks, S domains, K links of a chain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from dmoe.decorrelation.domains import membership

Balance = Literal["fixed", "uncertainty"]
DomainWeights = Literal["rows", "equal"]


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """What one task adds to the loss: `weight` times its mean logloss.

    `chain`: of a loss on the entire space (ESMM), the numbers of the tasks whose probabilities multiply to that of the
    joint label, itself last; by default the task's own label alone, on the rows where that is known.
    """

    weight: float = 1.0
    chain: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RowLabels:
    """What B rows say of T tasks: labels of 0 and 1; which are known and what rows weigh, None for all and for 1; and
    their domains, where losses are told apart by them."""

    labels_BT: Tensor
    known_BT: Tensor | None = None
    weights_B: Tensor | None = None
    domains_B: Tensor | None = None


def joint_labels(labels_BK: Tensor, known_BK: Tensor) -> tuple[Tensor, Tensor]:
    """`(labels_B, known_B)` of a chain: 0 where a known link is 0, 1 where all are 1, else unknown."""
    positive_BK = known_BK & (labels_BK > 0.5)
    none_B = (known_BK & ~positive_BK).any(dim=1)
    all_B = positive_BK.all(dim=1)
    return all_B.to(labels_BK.dtype), none_B | all_B


def joint_log_probability(logits: Sequence[Tensor]) -> Tensor:
    """`ln Π_k σ(a_k)` of K logits (B,): that of all links of a chain together, at most 0."""
    return torch.stack([functional.logsigmoid(logit_B) for logit_B in logits]).sum(dim=0)


def joint_losses(logits: Sequence[Tensor], labels_B: Tensor) -> Tensor:
    """Logloss (B,) of `p = Π_k σ(a_k)` (ESMM, Ma et al., SIGIR 2018, section 2.2), right in float32 also where p is
    near 0 or 1: `ln(1 - p)` is taken from ln p by whichever of log1p and expm1 keeps the digits."""
    tiny = torch.finfo(logits[0].dtype).tiny
    log_p_B = joint_log_probability(logits).clamp(max=-tiny)
    small_B = log_p_B <= -math.log(2)
    # Each branch sees values for which it is finite: where() alone would still pass its NaN back.
    below_B = torch.log1p(-torch.exp(torch.where(small_B, log_p_B, -1.0)))
    above_B = torch.log(-torch.expm1(torch.where(small_B, -0.5, log_p_B)))
    return -(labels_B * log_p_B + (1 - labels_B) * torch.where(small_B, below_B, above_B))


def _columns(values_BT: Tensor, chain: Sequence[int]) -> Tensor:
    """(B, K). Not by an index, which a device would have to be sent first."""
    return torch.stack([values_BT[:, link] for link in chain], dim=1)


class TaskLosses(nn.Module):
    """`Σ_t w_t L_t`, L_t the weighted mean logloss over the rows that know task t; a task without any adds exactly 0.

    Args:
        tasks: T of them.
        balance: "fixed", or "uncertainty" (Kendall et al., CVPR 2018): `Σ_t w_t (e^{-s_t} L_t + s_t / 2)`, s learned
            from 0, parameter `s_T`.
        domain_weights: "rows", or "equal": L_t is the sum over S domains of the means over their rows (Crocodile,
            arXiv 2405.12706).
        num_domains: S.
    """

    weights_T: Tensor

    def __init__(
        self,
        tasks: Sequence[TaskLoss],
        *,
        balance: Balance = "fixed",
        domain_weights: DomainWeights = "rows",
        num_domains: int = 1,
    ) -> None:
        super().__init__()
        self.tasks, self.domain_weights, self.num_domains = tuple(tasks), domain_weights, num_domains
        self.register_buffer("weights_T", torch.tensor([task.weight for task in tasks]), persistent=False)
        self.s_T = nn.Parameter(torch.zeros(len(self.tasks))) if balance == "uncertainty" else None

    def forward(
        self, logits: Sequence[Tensor], rows: RowLabels, group: dist.ProcessGroup | None = None
    ) -> tuple[Tensor, Tensor]:
        """`(loss, losses_T)`: the balanced sum, and each task's mean.

        `group`: its ranks share the batch; the mean over them of the gradients is that of the whole batch.
        """
        losses_T, known_T = self.means(logits, rows, group)
        return self._balanced(losses_T, known_T), losses_T.detach()

    def means(
        self, logits: Sequence[Tensor], rows: RowLabels, group: dist.ProcessGroup | None = None
    ) -> tuple[Tensor, Tensor]:
        """`(losses_T, known_T)`: each task's L_t, and whether a row of the batch knows it."""
        labels_BT = rows.labels_BT.to(logits[0].dtype)
        if rows.known_BT is None:
            known_BT = torch.ones_like(labels_BT, dtype=torch.bool)
        else:  # what an unknown label holds is not looked at
            known_BT, labels_BT = rows.known_BT, torch.where(rows.known_BT, labels_BT, 0.0)
        sums, totals = [], []
        for number, task in enumerate(self.tasks):
            if len(task.chain) > 1:
                chain = task.chain
                labels_B, known_B = joint_labels(_columns(labels_BT, chain), _columns(known_BT, chain))
                losses_B = joint_losses([logits[link] for link in chain], labels_B)
            else:
                labels_B, known_B = labels_BT[:, number], known_BT[:, number]
                losses_B = functional.binary_cross_entropy_with_logits(logits[number], labels_B, reduction="none")
            weights_B = known_B.to(losses_B.dtype)
            if rows.weights_B is not None:
                weights_B = weights_B * rows.weights_B.to(losses_B.dtype)
            sums.append(self._by_domain(losses_B * weights_B, rows.domains_B))
            totals.append(self._by_domain(weights_B, rows.domains_B))
        sums_TS, totals_TS = torch.stack(sums), torch.stack(totals)
        if group is not None:
            dist.all_reduce(totals_TS, group=group)
            sums_TS = sums_TS * dist.get_world_size(group)
        losses_T = (sums_TS / torch.where(totals_TS > 0, totals_TS, 1.0)).sum(dim=1)
        return losses_T, (totals_TS > 0).any(dim=1)

    def _by_domain(self, values_B: Tensor, domains_B: Tensor | None) -> Tensor:
        """Sums (S,), or of all rows (1,) where domains weigh by their rows."""
        if self.domain_weights == "rows" or domains_B is None:
            return values_B.sum().unsqueeze(0)
        # A product and a sum: adding up by index has no fixed order on a device.
        return (membership(domains_B, self.num_domains) * values_B.unsqueeze(1)).sum(dim=0)

    def _balanced(self, losses_T: Tensor, known_T: Tensor) -> Tensor:
        if self.s_T is not None:
            # Nothing is learned of a task that no row of the batch knows.
            losses_T = torch.where(known_T, torch.exp(-self.s_T) * losses_T + self.s_T / 2, 0.0)
        return (self.weights_T.to(losses_T.dtype) * losses_T).sum()
