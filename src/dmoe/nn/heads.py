"""Heads: from what experts give to logits, one for each task or for each task in each domain.

A stream mixes the experts that are its head's own or nobody's, and those of other owners as `foreign` says: not at all
(hidden, as in PLE), with a stopped gradient (as in STEM) or like its own (open).

Shape suffixes: B rows, F fields, D embedding width, M experts, H units of the alignment layer, S domains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmoe.config.tasks import Foreign, HeadOf, Owner
from dmoe.nn.gate import Gate, GateOutput
from dmoe.nn.mixture import mix, mix_units
from dmoe.nn.personal import scaled


@dataclass(frozen=True, slots=True)
class Trunk:
    """What heads read: the sources of their gates, and each expert's layers (see `DMoEOutput`)."""

    sources: tuple[Tensor, ...]  # (B, F, D): the embeddings of each table
    inputs: tuple[Tensor, ...]  # M of (B, F, D)
    outputs: tuple[Tensor, ...]  # M of (B, H)
    pre_activations: tuple[Tensor, ...]
    intermediates: tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True, slots=True)
class Mixed:
    """The experts, of all M, that a gate mixes, and which of them pass no gradient on."""

    experts: tuple[int, ...]
    stopped: frozenset[int] = frozenset()

    @staticmethod
    def of(head: HeadOf, owners: Sequence[Owner | None], foreign: Foreign) -> "Mixed":
        """Raises: ValueError if that leaves no expert."""
        own = {number for number, owner in enumerate(owners) if head.owns(owner)}
        if foreign == "hidden":
            if not own:
                raise ValueError(f"a head of task {head.task}, domain {head.domain} has no expert to mix")
            return Mixed(tuple(sorted(own)))
        others = frozenset(range(len(owners))) - own
        return Mixed(tuple(range(len(owners))), others if foreign == "stopped" else frozenset())


@dataclass(frozen=True, slots=True)
class Stream:
    """A gate, what it reads and what it mixes. The gate belongs to the model."""

    gate: Gate | None
    reads: tuple[int, ...]  # the sources whose sum the gate reads
    mixed: Mixed

    def weigh(self, trunk: Trunk) -> GateOutput:
        """g = softmax(W_g(GE(x))) (eq. 9) over the experts that are mixed."""
        if self.gate is None:
            alone_BH = trunk.outputs[0]
            return GateOutput(alone_BH.new_ones(alone_BH.shape[0], 1), None, None)
        input_BFD = trunk.sources[self.reads[0]]
        for other in self.reads[1:]:
            input_BFD = input_BFD + trunk.sources[other]
        weights: GateOutput = self.gate(input_BFD)
        return weights

    def mixture(self, outputs: Sequence[Tensor], gate: GateOutput) -> Tensor:
        """h = Σ_m g^(m) · o^(m) (eq. 10), (B, H)."""
        if self.gate is None:
            return outputs[self.mixed.experts[0]]
        chosen = [outputs[m].detach() if m in self.mixed.stopped else outputs[m] for m in self.mixed.experts]
        if gate.unit_weights_BMH is not None:
            return mix_units(chosen, gate.unit_weights_BMH)
        return mix(chosen, gate.weights_BM)

    def over_all(self, gate: GateOutput, num_experts: int) -> GateOutput:
        """The gate's weights over all experts, 0 for those that it does not mix."""
        experts = self.mixed.experts
        if len(experts) == num_experts:
            return gate

        def spread(weights: Tensor) -> Tensor:
            none = torch.zeros_like(weights[:, 0])
            places = {expert: place for place, expert in enumerate(experts)}
            return torch.stack([weights[:, places[m]] if m in places else none for m in range(num_experts)], dim=1)

        units_BMH = gate.unit_weights_BMH
        return GateOutput(spread(gate.weights_BM), None if units_BMH is None else spread(units_BMH), gate.loss)


