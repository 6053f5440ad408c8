"""From configuration to modules, so that no module has to hold a configuration."""

from collections.abc import Sequence
from typing import Any, assert_never

import torch

from dmoe.config.model import GateConfig, ModelConfig
from dmoe.config.run import DecorrelationConfig
from dmoe.config.tasks import ScaleConfig, TaskConfig, copies, heads_of, sizes_of, tasks_of
from dmoe.decorrelation import BarlowTwinsLoss, CorrLoss, CovLoss, VICRegLoss
from dmoe.decorrelation.checks import ProcessGroup
from dmoe.decorrelation.losses import PairLoss
from dmoe.distributed.world import World
from dmoe.errors import ConfigError, nearest
from dmoe.nn.experts import DNN, Expert, expert_class
from dmoe.nn.experts.options import check_experts, check_options
from dmoe.nn.levels import LevelPlan
from dmoe.nn.model import DMoE
from dmoe.nn.objective import DecorrelationTerm
from dmoe.nn.personal import ScalePlan
from dmoe.nn.tables.bank import TokenField
from dmoe.schema import FIRST_TOKEN_ID, CategoricalField, MultiValuedField, NumericField, Schema

_STORAGE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_model(config: ModelConfig, schema: Schema, *, seed: int, world: World | None = None) -> DMoE:
    """The model of `config` for rows of `schema`, its weights drawn from `seed` alone.

    With a `world` of several processes each holds a part of the tables' rows.

    Raises: ConfigError if an expert rejects its options, or what is said of labels and domains does not fit the data's.
    """
    check_experts(config.experts, "configuration")
    tasks = tasks_of(config.tasks, [task.name for task in schema.tasks])
    domain = _domain(config, schema)
    num_tasks, num_domains = sizes_of(schema)
    owned = config.owned(num_tasks, num_domains)
    table_of_expert = config.table_of_expert(num_tasks, num_domains)
    dims = config.embedding_dim
    widths = dims if isinstance(dims, list) else [dims] * (max(table_of_expert) + 1)
    try:
        config.check_widths(num_tasks, num_domains)
        heads_of(config.heads, num_tasks, num_domains)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts: list[Expert] = []
        expert_fields: list[list[int] | None] = []
        for expert, (index, _) in enumerate(owned):
            options = {key: value for key, value in config.experts[index].items() if key not in ("count", "per")}
            kind = str(options.pop("kind"))
            asked = options.pop("fields", None)
            own = None if asked is None else chosen_fields(schema, asked, f"model.experts[{index}].fields")
            expert_fields.append(own)
            num_fields = len(schema.fields) if own is None else len(own)
            try:
                experts.append(expert_class(kind)(num_fields, widths[table_of_expert[expert]], **options))
            except ValueError as error:
                raise ConfigError(f"model.experts[{index}] ({kind}): {error}") from None
        levels = _levels(config, num_tasks, num_domains)
        table = config.gate.table
        try:
            model = DMoE(
                token_fields(schema),
                len(schema.numeric),
                widths,
                experts=experts,
                expert_fields=expert_fields,
                tables=table_of_expert,
                expert_units=config.expert_units,
                gate_units=config.gate.units,
                gate_table=[entry for entry, _ in owned].index(table) if isinstance(table, int) else table,
                gate_options=_gate_options(config, schema),
                tower_units=config.tower_units,
                tower_units_of_task=[_tower_units(config, task) for task in tasks],
                tower_dropout=config.tower_dropout,
                embedding_storage=_STORAGE[config.embedding_storage],
                form=config.form,
                first_order=config.first_order,
                linear=config.linear,
                num_tasks=num_tasks,
                domain=domain,
                heads=config.heads,
                owners=[owner for _, owner in owned],
                foreign=config.foreign,
                gates=config.gates,
                levels=levels,
                embedding_scale=_scale(config.embedding_scale, schema, "model.embedding_scale.fields"),
                tower_scale=_scale(config.tower_scale, schema, "model.tower_scale.fields"),
                domain_towers=config.domain_towers,
                world=world,
            )
        except ValueError as error:
            raise ConfigError(f"model: {error}") from None
        model.embedding.name_columns([field.name for field in schema.categorical for _ in range(field.length)])
        if config.field_std:
            model.embedding.spread_fields(config.field_std)
        return model


