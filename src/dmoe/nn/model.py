"""D-MoE in the order of the paper (arXiv 2505.17925): tables, experts, gate, mixture, tower. (Loss: `nn.objective`.)

Shape suffixes: B rows, C id columns, N numeric fields, F fields, D embedding width, M experts,
H units of the alignment layer, W raw width of an expert.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dmoe.config.tasks import Foreign, HeadKind, HeadOf, Owner, heads_of
from dmoe.distributed.world import World
from dmoe.nn.aligned import AlignedExpert
from dmoe.nn.arrangement import (
    check_expert,
    chosen,
    fields_of_experts,
    gate_places,
    places_among,
    places_name,
    table_of_expert,
    table_widths,
)
from dmoe.nn.benchmark_form import BareExpert, BenchmarkHead
from dmoe.nn.calibration import LogitMap
from dmoe.nn.experts.base import Expert
from dmoe.nn.gate import Gate
from dmoe.nn.heads import Head, Stream, Trunk, added, gate_in_domain, in_domain, sources_of_gates, weigh_all
from dmoe.nn.levels import Level, LevelPlan, climb, mixed_by_level
from dmoe.nn.linear import LinearPart
from dmoe.nn.mlp import MLP, initialise_linear
from dmoe.nn.output import DMoEOutput, TaskOutput
from dmoe.nn.personal import (
    ScalePlan,
    StarLinear,
    StarTower,
    scale_tables,
    scales_of_tables,
    scales_of_towers,
)
from dmoe.nn.tables.bank import TokenField
from dmoe.nn.tables.fields import FieldEmbedding
from dmoe.nn.tables.lookup import TableRows


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
        gate_units: hidden units of the gate: of one layer, 0 for none, or of each of several.
        gate_table: "own", the expert whose table the gate reads, or of a model with owners "owner" or "owner+shared".
        gate_options: further keyword arguments of `Gate`: its kind, balance, dropout and fields.
        gate_embedding_dim: width of the gate's own table; by default that of the first table.
        tower_units: hidden units of the tower.
        tower_units_of_task: the same for each task by itself.
        embedding_storage: dtype in which the tables are kept; by default torch's default dtype.
        form: "mixture", or "benchmark": one interaction without alignment, gate and tower, whose outputs are summed
            or weighed to the logit as in the benchmark lineage (see docs/benchmark-form.md).
        first_order: in the benchmark form, one weight for each token and numeric field beside it (its own table of
            width 1); by default where the interaction's original has it.
        linear: a logistic regression beside the mixture, set after training; see `dmoe.nn.linear`.
        num_tasks: T labels, each with a logit.
        domain: the id column that says the domain of a row, and for each of its ids the domain, numbered from 0.
        heads: who has a gate and a tower: each "task", each "domain" (of one task) or each "task-and-domain".
        owners: for each expert the task or domain that it belongs to, None for nobody.
        foreign: what a gate does with another owner's experts: "hidden", "stopped" or "open"; see `dmoe.nn.heads`.
        gates: "per-head", or "one" for all heads.
        levels: further levels of experts, which read what the level below is mixed to; see `dmoe.nn.levels`.
        embedding_scale: fields of a row that scale its embeddings; see `dmoe.nn.personal`.
        tower_scale: the same for the layers of its towers.
        domain_towers: "own", each domain's towers by themselves, or "star", their weights times shared ones.
        world: processes that each hold a part of the tables' rows; by default one.

    With one expert there is no gate and no mixture: the "single expert" column of the paper's Table 1.

    Shape: ids (B, C) integer, one column a field and several for a multi-valued one, numeric (B, N) float; see
    `DMoEOutput`.
    Raises: ValueError for tables, widths or experts that do not fit together.
    """

    domain_of_id_V: Tensor | None

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
        gate_units: int | Sequence[int] = 64,
        gate_table: Literal["own", "owner", "owner+shared"] | int = "own",
        gate_options: Mapping[str, Any] | None = None,
        gate_embedding_dim: int | None = None,
        tower_units: Sequence[int] = (500,),
        tower_units_of_task: Sequence[Sequence[int]] | None = None,
        tower_dropout: float = 0.0,
        embedding_storage: torch.dtype | None = None,
        form: Literal["mixture", "benchmark"] = "mixture",
        first_order: bool | None = None,
        linear: bool = False,
        num_tasks: int = 1,
        domain: tuple[int, Sequence[int]] | None = None,
        heads: HeadKind = "task",
        owners: Sequence[Owner | None] | None = None,
        foreign: Foreign = "hidden",
        gates: Literal["per-head", "one"] = "per-head",
        levels: Sequence[LevelPlan] = (),
        embedding_scale: ScalePlan | None = None,
        tower_scale: ScalePlan | None = None,
        domain_towers: Literal["own", "star"] = "own",
        world: World | None = None,
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

        # Heads: one for each task, or for each task in each domain, and the experts that each mixes.
        self.num_tasks = num_tasks
        self.domain_column = None if domain is None else domain[0]
        self.num_domains = None if domain is None else max(domain[1]) + 1
        self.register_buffer("domain_of_id_V", None if domain is None else torch.tensor(domain[1]), persistent=False)
        self.head_of = heads_of(heads, num_tasks, self.num_domains or 1)
        owners = [None] * num_experts if owners is None else list(owners)
        if len(owners) != num_experts:
            raise ValueError(f"DMoE.owners lists {len(owners)} entries for {num_experts} experts")
        adds_shared = gate_table == "owner+shared"
        mixed_of = mixed_by_level(
            self.head_of, [owners, *(plan.owners for plan in levels)], foreign, adds_shared=adds_shared
        )
        self.mixed = mixed_of[0]
        if gates == "one" and any(len(mixed.experts) < num_experts for mixed in self.mixed):
            raise ValueError("DMoE.gates 'one' needs every expert in every gate: foreign 'stopped' or 'open'")
        self._several = several = len(self.head_of) > 1 or len(levels) > 0
        gated = [number for number, mixed in enumerate(self.mixed) if len(mixed.experts) > 1]
        self.gate_of = [0 if gates == "one" and n < len(self.head_of) else n for n in range(len(self.mixed))]

        # Tables (eq. 1, 6). The gates' own comes last (section 3.3).
        options = dict(gate_options or {})
        gate_fields: Sequence[int] | None = options.pop("fields", None)
        self.gate_reads: list[tuple[int, ...]] = [()] * len(self.mixed)
        if gated:
            self.gate_reads = sources_of_gates(gate_table, self.head_of, owners, self.table_of_expert, len(widths))
            if gate_table == "own":
                widths = [*widths, gate_embedding_dim or widths[0]]
                for field in range(num_fields) if gate_fields is None else gate_fields:
                    readers[field].add(len(widths) - 1)
        self.first_order_reads: int | None = None
        if form == "benchmark":
            if num_experts > 1 or several:
                raise ValueError(f"DMoE.form 'benchmark' is for one expert, got {num_experts}, and for one task")
            if experts[0].first_order if first_order is None else first_order:
                self.first_order_reads = len(widths)
                widths = [*widths, 1]
                for field in fields[0]:
                    readers[field].add(self.first_order_reads)
        self.embedding = FieldEmbedding(
            vocabulary_sizes, num_numeric, widths, readers=readers, storage=embedding_storage, world=world
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

        # Gate (eq. 9), one a head.
        def gate_of(number: int) -> Gate:
            held, places = gate_places(self.embedding, self.gate_reads[number], gate_fields)
            width = widths[self.gate_reads[number][0]]
            return Gate(len(held), width, len(self.mixed[number].experts), gate_units, fields=places, **options)

        # Tower (eq. 4, 11).
        def tower_of(head: HeadOf) -> MLP:
            units = tower_units if tower_units_of_task is None else tower_units_of_task[head.task]
            return MLP(levels[-1].expert_units if levels else expert_units, units, dropout=tower_dropout)

        def output_of(tower: MLP) -> nn.Linear:
            output = nn.Linear(tower.out_features, 1)
            initialise_linear(output)
            return output

        if several:
            self.gates = nn.ModuleDict({str(n): gate_of(n) for n in gated if n in self.gate_of})
            self.levels = nn.ModuleList()
            width = expert_units
            for plan, mixed in zip(levels, mixed_of[1:], strict=True):
                self.levels.append(
                    Level(plan, width, self.head_of, mixed, adds_shared=adds_shared, one_gate=gates == "one")
                )
                width = plan.expert_units
            star = domain_towers == "star" and len(self.head_of) > num_tasks
            towers = [tower_of(head) for head in (self.head_of[:: self.num_domains] if star else self.head_of)]
            outputs = [output_of(tower) for tower in towers]
            if star:
                self.shared_towers, self.shared_outputs = nn.ModuleList(towers), nn.ModuleList(outputs)
                self.towers = nn.ModuleList(StarTower(towers[head.task]) for head in self.head_of)
                self.outputs = nn.ModuleList(StarLinear(outputs[head.task]) for head in self.head_of)
            else:
                self.towers, self.outputs = nn.ModuleList(towers), nn.ModuleList(outputs)
        else:
            self.gate = gate_of(0) if gated else None
            self.tower = MLP(experts[0].out_features, ()) if bare else tower_of(self.head_of[0])
            self.head = (
                BenchmarkHead(experts[0].out_features, experts[0].summed_features) if bare else output_of(self.tower)
            )

        # What a row's own fields scale, neutral at first.
        self.embedding_scales = self.tower_scales = None
        if embedding_scale is not None:
            self.embedding_scales = scales_of_tables(embedding_scale, self.embedding, sorted(set(self.table_of_expert)))
        if tower_scale is not None:
            reads = self.gate_reads[: len(self.head_of)]
            alone = [self.table_of_expert[mixed.experts[0]] for mixed in self.mixed]
            self.scale_reads = [tables[0] if tables else own for tables, own in zip(reads, alone, strict=False)]
            towers_of = list(self.towers) if several else [self.tower]
            width = levels[-1].expert_units if levels else expert_units
            self.tower_scales = scales_of_towers(tower_scale, self.embedding, self.scale_reads, towers_of, width)

        # After training: a regression's part of the logit, then from logits to calibrated ones.
        linears = [LinearPart(self.embedding.fields, num_numeric) for _ in range(num_tasks if linear else 0)]
        if num_tasks > 1:
            self.linears = nn.ModuleList(linears)
            self.calibrations = nn.ModuleList(LogitMap() for _ in range(num_tasks))
        else:
            self.linear = linears[0] if linears else None
            self.calibration = LogitMap()

    @property
    def mixed_experts(self) -> nn.ModuleList:
        """The experts whose outputs the heads mix: those of the last level."""
        levels = self._levels()
        return levels[-1].experts if levels else self.experts

    @property
    def num_levels(self) -> int:
        """How many levels of experts there are."""
        return 1 + len(self._levels())

    @property
    def table_of_mixed(self) -> Sequence[int | None]:
        """The table that each of them reads, None above the first level."""
        return [None] * self.num_experts if self._levels() else self.table_of_expert

    @property
    def num_experts(self) -> int:
        """How many experts the heads mix."""
        return len(self.mixed_experts)

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained, those of rows that other processes hold included."""
        elsewhere = sum((one.num_rows - len(one.weight)) * one.weight.shape[1] for one in self.embedding.row_tables())
        return elsewhere + sum(parameter.numel() for parameter in self.parameters())

    def forward(
        self, ids_BC: Tensor, numeric_BN: Tensor | None = None, rows: Sequence[TableRows] | None = None
    ) -> DMoEOutput:
        """`rows`: what a training step read of each of `embedding.row_tables`; by default the tables are read."""
        first = self.trunk(ids_BC, numeric_BN, rows)
        climbed = climb(first, self._streams(), self._levels())
        trunk, heads, domain_B = climbed.trunk, self.heads(), self.domain_of(ids_BC)
        scales = self._scales(first)

        # g = softmax(W_g(GE(x))), h = Σ_m g^(m) · o^(m), ŷ = Tower(h)        (eq. 9, 10, 11)
        gates, gate_loss = weigh_all([head.stream for head in heads], trunk)
        mixed = [head.stream.mixture(trunk.outputs, gate) for head, gate in zip(heads, gates, strict=True)]
        logits = [heads[n].predict(mixed_BH, scales[n] if scales else None) for n, mixed_BH in enumerate(mixed)]
        tasks = []
        for task in range(self.num_tasks):
            own = [number for number, head in enumerate(heads) if head.of.task == task]
            logit_B = in_domain([logits[number] for number in own], domain_B)
            if self.first_order_reads is not None:
                logit_B = logit_B + trunk.sources[self.first_order_reads].sum(dim=(1, 2))
            linear_B = None
            if not self.training:
                linear = self.linear_of(task)
                linear_B = None if linear is None else linear(ids_BC, numeric_BN)
                logit_B = self.calibrated(logit_B, linear_B, task)
            spread = [heads[number].stream.over_all(gates[number], self.num_experts) for number in own]
            gate = gate_in_domain(spread, domain_B, units=not self.training)
            tasks.append(TaskOutput(logit_B, gate.weights_BM, gate.unit_weights_BMH, linear_B))

        return DMoEOutput(
            logit=tasks[0].logit,
            expert_outputs=trunk.outputs,
            gate_weights=tasks[0].gate_weights,
            pre_activations=trunk.pre_activations,
            intermediates=trunk.intermediates,
            inputs=tuple(input_BFD.flatten(1) for input_BFD in trunk.inputs),
            unit_weights=tasks[0].unit_weights,
            gate_loss=added([*climbed.losses, gate_loss]),
            linear=tasks[0].linear,
            tasks=tuple(tasks),
            domain=domain_B,
            scales=scales,
            levels=climbed.outputs,
        )

    def trunk(self, ids_BC: Tensor, numeric_BN: Tensor | None, rows: Sequence[TableRows] | None = None) -> Trunk:
        """What all heads share: tables and the experts of the first level."""
        # e^(m) = E^(m)(x)                                                    (eq. 6)
        embeddings_TBFD = self.embedding(ids_BC, numeric_BN, rows)
        if self.embedding_scales is not None:
            embeddings_TBFD = scale_tables(self.embedding_scales, embeddings_TBFD)
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
        """From the trunk to logits, by task and then by domain."""
        if not self._several:
            return (Head(self.head_of[0], self._streams()[0], self.tower, self.head),)
        levels = self._levels()
        streams = levels[-1].streams() if levels else self._streams()
        own = zip(self.head_of, streams, self.towers, self.outputs, strict=True)
        return tuple(Head(of, stream, tower, output) for of, stream, tower, output in own)

    def _streams(self) -> list[Stream]:
        """Those of the first level: of the heads and, where a level above reads it, of nobody."""
        if not self._several:
            return [Stream(self.gate, self.gate_reads[0], self.mixed[0])]
        gates = [cast(Gate, self.gates[str(n)]) if str(n) in self.gates else None for n in self.gate_of]
        return [Stream(*one) for one in zip(gates, self.gate_reads, self.mixed, strict=False)]

    def _levels(self) -> list[Level]:
        return [cast(Level, level) for level in self.levels] if self._several else []

    def gated_pairs(self) -> list[frozenset[tuple[int, int]] | None]:
        """For each level the pairs of experts that some gate mixes, the smaller number first; None if those are all."""
        found: list[frozenset[tuple[int, int]] | None] = []
        levels = [(self.experts, self.mixed), *((level.experts, level.mixed) for level in self._levels())]
        for experts, streams in levels:
            pairs = {pair for mixed in streams for pair in combinations(mixed.experts, 2)}
            found.append(None if len(pairs) == math.comb(len(experts), 2) else frozenset(pairs))
        return found

    def domain_of(self, ids_BC: Tensor) -> Tensor | None:
        """The domain (B,) of each row, of a model that is told the domains."""
        if self.domain_column is None or self.domain_of_id_V is None:
            return None
        return self.domain_of_id_V.index_select(0, ids_BC[:, self.domain_column])

    def _scales(self, trunk: Trunk) -> tuple[tuple[Tensor, ...], ...]:
        """For each head those of its tower's layers, none of a model without."""
        if self.tower_scales is None:
            return ()
        own = zip(self.tower_scales, self.scale_reads, strict=True)
        return tuple(scale(trunk.sources[table]) for scale, table in own)

    def predict(self, mixed_BH: Tensor, output: DMoEOutput, task: int = 0) -> Tensor:
        """The logit (B,) of a task for mixtures of experts of the rows of `output`, by the towers of their domains."""
        logits = [
            head.predict(mixed_BH, output.scales[number] if output.scales else None)
            for number, head in enumerate(self.heads())
            if head.of.task == task
        ]
        return in_domain(logits, output.domain)

    def linear_of(self, task: int) -> LinearPart | None:
        """The linear part of a task, if the model has one."""
        if self.num_tasks == 1:
            return self.linear
        return cast(LinearPart, self.linears[task]) if len(self.linears) else None

    def calibration_of(self, task: int) -> LogitMap:
        """The map from a task's logits to calibrated ones."""
        return self.calibration if self.num_tasks == 1 else cast(LogitMap, self.calibrations[task])

    def calibrated(self, logit_B: Tensor, linear_B: Tensor | None, task: int = 0) -> Tensor:
        """The mixture's logit (B,) with the linear part's share, through the map that was fitted."""
        linear = self.linear_of(task)
        if linear is not None and linear_B is not None:
            logit_B = linear.mixed(logit_B, linear_B)
        mapped_B: Tensor = self.calibration_of(task)(logit_B)
        return mapped_B

    @torch.no_grad()
    def start_at(self, *rates: float) -> None:
        """Sets the last biases to the logit of each task's click rate: with small weights, it is predicted at first."""
        if len(rates) != self.num_tasks:
            raise ValueError(f"DMoE.start_at takes a rate for each of {self.num_tasks} tasks, got {len(rates)}")
        for head in self.heads():
            rate = rates[head.of.task]
            head.output.bias.fill_(math.log(rate / (1 - rate)))  # type: ignore[operator]
