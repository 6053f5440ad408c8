"""What a forward pass gives.

Shape suffixes as in `dmoe.nn.model`.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Location = Literal["output", "pre-activation", "intermediate", "input", "levels"]


@dataclass(frozen=True, slots=True)
class TaskOutput:
    """What one task is predicted to be, and how its gate weighed the experts; of each row in its own domain."""

    logit: Tensor  # (B,)
    gate_weights: Tensor  # (B, M) over all experts, 0 for those that the gate does not mix; rows sum to 1
    unit_weights: Tensor | None = None  # (B, M, H) of a per-unit gate
    linear: Tensor | None = None  # (B,) of the linear part, in evaluation mode


@dataclass(frozen=True, slots=True)
class DMoEOutput:
    """What one forward pass gives: the prediction, and every layer that a loss or a metric may look at.

    `tasks` has every task, the main one first; its `logit`, `gate_weights`, `unit_weights` and `linear` are here too.
    Of a model with levels, what is said of experts is said of those of the last level, which the heads mix.
    """

    logit: Tensor  # (B,)
    expert_outputs: tuple[Tensor, ...]  # M of (B, H), after the alignment ReLU
    gate_weights: Tensor  # (B, M), rows sum to 1; of a per-unit gate, the means over units
    pre_activations: tuple[Tensor, ...]  # M of (B, H), before that ReLU
    intermediates: tuple[tuple[Tensor, ...], ...]  # per expert, the inner layers that it names
    inputs: tuple[Tensor, ...]  # M of (B, F * D): each expert's own embeddings, flattened
    unit_weights: Tensor | None = None  # (B, M, H) of a per-unit gate
    gate_loss: Tensor | None = None  # scalar: what balanced gates add to the loss while training
    linear: Tensor | None = None  # (B,) of the linear part, in evaluation mode
    tasks: tuple[TaskOutput, ...] = ()
    domain: Tensor | None = None  # (B,) int64, the domain of each row, of a model that is told the domains
    levels: tuple[tuple[Tensor, ...], ...] = ()  # of each level what `expert_outputs` is of the last

    def layers(self, location: Location) -> list[tuple[Tensor, ...]]:
        """Groups of layers to de-correlate at `location` (section 4.7): one tensor an expert in each group.

        `intermediate` pairs the l-th named layer of every expert that has one.
        """
        if location == "output":
            return [self.expert_outputs]
        if location == "levels":
            return list(self.levels)
        if location == "pre-activation":
            return [self.pre_activations]
        if location == "input":
            return [self.inputs]
        depth = max(map(len, self.intermediates))
        groups = [tuple(one[layer] for one in self.intermediates if len(one) > layer) for layer in range(depth)]
        return [group for group in groups if len(group) > 1]
