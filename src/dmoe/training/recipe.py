"""`training.recipe: auto`: what a configuration leaves open, chosen by what the train split measures.

Every rule is in terms of its rows and tokens, never of a log's name; reasons and figures: docs/decisions/recipe.md.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmoe.baselines.design import MOST_COLUMNS
from dmoe.baselines.folder import MOST_ROWS
from dmoe.config.run import RunConfig
from dmoe.nn.model import DMoE
from dmoe.nn.tables.table import MultiTableEmbedding
from dmoe.training.log_facts import LogFacts
from dmoe.training.replacement import check_rates
from dmoe.validation import validate

# Alignment units and CIN's feature maps double with the rows from the first size on, up to the paper's.
_ROWS_OF_SMALL = 5_000_000
_SMALL_UNITS, _PAPER_UNITS = 64, 500
_SMALL_MAPS, _PAPER_MAPS = 32, 276
_PAPER_BATCH = 10_000
_PAPER_ALPHA = 10.0
_STEPS_AN_EPOCH = 400
_EVALUATIONS, _STEPS_TO_TELL = 4, 20
# The de-correlation of a small batch waits until the experts' outputs have a size.
_STEPS_BEFORE_LOSS = 150
_LR, _LR_OF_FEW_STEPS = 1e-3, 2e-3


def needs_facts(config: RunConfig) -> bool:
    """Whether train must be measured before a run of this configuration starts."""
    training = config.training
    rarity = config.optimiser.embedding_l2_rarity
    by_count = rarity > 0 or config.model.shrinkage > 0
    by_rate = training.balance == "entropy"
    return training.recipe == "auto" or bool(training.unseen) or training.base_rate or by_count or by_rate


def l2_scales(model: DMoE, facts: LogFacts, rarity: float) -> list[Tensor] | None:
    """For each table of rows, n^−rarity of every row, n ≥ 1 being its token's count; None if that is 1 throughout."""
    if rarity == 0:
        return None
    scales = []
    for bank in model.embedding.each_bank():
        if isinstance(bank.tables, MultiTableEmbedding):
            counts_V = np.concatenate([facts.vocabulary_counts(number) for number in bank.vocabularies])
            scales.append(torch.from_numpy(np.maximum(counts_V, 1.0) ** -rarity))
    return scales


def shrink(model: DMoE, facts: LogFacts, k: float) -> None:
    """Has rare tokens shrunk towards the unseen one while the model trains; no bucket of numbers is ever unseen."""
    fields = facts.schema.categorical
    counts = [facts.vocabulary_counts(number) if field.edges is None else None for number, field in enumerate(fields)]
    model.embedding.shrink(counts, k)


def resolved(config: RunConfig, facts: LogFacts) -> RunConfig:
    """The configuration with nothing left to choose: what it says stays, what it leaves out follows the rules.

    Raises: ConfigError if `training.unseen` names a field that has no tokens.
    """
    values = config.model_dump(mode="json")
    if config.training.recipe == "auto":
        _choose(config, values, facts.rows)
        _fill(values["model"], config.model.model_fields_set, linear=linear_fits(facts))
    if values["training"]["unseen"] == "auto":
        values["training"]["unseen"] = {name: round(rate, 4) for name, rate in facts.replacement_rates().items()}
    found = validate(RunConfig, values, "configuration")
    check_rates(found.training.unseen_rates, facts.schema)
    return found


def sized(config: RunConfig, rows: int) -> RunConfig:
    """The sizes of a run on so many training rows, before its log is measured; rates are left open."""
    values = config.values()
    if config.training.recipe == "auto":
        values = config.model_dump(mode="json")
        _choose(config, values, rows)
    return validate(RunConfig, values, "configuration")


def _choose(config: RunConfig, values: dict[str, Any], rows: int) -> None:
    model, training = values["model"], values["training"]
    _fill(
        training,
        config.training.model_fields_set,
        batch_size=batch_size(rows),
        patience=2,
        unseen="auto",
        base_rate=True,
        calibration="auto",
    )
    steps = -(-rows // training["batch_size"])
    _fill(training, config.training.model_fields_set, evaluations_per_epoch=evaluations_of(steps))
    mixture = config.model.form == "mixture"
    units = units_of(rows)
    _fill(model, config.model.model_fields_set, embedding_dim=8 if units < _PAPER_UNITS else 16)
    if mixture:
        _fill(model, config.model.model_fields_set, expert_units=units, tower_units=[units], field_std=0.1)
    for expert, said in zip(model["experts"], config.model.experts, strict=True):
        if expert["kind"] == "cin" and "units" not in said:
            expert["units"] = [maps_of(rows)]
    lr = _LR_OF_FEW_STEPS if steps < _STEPS_AN_EPOCH else _LR
    _fill(values["optimiser"], config.optimiser.model_fields_set, lr=lr)
    for term, given in zip(values["decorrelation"], config.decorrelation, strict=True):
        wait = 0 if training["batch_size"] >= _PAPER_BATCH else min(_STEPS_BEFORE_LOSS, steps // 3)
        _fill(
            term,
            given.model_fields_set,
            alpha=alpha_of(model["expert_units"]),
            start_step=wait,
            warmup_steps=wait,
        )


def _fill(section: dict[str, Any], said: set[str], **chosen: Any) -> None:
    section |= {key: value for key, value in chosen.items() if key not in said}


def linear_fits(facts: LogFacts) -> bool:
    """Whether a regression can learn from all rows of train, with a weight for each token."""
    entries = sum(field.vocabulary_size for field in facts.schema.categorical)
    return facts.rows <= MOST_ROWS and entries <= MOST_COLUMNS


def batch_size(rows: int) -> int:
    """At least 400 steps an epoch where that leaves batches of 256 rows, in powers of two up to the paper's 10,000."""
    size = 256
    while size * 2 <= rows / _STEPS_AN_EPOCH and size < 8192:
        size *= 2
    return size if size < 8192 else _PAPER_BATCH


def evaluations_of(steps: int) -> int:
    """Evaluations of an epoch of so many steps: a few steps between two of them tell nothing, and would end it."""
    return max(1, min(_EVALUATIONS, steps // _STEPS_TO_TELL))


def units_of(rows: int) -> int:
    """Units of the alignment layers and the tower."""
    return min(_PAPER_UNITS, _SMALL_UNITS * _growth(rows))


def maps_of(rows: int) -> int:
    """Feature maps of CIN."""
    return min(_PAPER_MAPS, _SMALL_MAPS * _growth(rows))


def _growth(rows: int) -> int:
    factor = 1
    while rows >= _ROWS_OF_SMALL * factor:
        factor *= 2
    return factor


def alpha_of(units: int) -> float:
    """The paper's alpha of 10 carried over to another width: the term of eq. 12 is alpha · rms(r) / units."""
    return round(_PAPER_ALPHA * units / _PAPER_UNITS, 3)
