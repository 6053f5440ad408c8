"""D-MoE in the order of the paper (arXiv 2505.17925): tables, experts, gate, mixture, tower, loss.

Shape suffixes: B rows, C id columns, N numeric fields, F fields, D embedding width, M experts,
H units of the alignment layer, W raw width of an expert.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from dmoe.decorrelation.checks import ProcessGroup, global_rows, resolve
from dmoe.nn.arrangement import (
    check_expert,
    chosen,
    fields_of_experts,
    places_among,
    places_name,
    table_of_expert,
    table_widths,
)
from dmoe.nn.benchmark_form import BareExpert, BenchmarkHead
from dmoe.nn.calibration import LogitMap
from dmoe.nn.experts.base import Expert
from dmoe.nn.gate import Gate, GateOutput
from dmoe.nn.linear import LinearPart
from dmoe.nn.mixture import mix, mix_units
from dmoe.nn.mlp import MLP, initialise_linear
from dmoe.nn.tables.bank import TokenField
from dmoe.nn.tables.fields import FieldEmbedding
from dmoe.nn.tables.lookup import TableRows

Location = Literal["output", "pre-activation", "intermediate", "input"]


@dataclass(frozen=True, slots=True)
class DMoEOutput:
    """What one forward pass gives: the prediction, and every layer that a loss or a metric may look at."""

    logit: Tensor  # (B,)
    expert_outputs: tuple[Tensor, ...]  # M of (B, H), after the alignment ReLU
    gate_weights: Tensor  # (B, M), rows sum to 1; of a per-unit gate, the means over units
    pre_activations: tuple[Tensor, ...]  # M of (B, H), before that ReLU
    intermediates: tuple[tuple[Tensor, ...], ...]  # per expert, the inner layers that it names
    inputs: tuple[Tensor, ...]  # M of (B, F * D): each expert's own embeddings, flattened
    unit_weights: Tensor | None = None  # (B, M, H) of a per-unit gate
    gate_loss: Tensor | None = None  # scalar: what a balanced gate adds to the loss while training
    linear: Tensor | None = None  # (B,) of the linear part, in evaluation mode

    def layers(self, location: Location) -> list[tuple[Tensor, ...]]:
        """Groups of layers to de-correlate at `location` (section 4.7): one tensor an expert in each group.

        `intermediate` pairs the l-th named layer of every expert that has one.
        """
        if location == "output":
            return [self.expert_outputs]
        if location == "pre-activation":
            return [self.pre_activations]
        if location == "input":
            return [self.inputs]
        depth = max(map(len, self.intermediates))
        groups = [tuple(one[layer] for one in self.intermediates if len(one) > layer) for layer in range(depth)]
        return [group for group in groups if len(group) > 1]


class AlignedExpert(nn.Module):
    """An interaction followed by the layer that gives all experts one width (eq. 2, 7; figure 3).

    `o = ReLU(Linear(Interaction(e)))`, H = `units`.
    """

    def __init__(self, interaction: Expert, units: int = 500) -> None:
        super().__init__()
        self.interaction = interaction
        self.align = nn.Linear(interaction.out_features, units)
        initialise_linear(self.align)

    def forward(self, embeddings_BFD: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """`(o_BH after ReLU, the same before it, the interaction's inner layers)`."""
        raw_BW, inner = self.interaction.forward_with_intermediates(embeddings_BFD)
        aligned_BH = self.align(raw_BW)
        return functional.relu(aligned_BH), aligned_BH, inner


@dataclass(frozen=True, slots=True)
class Trunk:
    """What heads read: the embeddings of each table, and each expert's layers (see `DMoEOutput`)."""

    embeddings: tuple[Tensor, ...]  # T of (B, F, D)
    inputs: tuple[Tensor, ...]  # M of (B, F, D)
    outputs: tuple[Tensor, ...]  # M of (B, H)
    pre_activations: tuple[Tensor, ...]
    intermediates: tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True, slots=True)
