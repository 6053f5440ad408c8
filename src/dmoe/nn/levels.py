"""Levels of experts above the first (progressive layered extraction, Tang et al., RecSys 2020).

A level below the last gives a stream for each head and, where somebody above reads it, one of nobody's, which mixes all
experts and stops no gradient. The next level's experts read them: an owned one that of its owner's head, the others
nobody's. A gate reads its own stream or, with `owner+shared`, the sum of it and nobody's.

Shape suffixes: B rows, H units of the alignment layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from dmoe.config.tasks import Foreign, HeadOf, Owner
from dmoe.nn.aligned import AlignedExpert
from dmoe.nn.experts.base import Expert
from dmoe.nn.gate import Gate
from dmoe.nn.heads import Mixed, Stream, Trunk, weigh_all


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """What a level is built from: experts of one field as wide as the level below, and who owns each."""

    experts: Sequence[Expert]
    owners: Sequence[Owner | None]
    expert_units: int
    gate_units: int | Sequence[int] = 64
    gate_options: Mapping[str, Any] = field(default_factory=dict)


class Level(nn.Module):
    """Experts above the first level, and the gates of the streams that they are mixed to.

    Args:
        width: H of the level below.
        heads: who has a stream.
        mixed: what each stream mixes; one more than there are heads if nobody's is among them.
        adds_shared: whether the gates of heads read nobody's stream beside their own.
        one_gate: whether the heads share a gate.

    Shape: (B, width) for each stream of the level below to a `Trunk`.
    Raises: ValueError for experts that do not fit, or an owner that has not one stream.
    """

    def __init__(
        self,
        plan: LevelPlan,
        width: int,
        heads: Sequence[HeadOf],
        mixed: Sequence[Mixed],
        *,
        adds_shared: bool,
        one_gate: bool,
    ) -> None:
        super().__init__()
        shared = len(heads)
        self.mixed = list(mixed)
        self.expert_reads = [self._stream_of(owner, heads) for owner in plan.owners]
        for index, expert in enumerate(plan.experts):
            if getattr(expert, "num_fields", 1) != 1 or getattr(expert, "embedding_dim", width) != width:
                raise ValueError(f"experts[{index}] of a level must read one field of width {width}, the level below")
        self.gate_reads = [(number, shared) if adds_shared else (number,) for number in range(shared)]
        self.gate_reads.append((shared,))
        self.gate_of = [0 if one_gate and number < shared else number for number in range(len(mixed))]
        self.experts = nn.ModuleList(AlignedExpert(expert, plan.expert_units) for expert in plan.experts)
        self.gates = nn.ModuleDict(
            {
                str(number): Gate(1, width, len(mixed[number].experts), plan.gate_units, **plan.gate_options)
                for number in sorted(set(self.gate_of))
                if len(mixed[number].experts) > 1
            }
        )

    @staticmethod
    def _stream_of(owner: Owner | None, heads: Sequence[HeadOf]) -> int:
        if owner is None:
            return len(heads)
        own = [number for number, head in enumerate(heads) if head.owns(owner)]
        if len(own) != 1:
            raise ValueError(
                f"an expert of a level that {owner.kind} {owner.number} owns needs one stream of it, got {len(own)}"
            )
        return own[0]

    def streams(self) -> list[Stream]:
        """Those of the heads, then nobody's if a level above reads it."""
        gates = [cast(Gate, self.gates[str(n)]) if str(n) in self.gates else None for n in self.gate_of]
        return [Stream(*one) for one in zip(gates, self.gate_reads, self.mixed, strict=False)]

    def forward(self, streams: Sequence[Tensor]) -> Trunk:
        sources = tuple(stream_BH.unsqueeze(1) for stream_BH in streams)
        inputs = tuple(sources[number] for number in self.expert_reads)
        outputs, before, inner = zip(
            *(expert(input_B1H) for expert, input_B1H in zip(self.experts, inputs, strict=True)), strict=True
        )
        return Trunk(sources, inputs, outputs, before, inner)


@dataclass(frozen=True, slots=True)
class Climb:
    """The last level's trunk, the outputs of each level's experts, and what the gates below add to the loss."""

    trunk: Trunk
    outputs: tuple[tuple[Tensor, ...], ...]
    losses: tuple[Tensor | None, ...]


def climb(trunk: Trunk, streams: Sequence[Stream], levels: Sequence[Level]) -> Climb:
    """From the first level's trunk, whose streams are given, up to the last level's."""
    outputs, losses = [trunk.outputs], list[Tensor | None]()
    for level in levels:
        gates, loss = weigh_all(streams, trunk)
        losses.append(loss)
        trunk = level([stream.mixture(trunk.outputs, gate) for stream, gate in zip(streams, gates, strict=True)])
        streams = level.streams()
        outputs.append(trunk.outputs)
    return Climb(trunk, tuple(outputs), tuple(losses))


def mixed_by_level(
    heads: Sequence[HeadOf], owners: Sequence[Sequence[Owner | None]], foreign: Foreign, *, adds_shared: bool
) -> list[list[Mixed]]:
    """For each level what its streams mix: those of the heads and, where the next level reads it, nobody's.

    Raises: ValueError if a head has nothing to mix.
    """
    found = []
    for level, own in enumerate(owners):
        mixed = [Mixed.of(head, own, foreign) for head in heads]
        if level + 1 < len(owners) and (adds_shared or None in owners[level + 1]):
            mixed.append(Mixed(tuple(range(len(own)))))
        found.append(mixed)
    return found
