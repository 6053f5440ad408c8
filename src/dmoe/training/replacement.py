"""Tokens replaced at random by the id of unseen ones while a model trains, so that it learns what "new" means.

Shape suffixes: B rows of a batch, C id columns, V rows of a vocabulary.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmoe.errors import ConfigError, nearest
from dmoe.schema import FIRST_TOKEN_ID, OOV_ID, Schema
from dmoe.shards.batch import Batch
from dmoe.training.log_facts import LogFacts

Array = npt.NDArray[Any]

# Keeps the stream of replacements apart from those that shuffle rows.
_STREAM = 0x756E7365


class Replacement:
    """Replaces tokens of batches by id 1.

    A token that train holds n times is replaced with probability κ/(κ + n): rare tokens more often, as a new one is
    more like them. κ is that of the field for which `rates` is the mean over the field's tokens in train.

    Args:
        rates: for each field by name, the share of its tokens to replace; by default none.
        facts: of the train split.
    """

    def __init__(self, schema: Schema, rates: Mapping[str, float], facts: LogFacts, seed: int) -> None:
        check_rates(rates, schema)
        self.seed = seed
        probabilities, offsets = [], []
        start = 0
        for number, (field, columns) in enumerate(zip(schema.categorical, schema.id_columns, strict=True)):
            probability_V = np.zeros(field.vocabulary_size, np.float32)
            if field.name in rates:
                counts_V, own_V = facts.vocabulary_counts(number), facts.counts[number]
                probability_V[FIRST_TOKEN_ID:] = replacement_probabilities(
                    counts_V[FIRST_TOKEN_ID:], own_V[FIRST_TOKEN_ID:], rates[field.name]
                )
            offsets += [start] * (columns.stop - columns.start)
            start += len(probability_V)
            probabilities.append(probability_V)
        self._probabilities = np.concatenate(probabilities) if probabilities else np.zeros(0, np.float32)
        self._offsets_C = np.array(offsets, np.int64)

    def __call__(self, batch: Batch, epoch: int, number: int, rows: int | None = None) -> Batch:
        """The batch with tokens replaced: a function of the seed, the epoch and the batch's number alone.

        `rows`: those of the whole batch, of which `batch` may be a share.
        """
        ids_BC = batch.ids_BC.numpy()
        generator = np.random.Generator(np.random.PCG64([self.seed, _STREAM, epoch, number]))
        drawn_BC = generator.random((len(batch) if rows is None else rows, ids_BC.shape[1]), dtype=np.float32)
        if batch.places_B is not None:
            drawn_BC = drawn_BC[batch.places_B.numpy()]
        replaced_BC = drawn_BC < self._probabilities[ids_BC + self._offsets_C]
        ids_BC = np.where(replaced_BC, np.int32(OOV_ID), ids_BC)
        return replace(batch, ids_BC=torch.from_numpy(ids_BC))


def check_rates(rates: Mapping[str, float], schema: Schema) -> None:
    """Raises: ConfigError for a name that is no field with tokens."""
    fields = {field.name: field for field in schema.categorical}
    for name in rates:
        if name not in fields:
            raise ConfigError(f"training.unseen: no field with a vocabulary is called '{name}'{nearest(name, fields)}")
        if fields[name].edges is not None:
            raise ConfigError(
                f"training.unseen: '{name}' has quantile buckets, and no value lies outside of them; leave it out"
            )


def replacement_probabilities(counts_V: Array, occurrences_V: Array, rate: float) -> Array:
    """κ/(κ + n) for tokens of counts n, their mean over `occurrences_V` being `rate`, below 1."""
    total = occurrences_V.sum()
    if total == 0 or rate <= 0:
        return np.zeros(len(counts_V))
    # The mean rises with κ: bisection on its logarithm.
    low, high = -40.0, 80.0
    for _ in range(80):
        middle = (low + high) / 2
        kappa = 2.0**middle
        if (occurrences_V * (kappa / (kappa + counts_V))).sum() / total < rate:
            low = middle
        else:
            high = middle
    found: Array = 2.0**high / (2.0**high + counts_V)
    return found