class Head:
    """From a trunk to one logit: gate, mixture and tower. The modules belong to the model."""

    gate: Gate | None
    gate_reads: int | None  # the table
    tower: nn.Module
    output: nn.Module

    def __call__(self, trunk: Trunk) -> tuple[Tensor, GateOutput]:
        """The logit (B,) and how the experts were weighed."""
        # g = softmax(W_g(GE(x))), h = Σ_m g^(m) · o^(m)                      (eq. 9, 10)
        if self.gate is None or self.gate_reads is None:
            alone_BH = trunk.outputs[0]
            return self.predict(alone_BH), GateOutput(alone_BH.new_ones(alone_BH.shape[0], 1), None, None)
        gate = self.gate(trunk.embeddings[self.gate_reads])
        return self.predict(self.mixture(trunk.outputs, gate)), gate

    def mixture(self, outputs: Sequence[Tensor], gate: GateOutput) -> Tensor:
        """h (B, H) of eq. 10, for all of a gate's experts."""
        if gate.unit_weights_BMH is not None:
            return mix_units(outputs, gate.unit_weights_BMH)
        return mix(outputs, gate.weights_BM)

    def predict(self, mixed_BH: Tensor) -> Tensor:
        """The logit (B,) of eq. 4 and 11, before its sigmoid."""
        logit_B1: Tensor = self.output(self.tower(mixed_BH))
        return logit_B1.squeeze(1)


