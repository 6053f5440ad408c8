"""A logistic regression as sums over values: what each id adds to the logit, and each number.

Shape suffixes as in `dmoe.baselines.design`; V ids of all fields, E inner bounds of a numeric field's bins.
"""

from dataclasses import dataclass

import numpy as np

from dmoe.baselines.design import MOST_COLUMNS, Floats
from dmoe.baselines.models import Logistic
from dmoe.baselines.target import TargetEncoding
from dmoe.schema import MultiValuedField


@dataclass(frozen=True, slots=True)
class ByValue:
    """`weights_V` of the fields one after the other; for each numeric field its edges, the step at each, the slope."""

    weights_V: Floats
    bias: float
    edges: tuple[tuple[float, ...], ...]
    steps: tuple[tuple[float, ...], ...]
    slopes: tuple[float, ...]


def by_value(model: Logistic) -> ByValue | None:
    """None where the logit is no such sum: ids that are hashed, rates of lists of values."""
    inputs, weights_K = model.inputs, model.weights_K
    fields = inputs.schema.categorical
    if isinstance(inputs, TargetEncoding):
        if any(isinstance(field, MultiValuedField) for field in fields):
            return None
        weights_V = np.concatenate([*inputs.weights_of_ids(weights_K), np.zeros(0)])
        edges, rest = inputs.numbers.edges, weights_K[3 * len(fields) :]
    else:
        if sum(field.vocabulary_size for field in fields) > MOST_COLUMNS:
            return None
        weights_V, rest = weights_K[: inputs.id_columns], weights_K[inputs.id_columns :]
        edges = inputs.edges
    bias, steps, slopes = model.intercept, [], []
    for bounds in edges:
        bins, slope = rest[: len(bounds) + 1], rest[len(bounds) + 1]
        bias += float(bins[0])
        steps.append(tuple(np.diff(bins).tolist()))
        slopes.append(float(slope))
        rest = rest[len(bounds) + 2 :]
    return ByValue(weights_V, bias, edges, tuple(steps), tuple(slopes))
