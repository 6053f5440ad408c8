"""From configuration to modules, so that no module has to hold a configuration."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dmoe.config import DecorrelationConfig, ModelConfig
from dmoe.decorrelation import BarlowTwinsLoss, CorrLoss, CovLoss, VICRegLoss
from dmoe.errors import ConfigError
from dmoe.nn.experts import expert_class
from dmoe.nn.model import DecorrelationTerm, DMoE
from dmoe.schema import Schema
from dmoe.validation import nearest

_STORAGE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_model(config: ModelConfig, schema: Schema, *, seed: int) -> DMoE:
    """The model of `config` for rows of `schema`, its weights drawn from `seed` alone.

    Raises: ConfigError if an expert rejects its options.
    """
    num_fields = len(schema.categorical) + len(schema.numeric)
    table_of_expert = config.table_of_expert
    dims = config.embedding_dim
    widths = dims if isinstance(dims, list) else [dims] * config.num_tables
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts = []
        for index, options in enumerate(config.experts):
            options = dict(options)
            kind = str(options.pop("kind"))
            try:
                experts.append(expert_class(kind)(num_fields, widths[table_of_expert[index]], **options))
            except ValueError as error:
                raise ConfigError(f"model.experts[{index}] ({kind}): {error}") from None
        return DMoE(
            schema.vocabulary_sizes,
            len(schema.numeric),
            widths,
            experts=experts,
            tables=table_of_expert,
            expert_units=config.expert_units,
            gate_units=config.gate.units,
            gate_table=config.gate.table,
            gate_options=_gate_options(config, schema),
            tower_units=config.tower_units,
            tower_dropout=config.tower_dropout,
            embedding_storage=_STORAGE[config.embedding_storage],
        )


def _gate_options(config: ModelConfig, schema: Schema) -> dict[str, Any]:
    """What the gate is told beside its units and table.

    Raises: ConfigError for a field that the data does not have.
    """
    gate = config.gate
    chosen: dict[str, Any] = {"kind": gate.kind, "k": gate.k, "balance": gate.balance, "dropout": gate.dropout}
    if gate.balance_weight is not None:
        chosen["balance_weight"] = gate.balance_weight
    if gate.kind == "per-unit":
        chosen["expert_units"] = config.expert_units
    if gate.fields is not None:
        names = [*(field.name for field in schema.categorical), *(field.name for field in schema.numeric)]
        for name in gate.fields:
            if name not in names:
                raise ConfigError(f"model.gate.fields: no field '{name}' in the data{nearest(name, names)}")
        if len(set(gate.fields)) < len(gate.fields):
            raise ConfigError(f"model.gate.fields: names a field twice, got {gate.fields}")
        chosen["fields"] = [names.index(name) for name in gate.fields]
    return chosen


def build_terms(configs: Sequence[DecorrelationConfig], model: DMoE) -> list[DecorrelationTerm]:
    """The terms of eq. 12 that act; one with alpha = 0 is left out, so it cannot change a single bit.

    Raises: ConfigError if the experts name no intermediate layers to pair.
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
        terms.append(
            DecorrelationTerm(
                _loss(config),
                config.location,
                config.alpha,
                start_step=config.start_step,
                warmup_steps=config.warmup_steps,
            )
        )
    return terms


def _loss(config: DecorrelationConfig) -> nn.Module:
    if config.loss == "corr":
        return CorrLoss(norm="spectral" if config.norm == "spectral" else "frobenius", scale=config.scale)
    if config.loss == "cov":
        return CovLoss(norm="l2" if config.norm == "l2" else "l1", scale=config.scale)
    if config.loss == "barlow-twins":
        return BarlowTwinsLoss()
    return VICRegLoss(1.0 if config.variance_weight is None else config.variance_weight)


def _has_intermediates(model: DMoE) -> bool:
    """Whether two experts have inner layers to pair: tried on two rows of missing values."""
    embedding = model.embedding
    device = embedding.weight.device
    ids_BC = torch.zeros(2, len(embedding.vocabulary_sizes), dtype=torch.int32, device=device)
    numeric_BN = torch.zeros(2, embedding.num_numeric, device=device)
    was_training = model.training
    with torch.no_grad():
        output = model.eval()(ids_BC, numeric_BN)
    model.train(was_training)
    return bool(output.layers("intermediate"))