class DMoE(nn.Module):
    """De-correlated mixture of experts (arXiv 2505.17925, eq. 1-12).

    Args:
        vocabulary_sizes: rows of each categorical field's vocabulary, or a `dmoe.nn.tables.bank.TokenField` for one
            that is multi-valued, has a width of its own or given vectors.
        num_numeric: numeric fields; each is its value times a learned vector, per table.
        embedding_dim: width D of every table, or one width for each table that experts read.
        experts: M interaction modules taking (B, F, D), F = categorical + numeric fields, or those of its own.
        expert_fields: for each expert the fields that it reads, rising, numeric ones counted after the others; None
            for all. A table holds what its experts read.
        tables: "per-expert" (ME), "shared" (SE), or for each expert the index of the table that it reads.
        expert_units: H, width of the alignment layer after each expert.
        gate_units: hidden units of the gate.
        gate_table: "own", or the expert whose table the gate reads.
        gate_options: further keyword arguments of `Gate`: its kind, balance, dropout and fields.
        gate_embedding_dim: width of the gate's own table; by default that of the first table.
        tower_units: hidden units of the tower.
        embedding_storage: dtype in which the tables are kept; by default torch's default dtype.
        form: "mixture", or "benchmark": one interaction without alignment, gate and tower, whose outputs are summed
            or weighed to the logit as in the benchmark lineage (see docs/benchmark-form.md).
        first_order: in the benchmark form, one weight for each token and numeric field beside it (its own table of
            width 1); by default where the interaction's original has it.
        linear: a logistic regression beside the mixture, set after training; see `dmoe.nn.linear`.

    With one expert there is no gate and no mixture: the "single expert" column of the paper's Table 1.

    Shape: ids (B, C) integer, one column a field and several for a multi-valued one, numeric (B, N) float; see
    `DMoEOutput`.
    Raises: ValueError for tables, widths or experts that do not fit together.
    """

    def __init__(
        self,
        vocabulary_sizes: Sequence[int | TokenField],
        num_numeric: int = 0,
        embedding_dim: int | Sequence[int] = 16,
        *,
        experts: Sequence[Expert],
        expert_fields: Sequence[Sequence[int] | None] | None = None,
        tables: Literal["shared", "per-expert"] | Sequence[int] = "per-expert",
        expert_units: int = 500,
        gate_units: int = 64,
        gate_table: Literal["own"] | int = "own",
        gate_options: Mapping[str, Any] | None = None,
        gate_embedding_dim: int | None = None,
        tower_units: Sequence[int] = (500,),
        tower_dropout: float = 0.0,
        embedding_storage: torch.dtype | None = None,
        form: Literal["mixture", "benchmark"] = "mixture",
        first_order: bool | None = None,
        linear: bool = False,
    ) -> None:
        super().__init__()
        if not experts:
            raise ValueError("DMoE.experts must hold at least one expert")
        num_experts = len(experts)
        self.table_of_expert = table_of_expert(tables, num_experts)
        widths = table_widths(embedding_dim, max(self.table_of_expert) + 1)
        num_fields = len(vocabulary_sizes) + num_numeric
        fields = fields_of_experts(expert_fields, num_experts, num_fields)
        for index, (expert, table) in enumerate(zip(experts, self.table_of_expert, strict=True)):
            check_expert(index, expert, len(fields[index]), widths[table])
        readers: list[set[int]] = [set() for _ in range(num_fields)]
        for table, own in zip(self.table_of_expert, fields, strict=True):
            for field in own:
                readers[field].add(table)

        # Tables (eq. 1, 6). The gate's own comes last (section 3.3).
        options = dict(gate_options or {})
        gate_fields: Sequence[int] | None = options.pop("fields", None)
        self.gate_reads: int | None = None
        if num_experts > 1:
            if gate_table == "own":
                self.gate_reads = len(widths)
                widths = [*widths, gate_embedding_dim or widths[0]]
                for field in range(num_fields) if gate_fields is None else gate_fields:
                    readers[field].add(self.gate_reads)
            elif 0 <= gate_table < num_experts:
                self.gate_reads = self.table_of_expert[gate_table]
            else:
                raise ValueError(f"DMoE.gate_table must be 'own' or an expert index below {num_experts}")
        self.first_order_reads: int | None = None
        if form == "benchmark":
            if num_experts > 1:
                raise ValueError(f"DMoE.form 'benchmark' is for one expert, got {num_experts}")
            if experts[0].first_order if first_order is None else first_order:
                self.first_order_reads = len(widths)
                widths = [*widths, 1]
                for field in fields[0]:
                    readers[field].add(self.first_order_reads)
        self.embedding = FieldEmbedding(
            vocabulary_sizes, num_numeric, widths, readers=readers, storage=embedding_storage
        )
        # Where an expert's fields stand among those of its table, None for all of them.
        for index, (table, own) in enumerate(zip(self.table_of_expert, fields, strict=True)):
            places = places_among(own, self.embedding.fields_of_table[table])
            self.register_buffer(places_name(index), None if places is None else torch.tensor(places), persistent=False)

        # Experts (eq. 2, 7).
        bare = form == "benchmark"
        self.experts = nn.ModuleList(
            BareExpert(expert) if bare else AlignedExpert(expert, expert_units) for expert in experts
        )

        # Gate (eq. 9).
        self.gate: Gate | None = None
        if self.gate_reads is not None:
            held = self.embedding.fields_of_table[self.gate_reads]
            places = None if gate_fields is None else places_among(sorted(gate_fields), held)
            self.gate = Gate(len(held), widths[self.gate_reads], num_experts, gate_units, fields=places, **options)

        # Tower (eq. 4, 11).
        self.head: nn.Module
        if bare:
            self.tower = MLP(experts[0].out_features, ())
            self.head = BenchmarkHead(experts[0].out_features, experts[0].summed_features)
        else:
            self.tower = MLP(expert_units, tower_units, dropout=tower_dropout)
            self.head = nn.Linear(self.tower.out_features, 1)
            initialise_linear(self.head)

        # After training: a regression's part of the logit, then from logits to calibrated ones.
        self.linear = LinearPart(self.embedding.fields, num_numeric) if linear else None
        self.calibration = LogitMap()

    @property
    def num_experts(self) -> int:
        return len(self.experts)

    def forward(
        self, ids_BC: Tensor, numeric_BN: Tensor | None = None, rows: Sequence[TableRows] | None = None
    ) -> DMoEOutput:
        """`rows`: what a training step read of each of `embedding.row_tables`; by default the tables are read."""
        trunk = self.trunk(ids_BC, numeric_BN, rows)
        logit_B, gate = self.heads()[0](trunk)
        if self.first_order_reads is not None:
            logit_B = logit_B + trunk.embeddings[self.first_order_reads].sum(dim=(1, 2))

        linear_B = None
        if not self.training:
            linear_B = None if self.linear is None else self.linear(ids_BC, numeric_BN)
            logit_B = self.calibrated(logit_B, linear_B)

        return DMoEOutput(
            logit=logit_B,
            expert_outputs=trunk.outputs,
            gate_weights=gate.weights_BM,
            pre_activations=trunk.pre_activations,
            intermediates=trunk.intermediates,
            inputs=tuple(input_BFD.flatten(1) for input_BFD in trunk.inputs),
            unit_weights=gate.unit_weights_BMH,
            gate_loss=gate.loss,
            linear=linear_B,
        )

    def trunk(self, ids_BC: Tensor, numeric_BN: Tensor | None, rows: Sequence[TableRows] | None = None) -> Trunk:
        """What all heads share: tables and experts."""
        # e^(m) = E^(m)(x)                                                    (eq. 6)
        embeddings_TBFD = self.embedding(ids_BC, numeric_BN, rows)
        inputs = [
            chosen(embeddings_TBFD[table], getattr(self, places_name(index)))
            for index, table in enumerate(self.table_of_expert)
        ]

        # o^(m) = ReLU(Linear(Interaction^(m)(e^(m))))                        (eq. 7)
        outputs, before, inner = zip(
            *(expert(input_BFD) for expert, input_BFD in zip(self.experts, inputs, strict=True)), strict=True
        )
        return Trunk(embeddings_TBFD, tuple(inputs), outputs, before, inner)

    def heads(self) -> tuple[Head, ...]:
        """From the trunk to a logit, one for each label."""
        return (Head(self.gate, self.gate_reads, self.tower, self.head),)

    def calibrated(self, logit_B: Tensor, linear_B: Tensor | None) -> Tensor:
        """The mixture's logit (B,) with the linear part's share, through the map that was fitted."""
        if self.linear is not None and linear_B is not None:
            logit_B = self.linear.mixed(logit_B, linear_B)
        mapped_B: Tensor = self.calibration(logit_B)
        return mapped_B

    @torch.no_grad()
    def start_at(self, rate: float) -> None:
        """Sets the last bias to the logit of a click rate: with small weights, that is what is predicted at first."""
        self.head.bias.fill_(math.log(rate / (1 - rate)))  # type: ignore[operator]


