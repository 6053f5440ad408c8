"""From a configuration to the objective of a training, and to what is watched of several tasks."""

import math
from collections.abc import Mapping
from typing import Any

from dmoe.config.run import RunConfig
from dmoe.config.tasks import tasks_of
from dmoe.decorrelation.checks import ProcessGroup
from dmoe.errors import ConfigError, nearest
from dmoe.nn.build import build_terms
from dmoe.nn.model import DMoE
from dmoe.nn.objective import Objective
from dmoe.nn.task_losses import TaskLoss, TaskLosses
from dmoe.schema import Schema
from dmoe.training.log_facts import LogFacts


def make_objective(
    config: RunConfig, model: DMoE, schema: Schema, facts: LogFacts | None, group: ProcessGroup = None
) -> Objective:
    """The objective of a run; of one label without weights and domains it is eq. 12 as it stands.

    `group`: the processes that share each batch.
    """
    terms = build_terms(config.decorrelation, model, process_group=group)
    training = config.training
    if len(schema.tasks) == 1 and schema.weight is None and training.domain_weights == "rows":
        return Objective(terms, process_group=group)
    said = tasks_of(config.model.tasks, [task.name for task in schema.tasks])
    chains = [
        schema.chain(task.name) if own.loss == "entire-space" else ()
        for task, own in zip(schema.tasks, said, strict=True)
    ]
    factors = [1.0] * len(said)
    if training.balance == "entropy" and facts is not None:
        factors = entropy_factors(facts.rates, chains)
    return Objective(
        terms,
        process_group=group,
        tasks=TaskLosses(
            [TaskLoss(own.weight * factor, chain) for own, factor, chain in zip(said, factors, chains, strict=True)],
            balance="uncertainty" if training.balance == "uncertainty" else "fixed",
            domain_weights=training.domain_weights,
            num_domains=1 if schema.domain is None else len(schema.domain.names),
        ),
    )


def entropy_factors(rates: list[float], chains: list[tuple[int, ...]]) -> list[float]:
    """One over the entropy of each task's base rate, that of the joint label of a chain, scaled to mean 1."""
    joint = [
        math.prod(rates[link] for link in chain) if chain else rate for rate, chain in zip(rates, chains, strict=True)
    ]
    inverse = [1 / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)) for rate in joint]
    return [one * len(inverse) / sum(inverse) for one in inverse]


def check_tasks(config: RunConfig, schema: Schema) -> None:
    """Whether what a configuration says of tasks and domains fits the data.

    Raises: ConfigError naming the key.
    """
    names, training = [task.name for task in schema.tasks], config.training
    for name in training.monitor_tasks:
        if name not in names:
            raise ConfigError(f"training.monitor_tasks: no label '{name}' in the data{nearest(name, names)}")
    said = tasks_of(config.model.tasks, names)
    if not any(task.weight for task in said):
        raise ConfigError("model.tasks: every task has weight 0, so nothing would be learned; give one a weight")
    if training.balance != "fixed" and len(names) == 1:
        raise ConfigError(
            f"training.balance {training.balance} weighs several labels, and the data has one; leave it out"
        )
    if training.domain_weights == "equal" and schema.domain is None:
        raise ConfigError(
            "training.domain_weights equal needs domains, and the data has none; see 'domain' in data.yaml"
        )
    if training.negative_sampling_rate < 1:
        apart = [task.name for task in schema.tasks[1:] if 0 not in schema.chain(task.name)]
        if apart:
            raise ConfigError(
                f"training.negative_sampling_rate is of rows without {names[0]}, by which those of {apart[0]} are not "
                "told apart; prepare the data with a 'weight' column that undoes the sampling"
            )


def monitored_value(found: Mapping[str, Any], monitor: str, weights: Mapping[str, float]) -> float:
    """What training watches, higher being better: of several tasks the mean, weighted by `monitor_tasks`."""
    tasks = found.get("tasks", {"": found})
    values = {
        name: {"auc": one["auc"], "logloss": -one["logloss"], "auc-logloss": one["auc"] - one["logloss"]}[monitor]
        for name, one in tasks.items()
    }
    if len(values) == 1:
        return float(next(iter(values.values())))
    counts = {name: weights.get(name, 0.0) if weights else 1.0 for name in values}
    return float(sum(counts[name] * value for name, value in values.items()) / sum(counts.values()))
