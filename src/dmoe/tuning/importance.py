"""How much each parameter mattered: PED-ANOVA over the complete trials of a study.

Watanabe, Bansal and Hutter, IJCAI 2023 (arXiv 2304.10255), as Optuna has it: the share of the variation of good trials
among all that a parameter accounts for.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from dmoe.tuning.folder import Record
from dmoe.tuning.space import Parameter, Space
from dmoe.tuning.study import optuna_module

# Of fewer complete trials nothing can be said.
LEAST_TRIALS = 5


def importances(space: Space, records: Sequence[Record]) -> dict[str, float]:
    """The share of each parameter, together 1, the largest first; empty where trials are too few or all alike."""
    complete = [one for one in records if one.state == "complete"]
    if len(complete) < LEAST_TRIALS or len({one.value for one in complete}) < 2:
        return {}
    optuna = optuna_module()
    known = {one.name: one for one in space.parameters}
    study = optuna.create_study(direction="maximize")
    for record in complete:
        distributions = {name: _distribution(optuna, known[name]) for name in record.params}
        study.add_trial(
            optuna.trial.create_trial(params=dict(record.params), distributions=distributions, value=record.value)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found: dict[str, float] = optuna.importance.get_param_importances(study)
    return found


def _distribution(optuna: Any, parameter: Parameter) -> Any:
    of = optuna.distributions
    if parameter.kind == "choice":
        return of.CategoricalDistribution(parameter.labels)
    if parameter.kind == "int":
        return of.IntDistribution(parameter.low, parameter.high, parameter.log, int(parameter.step or 1))
    return of.FloatDistribution(parameter.low, parameter.high, parameter.log, parameter.step)
