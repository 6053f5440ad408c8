"""The model section of `run.yaml`, but for the options of experts (`nn.experts.options`)."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from dmoe.config.gates import BALANCES, TOP_1, TRAINS_TOP_1, Balance, GateKind
from dmoe.config.tasks import (
    Foreign,
    HeadKind,
    Owner,
    ScaleConfig,
    Strict,
    TaskConfig,
    check_copies,
    copies,
    sizes_of,
    tables_of_owners,
    without_defaults,
)
from dmoe.schema import Schema

# Keys of several labels or domains, which a configuration of one does not write out.
_OF_SEVERAL = (
    "heads", "gates", "foreign", "levels", "embedding_scale", "tower_scale", "domain_towers", "tasks",
)  # fmt: skip


class GateConfig(Strict):
    """The gate: Linear(units), ReLU, Linear(experts), then what `kind` says; see `dmoe.nn.gate.Gate`.

    `units`: of its hidden layer, or of several; 0 for none. `table`: its own, that of entry m of `experts`, that of the
    owner whose head it serves, or the sum of the owner's and of nobody's. `fields`: the fields that it reads, by name;
    by default all. `k`: experts that the top-k kinds keep. `balance`: a loss that spreads rows over experts. `dropout`:
    of experts.
    """

    kind: GateKind = "softmax"
    units: int | list[int] = 64
    table: Literal["own", "owner", "owner+shared"] | int = "own"
    fields: list[str] | None = Field(default=None, min_length=1)
    k: int | None = Field(default=None, ge=1)
    balance: Balance | None = None
    balance_weight: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _fits_kind(self) -> "GateConfig":
        least = 1 if isinstance(self.units, list) else 0
        if any(units < least for units in self.hidden_units) or self.units == []:
            raise ValueError(f"'gate.units' must be 0, a width or a list of widths, got {self.units}")
        if self.balance is not None and self.balance not in BALANCES[self.kind]:
            allowed = " or ".join(BALANCES[self.kind]) or "left out"
            raise ValueError(f"'gate.balance' of a {self.kind} gate must be {allowed}, got '{self.balance}'")
        if self.balance_weight is not None and self.balance is None:
            raise ValueError("'gate.balance_weight' needs gate.balance, the loss that it weighs")
        sparse = self.kind in ("top-k", "noisy-top-k")
        if sparse and self.k is None:
            raise ValueError(f"a {self.kind} gate needs 'gate.k', the number of experts that it keeps")
        if not sparse and self.k is not None:
            raise ValueError(f"'gate.k' is for top-k and noisy-top-k, not {self.kind}")
        if self.k == 1 and self.balance not in TRAINS_TOP_1:
            raise ValueError(f"'gate': {TOP_1}")
        return self

    @property
    def hidden_units(self) -> list[int]:
        """The widths of its hidden layers."""
        if isinstance(self.units, list):
            return self.units
        return [self.units] if self.units else []


class LevelConfig(Strict):
    """Experts above the first level: an `mlp` reads what the level below is mixed to (`dmoe.nn.levels`).

    `expert_units` and `gate` are by default the model's; a gate here has no table and no fields to choose.
    """

    experts: list[dict[str, Any]] = Field(min_length=1)
    expert_units: int | None = Field(default=None, ge=1)
    gate: GateConfig | None = None

    @model_validator(mode="after")
    def _above(self) -> "LevelConfig":
        for index, expert in enumerate(self.experts):
            if expert.get("kind") != "mlp":
                raise ValueError(f"experts[{index}] of a level must be of kind mlp, got {expert.get('kind')!r}")
        if self.gate is not None and (self.gate.table != "own" or self.gate.fields is not None):
            raise ValueError("a gate of a level reads what its head's experts are mixed to: leave out table and fields")
        return self


class ModelConfig(Strict):
    """Experts, the tables that they read, the gate and the tower; or one expert by itself, `form: benchmark`.

    An expert may say `fields`, the fields or groups of fields that it reads, beside its own options; `count`, how many
    of its kind there are; and `per`: `task` or `domain` for so many owned by each. With several labels, or domains,
    `heads` says who has a gate and a tower, `gates: one` makes all share a gate, `foreign` is what a gate does with
    another owner's expert (leaves it out; takes it, with a stopped gradient; takes it), `levels` has experts above
    these, and `tasks` is what a label, or `*`, is told (docs/tasks.md). `embedding_scale` and `tower_scale` name fields
    by which a row's embeddings, or the layers of its towers, are scaled; `domain_towers: star` has the towers of a
    task's domains share a factor.

    `field_std` is the spread of the vectors around which the rows of each field start; 0 starts all of them close to
    zero. `linear`: a logistic regression, fitted by itself, has the share of the logit that the valid split gives it.
    `shrinkage` is the count k of train at which a token's embedding is half its own and half that of unseen tokens.
    """

    embedding_dim: int | list[int] = 16
    embedding_storage: Literal["float32", "bfloat16", "float16"] = "float32"
    field_std: float = Field(default=0.0, ge=0, le=10)
    shrinkage: float = Field(default=0.0, ge=0, le=1e6)
    tables: Literal["shared", "per-expert", "per-owner"] | list[int] = "per-expert"
    experts: list[dict[str, Any]] = Field(
        default=[{"kind": "cin", "units": [276]}, {"kind": "crossnet", "layers": 3}], min_length=1
    )
    gate: GateConfig = GateConfig()
    expert_units: int = Field(default=500, ge=1)
    tower_units: list[int] = Field(default=[500])
    tower_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    form: Literal["mixture", "benchmark"] = "mixture"
    first_order: bool | None = None
    linear: bool = False
    heads: HeadKind = "task"
    gates: Literal["per-head", "one"] = "per-head"
    foreign: Foreign = "hidden"
    levels: list[LevelConfig] = Field(default=[])
    embedding_scale: ScaleConfig | None = None
    tower_scale: ScaleConfig | None = None
    domain_towers: Literal["own", "star"] = "own"
    tasks: dict[str, TaskConfig] = Field(default={})

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler(self), _OF_SEVERAL)

    @field_validator("experts")
    @classmethod
    def _have_kinds(cls, experts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for index, expert in enumerate(experts):
            if "kind" not in expert:
                raise ValueError(f"experts[{index}]: key 'kind' is missing, for example kind: crossnet")
            fields = expert.get("fields", [""])
            if not isinstance(fields, list) or not fields or not all(isinstance(one, str) for one in fields):
                raise ValueError(f"experts[{index}].fields must be a list of fields or groups, got {fields!r}")
        return experts

    @model_validator(mode="after")
    def _tables_fit(self) -> "ModelConfig":
        entries = len(self.experts)
        if isinstance(self.tables, list):
            if len(self.tables) != entries:
                raise ValueError(f"'tables' names {len(self.tables)} tables for {entries} experts")
            if sorted(set(self.tables)) != list(range(len(set(self.tables)))):
                raise ValueError(f"'tables' must number the tables 0, 1, 2, …, got {self.tables}")
        widths = self.embedding_dim if isinstance(self.embedding_dim, list) else [self.embedding_dim]
        if any(width < 1 for width in widths):
            raise ValueError(f"'embedding_dim' must be at least 1, got {self.embedding_dim}")
        if any(units < 1 for units in self.tower_units):
            raise ValueError(f"'tower_units' must be positive, got {self.tower_units}")
        if isinstance(self.gate.table, int) and not 0 <= self.gate.table < entries:
            raise ValueError(f"'gate.table' must be own or an expert from 0 to {entries - 1}")
        return self

    @model_validator(mode="after")
    def _owners_fit(self) -> "ModelConfig":
        check_copies(self.experts, self.heads)
        for level, above in enumerate(self.levels):
            check_copies(above.experts, self.heads, f"levels[{level}].experts")
        if self.has_owners and self.gates == "one" and self.foreign == "hidden":
            raise ValueError("'gates' one weighs all experts for all heads; set foreign: stopped or open, or per-head")
        if self.gate.table in ("owner", "owner+shared") and self.tables != "per-owner":
            raise ValueError(f"'gate.table' {self.gate.table} needs tables: per-owner")
        if self.gate.table in ("owner", "owner+shared") and self.gates == "one":
            raise ValueError(f"'gate.table' {self.gate.table} needs a gate for each head; set gates: per-head")
        if self.domain_towers == "star" and self.heads == "task":
            raise ValueError("'domain_towers' star needs a head for each domain; set heads: domain or task-and-domain")
        if not self.has_owners:
            self.check_widths(1, 1)
        return self

    def check_widths(self, num_tasks: int, num_domains: int) -> None:
        """Raises: ValueError for widths or a number of kept experts that do not fit the experts that there are."""
        tables = max(self.table_of_expert(num_tasks, num_domains)) + 1
        if isinstance(self.embedding_dim, list) and len(self.embedding_dim) != tables:
            raise ValueError(f"'embedding_dim' lists {len(self.embedding_dim)} widths for {tables} tables")
        num_experts = len(self.owned(num_tasks, num_domains))
        most = num_experts - 1 if self.gate.balance == "importance-load" else num_experts
        if self.gate.k is not None and self.gate.k > most:
            raise ValueError(f"'gate.k' must be at most {most} of {num_experts} experts here, got {self.gate.k}")

    @model_validator(mode="after")
    def _form_fits(self) -> "ModelConfig":
        if self.form == "mixture":
            if self.first_order is not None:
                raise ValueError("'first_order' is for form: benchmark")
            return self
        if len(self.experts) > 1 or self.experts[0].get("count", 1) > 1 or self.has_owners:
            raise ValueError(f"'form' benchmark is for one expert, got {len(self.experts)}")
        for name in ("gate", "expert_units", "tower_units", "tower_dropout", *_OF_SEVERAL):
            if getattr(self, name) != ModelConfig.model_fields[name].default:
                raise ValueError(f"'{name}' has no use in form: benchmark, which has no such layer; leave it out")
        return self

    @property
    def has_owners(self) -> bool:
        """Whether the number of experts depends on the data's tasks or domains."""
        entries = [*self.experts, *(expert for level in self.levels for expert in level.experts)]
        return any(expert.get("per") is not None for expert in entries)

    def owned(self, num_tasks: int = 1, num_domains: int = 1) -> list[tuple[int, Owner | None]]:
        """For each expert the entry of `experts` that it is a copy of, and its owner."""
        return copies(self.experts, num_tasks, num_domains)

    def mixed(self, schema: Schema) -> list[dict[str, Any]]:
        """For each expert whose outputs the heads mix, those of the last level, the entry that it is a copy of."""
        entries = self.levels[-1].experts if self.levels else self.experts
        return [entries[entry] for entry, _ in copies(entries, *sizes_of(schema))]

    @property
    def mixed_units(self) -> int:
        """The width of what the heads mix."""
        return (self.levels[-1].expert_units if self.levels else None) or self.expert_units

    def table_of_expert(self, num_tasks: int = 1, num_domains: int = 1) -> list[int]:
        """The table that each expert reads; the gate's own comes on top."""
        owned = self.owned(num_tasks, num_domains)
        if isinstance(self.tables, list):
            return [self.tables[entry] for entry, _ in owned]
        if self.tables == "per-owner":
            return tables_of_owners([owner for _, owner in owned])
        return [0 if self.tables == "shared" else index for index in range(len(owned))]
