"""Gates: that of eq. 9, and sparse, per-unit and balanced ones.

Shape suffixes: B rows, F fields, D embedding width, M experts, H units of an expert, K experts kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from dmoe.config.gates import BALANCES, TOP_1, TRAINS_TOP_1, Balance, GateKind
from dmoe.distributed.sums import sum_over_ranks
from dmoe.nn import arguments
from dmoe.nn.mlp import MLP, initialise_linear


class GateOutput(NamedTuple):
    """Weights of the experts, and what the gate adds to the loss of a training batch."""

    weights_BM: Tensor  # rows sum to 1; of a per-unit gate, the means over units
    unit_weights_BMH: Tensor | None  # of a per-unit gate alone; sums to 1 over the experts
    loss: Tensor | None


class Gate(nn.Module):
    """`softmax(l)`, `l = Linear_M(ReLU(Linear_units(flatten(embeddings))))` (eq. 9 of arXiv 2505.17925), or another.

    Args:
        units: hidden units: of one layer, 0 for none, or of each of several.
        kind: "softmax", eq. 9. "top-k": the softmax of the k largest logits, 0 for the others. "noisy-top-k": the same
            of `l + N(0, 1) · softplus(W h)` while training, h the hidden units, W at first 0 (Shazeer et al., ICLR
            2017, eq. 3-5). "per-unit": a softmax over the experts for each of their H units, so that the mixture is
            `Σ_m g_m * o_m` elementwise. All experts are computed whatever the gate: top-k saves no time.
        k: experts kept by the top-k kinds. With 1 the weight is 1 whatever the logits, and only a balance of "switch"
            or "importance-load" trains the gate.
        expert_units: H, for "per-unit".
        balance: a loss while training. "importance": the squared coefficient of variation of `Σ_B g` over the experts
            (Shazeer et al., eq. 6-7); "importance-load" adds that of `Load_m = Σ_B Φ((l_m - t_m) / σ_m)`, t_m the kth
            largest noisy logit of the other experts and σ the noise's deviation (eq. 8-11); "switch":
            `M Σ_m f_m P_m`, f_m the share of places that go to m and P_m its mean softmax, 1 at balance (Fedus et
            al., JMLR 2022, eq. 4).
        balance_weight: weight of that loss.
        dropout: share of experts left out of a row while training: their logits become -∞ before the softmax and the
            top-k, so that the others' weights still sum to 1. A row that would lose all keeps all.
        fields: numbers of the fields that the gate reads; by default all.

    Shape: ``embeddings_BFD`` (B, F, D); see `GateOutput`.
    Raises: ValueError naming the argument.
    """

    fields_F: Tensor | None
    # The batch of a balance is that of all its ranks.
    process_group: dist.ProcessGroup | None = None

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_experts: int,
        units: int | Sequence[int] = 64,
        *,
        kind: GateKind = "softmax",
        k: int | None = None,
        expert_units: int | None = None,
        balance: Balance | None = None,
        balance_weight: float = 0.01,
        dropout: float = 0.0,
        fields: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        arguments.choice("kind", kind, tuple(BALANCES))
        if balance is not None and balance not in BALANCES[kind]:
            allowed = " or ".join(BALANCES[kind]) or "left out"
            raise ValueError(f"balance of a {kind} gate must be {allowed}, got '{balance}'")
        sparse = kind in ("top-k", "noisy-top-k")
        if sparse != (k is not None):
            raise ValueError(f"a {kind} gate {'needs k, the experts that it keeps' if sparse else 'has no k'}")
        # With all experts kept there is no threshold that a load could be the chance to pass.
        most = num_experts - 1 if balance == "importance-load" else num_experts
        if k is not None and not 1 <= k <= most:
            raise ValueError(f"k must be from 1 to {most} of {num_experts} experts, got {k}")
        if k == 1 and balance not in TRAINS_TOP_1:
            raise ValueError(TOP_1)
        if (kind == "per-unit") != (expert_units is not None):
            raise ValueError(f"expert_units is for a per-unit gate, which needs it; got {expert_units} and '{kind}'")
        self.kind, self.k, self.num_experts = kind, k, num_experts
        self.balance, self.balance_weight = balance, balance_weight
        self.dropout = arguments.dropout_rate("dropout", dropout)
        chosen = None if fields is None else list(arguments.numbers("fields", list(fields), num_fields))
        read = num_fields if chosen is None else arguments.integer("number of fields", len(chosen))
        self.register_buffer("fields_F", None if chosen is None else torch.tensor(chosen), persistent=False)
        widths = [units] if isinstance(units, int) else list(units)
        self.hidden = MLP(read * embedding_dim, [] if units == 0 else widths)
        self.output = nn.Linear(self.hidden.out_features, num_experts * (expert_units or 1))
        initialise_linear(self.output)
        if kind == "noisy-top-k":
            self.noise = nn.Linear(self.hidden.out_features, num_experts, bias=False)
            nn.init.zeros_(self.noise.weight)

    def forward(self, embeddings_BFD: Tensor) -> GateOutput:
        if self.fields_F is not None:
            embeddings_BFD = embeddings_BFD.index_select(1, self.fields_F)
        hidden_BU: Tensor = self.hidden(embeddings_BFD.flatten(1))
        logits: Tensor = self.output(hidden_BU)
        if self.kind == "per-unit":
            logits_BMH = logits.view(logits.shape[0], self.num_experts, -1)
            kept_BM = self._kept(logits_BMH[:, :, 0])
            if kept_BM is not None:
                logits_BMH = logits_BMH.masked_fill(~kept_BM.unsqueeze(2), -torch.inf)
            unit_weights_BMH = torch.softmax(logits_BMH, dim=1)
            return GateOutput(unit_weights_BMH.mean(dim=2), unit_weights_BMH, None)
        noisy_BM, deviation_BM = logits, None
        if self.kind == "noisy-top-k" and self.training:
            deviation_BM = functional.softplus(self.noise(hidden_BU))
            noisy_BM = logits + torch.randn_like(logits) * deviation_BM
        weights_BM, chosen_BK = self._weights(noisy_BM)
        loss = self._balance(weights_BM, logits, noisy_BM, chosen_BK, deviation_BM) if self.training else None
        return GateOutput(weights_BM, None, loss)

    def _kept(self, like_BM: Tensor) -> Tensor | None:
        """Which experts of each row are not dropped; None without dropout."""
        if not self.training or self.dropout == 0:
            return None
        kept_BM = torch.rand_like(like_BM, dtype=torch.float32) >= self.dropout
        return kept_BM | ~kept_BM.any(dim=1, keepdim=True)

    def _weights(self, logits_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weights, and which experts the top-k kinds choose."""
        kept_BM = self._kept(logits_BM)
        if kept_BM is not None:
            logits_BM = logits_BM.masked_fill(~kept_BM, -torch.inf)
        if self.k is None:
            return torch.softmax(logits_BM, dim=1), None
        values_BK, chosen_BK = logits_BM.topk(self.k, dim=1)
        weights_BK = torch.softmax(values_BK, dim=1)
        return torch.zeros_like(logits_BM, dtype=weights_BK.dtype).scatter(1, chosen_BK, weights_BK), chosen_BK

    def _balance(
        self,
        weights_BM: Tensor,
        logits_BM: Tensor,
        noisy_BM: Tensor,
        chosen_BK: Tensor | None,
        deviation_BM: Tensor | None,
    ) -> Tensor | None:
        if self.balance is None or (len(weights_BM) == 0 and self.process_group is None):
            return None
        if self.balance == "switch":
            assert chosen_BK is not None
            experts_M = torch.arange(self.num_experts, device=chosen_BK.device)
            chosen_M = (chosen_BK.reshape(-1, 1) == experts_M).sum(dim=0)
            if self.process_group is None:
                share_M = chosen_M / chosen_BK.numel()
                mean_M = torch.softmax(logits_BM.float(), dim=1).mean(dim=0)
            else:
                chosen_M = self._over_ranks(chosen_M.float())
                share_M = chosen_M / chosen_M.sum()
                mean_M = self._over_ranks(torch.softmax(logits_BM.float(), dim=1).sum(dim=0))
                mean_M = mean_M * (chosen_BK.shape[1] / chosen_M.sum())
            loss = self.num_experts * (share_M * mean_M).sum()
            return self.balance_weight * loss
        loss = _squared_variation(self._over_ranks(weights_BM.float().sum(dim=0)))
        if deviation_BM is not None and self.balance == "importance-load":
            loss = loss + _squared_variation(self._load(logits_BM.float(), noisy_BM.float(), deviation_BM.float()))
        return self.balance_weight * loss

    def _load(self, logits_BM: Tensor, noisy_BM: Tensor, deviation_BM: Tensor) -> Tensor:
        """The expected number of rows of each expert, had its noise alone been drawn again."""
        assert self.k is not None
        top_BK = noisy_BM.topk(self.k + 1, dim=1).values
        # Without expert m, the kth largest is the (k+1)th where m is among the k largest, else the kth.
        inside_BM = noisy_BM > top_BK[:, -1:]
        threshold_BM = torch.where(inside_BM, top_BK[:, -1:], top_BK[:, -2:-1])
        chance_BM: Tensor = torch.special.ndtr((logits_BM - threshold_BM) / deviation_BM)
        return self._over_ranks(chance_BM.sum(dim=0))

    def _over_ranks(self, values_M: Tensor) -> Tensor:
        return sum_over_ranks(values_M, self.process_group)


def _squared_variation(values_M: Tensor) -> Tensor:
    """Variance over squared mean, 0 for equal values."""
    return values_M.var(correction=0) / (values_M.mean().square() + 1e-10)