class DecorrelationTerm(nn.Module):
    """`alpha/(B-1) · Σ_groups L` at one location (eq. 12).

    `alpha` acts from step `start_step` on, growing linearly to its full value over `warmup_steps`.
    """

    def __init__(
        self, loss: nn.Module, location: Location, alpha: float, *, start_step: int = 0, warmup_steps: int = 0
    ) -> None:
        super().__init__()
        self.loss, self.location, self.alpha = loss, location, alpha
        self.start_step, self.warmup_steps = start_step, warmup_steps

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
        groups = [self.loss(group) for group in output.layers(self.location)]
        return torch.stack(groups).sum() * (alpha / (rows - 1))


@dataclass(frozen=True, slots=True)
class Losses:
    """The parts of eq. 12 for one batch, scalars that nobody has to wait for; `total` is what to minimise."""

    total: Tensor
    logloss: Tensor  # mean over the rows
    decorrelation: Tensor  # weighted
    gate: Tensor | None = None  # what a balanced gate adds


class Objective:
    """Eq. 12: the mean logloss, what a balanced gate adds, and the de-correlation terms.

    With no term the total is the logloss itself, so alpha = 0 is the ME-MoE baseline to the bit.

    Args:
        terms: with losses of the same `process_group`.
        process_group: as for `CorrLoss`: the batch is then that of all ranks, however unevenly they share it, and the
            mean over ranks of the gradients of `total` is the gradient of one process on the whole batch.
    """

    def __init__(self, terms: Sequence[DecorrelationTerm] = (), *, process_group: ProcessGroup = None) -> None:
        self.terms, self.process_group = list(terms), process_group

    def __call__(self, output: DMoEOutput, labels_B: Tensor, step: int = 0) -> Losses:
        """`labels_B` 0 or 1, `step` counted from 0."""
        half = output.logit.dtype in (torch.float16, torch.bfloat16)
        logit_B = output.logit.float() if half else output.logit
        labels_B = labels_B.to(logit_B.dtype)
        group, rows = resolve(self.process_group), len(logit_B)
        if group is None:
            logloss = functional.binary_cross_entropy_with_logits(logit_B, labels_B)
        else:
            rows = global_rows(rows, group, logit_B.device)
            summed = functional.binary_cross_entropy_with_logits(logit_B, labels_B, reduction="sum")
            logloss = summed * (dist.get_world_size(group) / rows)
        total = logloss if output.gate_loss is None else logloss + output.gate_loss
        if not self.terms:
            return Losses(total, logloss, logloss.new_zeros(()), output.gate_loss)
        decorrelation = torch.stack([term(output, step, rows) for term in self.terms]).sum()
        return Losses(total + decorrelation, logloss, decorrelation, output.gate_loss)