def token_fields(schema: Schema) -> list[TokenField]:
    """The fields with a vocabulary, as a model sees them."""
    places = {field.name: index for index, field in enumerate(schema.categorical)}
    fields = []
    for field in schema.categorical:
        several = isinstance(field, MultiValuedField)
        shares = places[field.shares] if isinstance(field, MultiValuedField) and field.shares is not None else None
        owner = field if shares is None else schema.categorical[shares]
        fields.append(
            TokenField(
                field.vocabulary_size,
                length=field.length,
                pooling=field.pooling if isinstance(field, MultiValuedField) else "mean",
                width=owner.embedding_dim if owner.vectors is None else owner.vectors.width,
                shares=shares,
                frozen=owner.vectors is not None and not owner.vectors.trainable,
                multi_valued=several,
            )
        )
    return fields


def chosen_fields(schema: Schema, asked: Sequence[str], where: str) -> list[int]:
    """The numbers of the fields that `asked` names, by themselves or by their groups; numeric fields come last.

    Raises: ConfigError for a name that is neither.
    """
    fields: list[CategoricalField | NumericField] = [*schema.categorical, *schema.numeric]
    known = {name for field in fields for name in (field.name, field.table_group) if name is not None}
    for name in asked:
        if name not in known:
            raise ConfigError(f"{where}: no field or group '{name}' in the data{nearest(name, known)}")
    chosen = [index for index, field in enumerate(fields) if field.name in asked or field.table_group in asked]
    if not chosen:
        raise ConfigError(f"{where}: name at least one field or group")
    return chosen


def _domain(config: ModelConfig, schema: Schema) -> tuple[int, tuple[int, ...]] | None:
    """The column that says a row's domain, and the domain of each of its ids.

    Raises: ConfigError if heads of domains are asked of data that has none.
    """
    column = schema.domain_column
    if schema.domain is not None and column is not None:
        return column, schema.domain.of_id
    if config.heads != "task":
        raise ConfigError(
            f"model.heads {config.heads} needs data whose domains are known: say domain: FIELD in data.yaml and "
            "prepare the data again, or set model.heads: task"
        )
    return None


def _scale(config: ScaleConfig | None, schema: Schema, where: str) -> ScalePlan | None:
    return None if config is None else ScalePlan(chosen_fields(schema, config.fields, where), config.units)


def _levels(config: ModelConfig, num_tasks: int, num_domains: int) -> list[LevelPlan]:
    """Raises: ConfigError if an expert rejects its options."""
    plans, width = [], config.expert_units
    for level, above in enumerate(config.levels):
        owned = copies(above.experts, num_tasks, num_domains)
        units = above.expert_units or config.expert_units
        experts: list[Expert] = []
        for entry, _ in owned:
            said = {key: value for key, value in above.experts[entry].items() if key not in ("kind", "count", "per")}
            where = f"model.levels[{level}].experts[{entry}]"
            check_options(DNN, said, where)
            try:
                experts.append(DNN(1, width, **said))
            except ValueError as error:
                raise ConfigError(f"{where}: {error}") from None
        gate = above.gate or config.gate
        options = _weighing(gate, units)
        plans.append(LevelPlan(experts, [owner for _, owner in owned], units, gate.units, options))
        width = units
    return plans


def _tower_units(config: ModelConfig, task: TaskConfig) -> list[int]:
    return config.tower_units if task.tower_units is None else task.tower_units


def _gate_options(config: ModelConfig, schema: Schema) -> dict[str, Any]:
    """What the gate is told beside its units and table.

    Raises: ConfigError for a field that the data does not have.
    """
    chosen = _weighing(config.gate, config.expert_units)
    if config.gate.fields is not None:
        chosen["fields"] = chosen_fields(schema, config.gate.fields, "model.gate.fields")
    return chosen


