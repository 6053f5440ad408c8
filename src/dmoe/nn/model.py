"""D-MoE in the order of the paper (arXiv 2505.17925): tables, experts, gate, mixture, tower, loss.

Shape suffixes: B rows, C id columns, N numeric fields, F fields, D embedding width, M experts,
H units of the alignment layer, W raw width of an expert.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmoe.nn.benchmark_form import BareExpert, BenchmarkHead
from dmoe.nn.calibration import LogitMap
from dmoe.nn.experts.base import Expert
from dmoe.nn.gate import Gate, GateOutput
from dmoe.nn.linear import LinearPart
from dmoe.nn.mixture import mix, mix_units
from dmoe.nn.mlp import MLP, initialise_linear
from dmoe.nn.tables.fields import FieldEmbedding, TokenField
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


class DMoE(nn.Module):
    """De-correlated mixture of experts (arXiv 2505.17925, eq. 1-12).

    Args:
        vocabulary_sizes: rows of each categorical field's vocabulary, or a `dmoe.nn.tables.fields.TokenField` for one
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
        self.table_of_expert = _table_of_expert(tables, num_experts)
        widths = _table_widths(embedding_dim, max(self.table_of_expert) + 1)
        num_fields = len(vocabulary_sizes) + num_numeric
        fields = _fields_of_experts(expert_fields, num_experts, num_fields)
        for index, (expert, table) in enumerate(zip(experts, self.table_of_expert, strict=True)):
            _check_expert(index, expert, len(fields[index]), widths[table])
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
            chosen = _places(own, self.embedding.fields_of_table[table])
            self.register_buffer(
                _places_name(index), None if chosen is None else torch.tensor(chosen), persistent=False
            )

        # Experts (eq. 2, 7).
        bare = form == "benchmark"
        self.experts = nn.ModuleList(
            BareExpert(expert) if bare else AlignedExpert(expert, expert_units) for expert in experts
        )

        # Gate (eq. 9).
        self.gate: Gate | None = None
        if self.gate_reads is not None:
            held = self.embedding.fields_of_table[self.gate_reads]
            places = None if gate_fields is None else _places(sorted(gate_fields), held)
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
        # e^(m) = E^(m)(x)                                                    (eq. 6)
        embeddings_TBFD = self.embedding(ids_BC, numeric_BN, rows)
        inputs = [
            _chosen(embeddings_TBFD[table], getattr(self, _places_name(index)))
            for index, table in enumerate(self.table_of_expert)
        ]

        # o^(m) = ReLU(Linear(Interaction^(m)(e^(m))))                        (eq. 7)
        outputs, before, inner = zip(
            *(expert(input_BFD) for expert, input_BFD in zip(self.experts, inputs, strict=True)), strict=True
        )

        # g = softmax(W_g(GE(x))), h = Σ_m g^(m) · o^(m)                      (eq. 9, 10)
        if self.gate is None or self.gate_reads is None:
            gate = GateOutput(outputs[0].new_ones(outputs[0].shape[0], 1), None, None)
            mixed_BH = outputs[0]
        else:
            gate = self.gate(embeddings_TBFD[self.gate_reads])
            mixed_BH = self.mixture(outputs, gate)

        logit_B = self.predict_from_mixture(mixed_BH)
        if self.first_order_reads is not None:
            logit_B = logit_B + embeddings_TBFD[self.first_order_reads].sum(dim=(1, 2))

        linear_B = None
        if not self.training:
            linear_B = None if self.linear is None else self.linear(ids_BC, numeric_BN)
            logit_B = self.calibrated(logit_B, linear_B)

        return DMoEOutput(
            logit=logit_B,
            expert_outputs=outputs,
            gate_weights=gate.weights_BM,
            pre_activations=before,
            intermediates=inner,
            inputs=tuple(input_BFD.flatten(1) for input_BFD in inputs),
            unit_weights=gate.unit_weights_BMH,
            gate_loss=gate.loss,
            linear=linear_B,
        )

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

    def mixture(self, outputs: Sequence[Tensor], gate: GateOutput) -> Tensor:
        """h (B, H) of eq. 10, for all of a gate's experts."""
        if gate.unit_weights_BMH is not None:
            return mix_units(outputs, gate.unit_weights_BMH)
        return mix(outputs, gate.weights_BM)

    def predict_from_mixture(self, mixed_BH: Tensor) -> Tensor:
        """The logit (B,) of eq. 11, before its sigmoid."""
        logit_B1: Tensor = self.head(self.tower(mixed_BH))
        return logit_B1.squeeze(1)


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

    def forward(self, output: DMoEOutput, step: int) -> Tensor:
        """The loss is undefined for a batch of one row, which contributes 0."""
        rows = output.logit.shape[0]
        alpha = self.alpha_at(step)
        if rows < 2 or alpha == 0:
            return output.logit.new_zeros(())
        groups = [self.loss(group) for group in output.layers(self.location)]
        return torch.stack(groups).sum() * (alpha / (rows - 1))


