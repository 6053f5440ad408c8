"""What a forward pass gives.

Shape suffixes as in `dmoe.nn.model`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

Location = Literal["output", "pre-activation", "intermediate", "input", "levels"]


@dataclass(frozen=True, slots=True)
class TaskOutput:
    """What one task is predicted to be, and how its gate weighed the experts; of each row in its own domain."""

    logit: Tensor  #: (B,)
    gate_weights: Tensor  #: (B, M) over all experts, 0 for those that the gate does not mix; rows sum to 1
    unit_weights: Tensor | None = None  #: (B, M, H) of a per-unit gate
    linear: Tensor | None = None  #: (B,) of the linear part, in evaluation mode


class Group(NamedTuple):
    """Layers to de-correlate, one an expert; the numbers of these experts, and their level."""

    layers: tuple[Tensor, ...]
    experts: tuple[int, ...]
    level: int


@dataclass(frozen=True, slots=True)
class DMoEOutput:
    """What one forward pass gives: the prediction, and every layer that a loss or a metric may look at.

    `tasks` has every task, the main one first; its `logit`, `gate_weights`, `unit_weights` and `linear` are here too.
    Of a model with levels, what is said of experts is said of those of the last level, which the heads mix.
    """

    logit: Tensor  #: (B,)
    expert_outputs: tuple[Tensor, ...]  #: M of (B, H), after the alignment ReLU
    gate_weights: Tensor  #: (B, M), rows sum to 1; of a per-unit gate, the means over units
    pre_activations: tuple[Tensor, ...]  #: M of (B, H), before that ReLU
    intermediates: tuple[tuple[Tensor, ...], ...]  #: per expert, the inner layers that it names
    inputs: tuple[Tensor, ...]  #: M of (B, F * D): each expert's own embeddings, flattened
    unit_weights: Tensor | None = None  #: (B, M, H) of a per-unit gate
    gate_loss: Tensor | None = None  #: scalar: what balanced gates add to the loss while training
    linear: Tensor | None = None  #: (B,) of the linear part, in evaluation mode
    tasks: tuple[TaskOutput, ...] = ()
    domain: Tensor | None = None  #: (B,) int64, the domain of each row, of a model that is told the domains
    scales: tuple[tuple[Tensor, ...], ...] = ()  #: for each head those of its tower's layers, of a model that has them
    levels: tuple[tuple[Tensor, ...], ...] = ()  #: of each level what `expert_outputs` is of the last

    def layers(self, location: Location) -> list[tuple[Tensor, ...]]:
        """The layers of `groups`."""
        return [group.layers for group in self.groups(location)]

    def groups(self, location: Location) -> list[Group]:
        """Groups of layers to de-correlate at `location` (section 4.7): one tensor an expert in each group.

        `intermediate` pairs the l-th named layer of every expert that has one; `levels` has a group for each level.
        """
        if location == "levels":
            return [Group(outputs, tuple(range(len(outputs))), level) for level, outputs in enumerate(self.levels)]
        every, last = tuple(range(len(self.expert_outputs))), len(self.levels) - 1
        if location != "intermediate":
            whole = {"output": self.expert_outputs, "pre-activation": self.pre_activations, "input": self.inputs}
            return [Group(whole[location], every, last)]
        found = []
        for layer in range(max(map(len, self.intermediates))):
            there = tuple(expert for expert in every if len(self.intermediates[expert]) > layer)
            if len(there) > 1:
                found.append(Group(tuple(self.intermediates[expert][layer] for expert in there), there, last))
        return found