def _weighing(gate: GateConfig, expert_units: int) -> dict[str, Any]:
    chosen: dict[str, Any] = {"kind": gate.kind, "k": gate.k, "balance": gate.balance, "dropout": gate.dropout}
    if gate.balance_weight is not None:
        chosen["balance_weight"] = gate.balance_weight
    if gate.kind == "per-unit":
        chosen["expert_units"] = expert_units
    return chosen


def build_terms(
    configs: Sequence[DecorrelationConfig], model: DMoE, *, process_group: ProcessGroup = None
) -> list[DecorrelationTerm]:
    """The terms of eq. 12 that act; one with alpha = 0 is left out, so it cannot change a single bit.

    `process_group`: as for `CorrLoss`.

    Raises: ConfigError if the experts name no intermediate layers to pair, no gate mixes two, or domains are unknown.
    """
    terms = []
    for index, config in enumerate(configs):
        if config.alpha == 0:
            continue
        if config.location == "intermediate" and not _has_intermediates(model):
            raise ConfigError(
                f"decorrelation[{index}]: location 'intermediate' needs two experts that name inner layers "
                "(see `dmoe experts`); use location: output"
            )
        pairs = model.gated_pairs() if config.pairs == "gated" else None
        used = pairs if pairs is None or config.location == "levels" else pairs[-1:]
        if model.num_experts < 2 or (used is not None and all(one is not None and not one for one in used)):
            raise ConfigError(
                f"decorrelation[{index}]: no gate mixes two experts, so there is nothing to de-correlate; set "
                "pairs: all for experts that no gate mixes, or alpha: 0"
            )
        if config.within == "domain" and model.num_domains is None:
            raise ConfigError(
                f"decorrelation[{index}]: within: domain needs data whose domains are known: say domain: FIELD in "
                "data.yaml and prepare the data again, or leave it out"
            )
        terms.append(
            DecorrelationTerm(
                _loss(config, process_group),
                config.location,
                config.alpha,
                start_step=config.start_step,
                warmup_steps=config.warmup_steps,
                pairs=pairs,
                domains=model.num_domains if config.within == "domain" else None,
            )
        )
    return terms


def check_model(config: ModelConfig, terms: Sequence[DecorrelationConfig], schema: Schema) -> None:
    """Builds the model and the terms once with vocabularies of no tokens, so that no memory is spent on tables.

    Raises: ConfigError where `build_model` or `build_terms` would.
    """
    build_terms(terms, small_model(config, schema))


def small_model(config: ModelConfig, schema: Schema) -> DMoE:
    """The model with vocabularies of no tokens: all of it but the rows of its tables.

    Raises: ConfigError as `build_model`.
    """
    fields = [
        field.model_copy(update={"vocabulary_size": FIRST_TOKEN_ID}) if isinstance(field, CategoricalField) else field
        for field in schema.fields
    ]
    return build_model(config, schema.model_copy(update={"fields": tuple(fields)}), seed=0)


def _loss(config: DecorrelationConfig, group: ProcessGroup) -> PairLoss:
    if config.loss == "corr":
        return CorrLoss(
            norm="spectral" if config.norm == "spectral" else "frobenius", scale=config.scale, process_group=group
        )
    if config.loss == "cov":
        return CovLoss(norm="l2" if config.norm == "l2" else "l1", scale=config.scale, process_group=group)
    if config.loss == "barlow-twins":
        return BarlowTwinsLoss(process_group=group)
    if config.loss == "vicreg":
        return VICRegLoss(1.0 if config.variance_weight is None else config.variance_weight, process_group=group)
    assert_never(config.loss)


def _has_intermediates(model: DMoE) -> bool:
    """Whether two experts have inner layers to pair: tried on two rows of missing values."""
    embedding = model.embedding
    device = next(model.parameters()).device
    columns = sum(field.length for field in embedding.fields)
    ids_BC = torch.zeros(2, columns, dtype=torch.int32, device=device)
    numeric_BN = torch.zeros(2, embedding.num_numeric, device=device)
    was_training = model.training
    with torch.no_grad():
        output = model.eval()(ids_BC, numeric_BN)
    model.train(was_training)
    return bool(output.layers("intermediate"))