def total_loss(
    output: DMoEOutput, labels_B: Tensor, terms: Sequence[DecorrelationTerm] = (), step: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 12 for one batch: `(total, mean logloss, weighted de-correlation)`.

    A balanced gate adds its loss to the total.
    With no term the total is the logloss itself, so alpha = 0 is the ME-MoE baseline to the bit.
    """
    half = output.logit.dtype in (torch.float16, torch.bfloat16)
    logit_B = output.logit.float() if half else output.logit
    logloss = functional.binary_cross_entropy_with_logits(logit_B, labels_B.to(logit_B.dtype))
    total = logloss if output.gate_loss is None else logloss + output.gate_loss
    if not terms:
        return total, logloss, logloss.new_zeros(())
    decorrelation = torch.stack([term(output, step) for term in terms]).sum()
    return total + decorrelation, logloss, decorrelation


def _table_of_expert(tables: Literal["shared", "per-expert"] | Sequence[int], num_experts: int) -> list[int]:
    if tables == "shared":
        return [0] * num_experts
    if tables == "per-expert":
        return list(range(num_experts))
    if isinstance(tables, str):
        raise ValueError(f"DMoE.tables must be 'shared', 'per-expert' or a list of tables, got '{tables}'")
    numbers = list(tables)
    if len(numbers) != num_experts:
        raise ValueError(f"DMoE.tables names {len(numbers)} tables for {num_experts} experts")
    if sorted(set(numbers)) != list(range(len(set(numbers)))):
        raise ValueError(f"DMoE.tables must number the tables 0, 1, 2, …, got {numbers}")
    return numbers


def _table_widths(embedding_dim: int | Sequence[int], num_tables: int) -> list[int]:
    widths = [embedding_dim] * num_tables if isinstance(embedding_dim, int) else list(embedding_dim)
    if len(widths) != num_tables:
        raise ValueError(f"DMoE.embedding_dim lists {len(widths)} widths for {num_tables} tables")
    return widths


def _fields_of_experts(
    expert_fields: Sequence[Sequence[int] | None] | None, num_experts: int, num_fields: int
) -> list[list[int]]:
    if expert_fields is None:
        expert_fields = [None] * num_experts
    if len(expert_fields) != num_experts:
        raise ValueError(f"DMoE.expert_fields lists {len(expert_fields)} entries for {num_experts} experts")
    found = [list(range(num_fields)) if fields is None else list(fields) for fields in expert_fields]
    for index, own in enumerate(found):
        if not own or own != sorted(set(own)) or own[0] < 0 or own[-1] >= num_fields:
            raise ValueError(f"DMoE.expert_fields[{index}] must be rising numbers of {num_fields} fields, got {own}")
    return found


def _places_name(expert: int) -> str:
    """The buffer that says which of its table's fields an expert reads."""
    return f"places_of_expert_{expert}"


def _chosen(embeddings_BFD: Tensor, places_F: Tensor | None) -> Tensor:
    return embeddings_BFD if places_F is None else embeddings_BFD.index_select(1, places_F)


def _places(own: Sequence[int], held: Sequence[int]) -> list[int] | None:
    return None if list(own) == list(held) else [held.index(field) for field in own]


def _check_expert(index: int, expert: Expert, num_fields: int, width: int) -> None:
    for name, expected in (("num_fields", num_fields), ("embedding_dim", width)):
        actual = getattr(expert, name, expected)
        if actual != expected:
            raise ValueError(
                f"experts[{index}] ({type(expert).__name__}) was built with {name}={actual}, "
                f"but the model gives it {name}={expected}"
            )