@dataclass(frozen=True, slots=True)
class Head:
    """From a trunk to one logit: gate, mixture and tower. The modules belong to the model."""

    of: HeadOf
    stream: Stream
    tower: nn.Module
    output: nn.Module

    def predict(self, mixed_BH: Tensor, scales: Sequence[Tensor] | None = None) -> Tensor:
        """The logit (B,) of eq. 4 and 11, before its sigmoid; `scales`: of the tower's input and each hidden layer."""
        hidden_BH = self.tower(mixed_BH) if scales is None else scaled(self.tower, mixed_BH, scales)
        logit_B1: Tensor = self.output(hidden_BH)
        return logit_B1.squeeze(1)


def weigh_all(streams: Sequence[Stream], trunk: Trunk) -> tuple[list[GateOutput], Tensor | None]:
    """What the gate of each stream gives, one that several share asked once; and the sum of the gates' losses."""
    found: dict[int, GateOutput] = {}
    for stream in streams:
        if id(stream.gate) not in found or stream.gate is None:
            found[id(stream.gate)] = stream.weigh(trunk)
    return [found[id(stream.gate)] for stream in streams], added([gate.loss for gate in found.values()])


def added(losses: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of the losses that there are."""
    there = [loss for loss in losses if loss is not None]
    if len(there) < 2:
        return there[0] if there else None
    return torch.stack(there).sum()


def in_domain(of_domain: Sequence[Tensor], domain_B: Tensor | None) -> Tensor:
    """Of a tensor (B, …) for each of S domains the one of each row's own."""
    if len(of_domain) == 1 or domain_B is None:
        return of_domain[0]
    stacked = torch.stack(list(of_domain), dim=1)
    place = domain_B.view(-1, *[1] * (stacked.ndim - 1)).expand(-1, 1, *stacked.shape[2:])
    return stacked.gather(1, place).squeeze(1)


def gate_in_domain(gates: Sequence[GateOutput], domain_B: Tensor | None, *, units: bool) -> GateOutput:
    """Weights of the gate of each row's domain; with `units` those of the units too, which only measures look at."""
    if len(gates) == 1:
        return gates[0]
    weights_BM = in_domain([gate.weights_BM for gate in gates], domain_B)
    by_unit = [gate.unit_weights_BMH for gate in gates if gate.unit_weights_BMH is not None]
    return GateOutput(weights_BM, in_domain(by_unit, domain_B) if by_unit and units else None, None)


def sources_of_gates(
    table: str | int,
    heads: Sequence[HeadOf],
    owners: Sequence[Owner | None],
    table_of_expert: Sequence[int],
    own: int,
) -> list[tuple[int, ...]]:
    """For each head the tables whose sum its gate reads; the last entry is for a stream of no owner.

    Args:
        table: "own", "owner", "owner+shared" or the number of an expert, whose table is read.
        own: the number of the gates' own table.
    Raises: ValueError if a head has no table of an owner, or there is none of nobody.
    """
    if table == "own":
        return [(own,)] * (len(heads) + 1)
    if isinstance(table, int):
        if not 0 <= table < len(owners):
            raise ValueError(f"DMoE.gate_table must be 'own' or an expert index below {len(owners)}")
        return [(table_of_expert[table],)] * (len(heads) + 1)
    if table not in ("owner", "owner+shared"):
        raise ValueError(f"DMoE.gate_table must be 'own', 'owner', 'owner+shared' or an expert, got '{table}'")
    shared = next((table_of_expert[m] for m, owner in enumerate(owners) if owner is None), None)
    if shared is None and table == "owner+shared":
        raise ValueError("gate table 'owner+shared' needs an expert without an owner, whose table it adds")
    found = []
    for head in heads:
        own_tables = {table_of_expert[m] for m, owner in enumerate(owners) if owner is not None and head.owns(owner)}
        if len(own_tables) != 1:
            raise ValueError(f"gate table '{table}' needs one table of each head's owner, got {len(own_tables)}")
        found.append((own_tables.pop(), *([shared] if table == "owner+shared" and shared is not None else [])))
    return [*found, (shared,) if shared is not None else found[0]]
