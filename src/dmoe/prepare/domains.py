"""Which domain each id of the domain's field is of, from its training rows."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from dmoe.config.labels import DomainRule
from dmoe.errors import DataError
from dmoe.schema import OOV_ID, CategoricalField, Domain, vocabulary_path

# Each may have a head of its own.
MOST_DOMAINS = 1000


def fit_domain(rule: DomainRule, field: CategoricalField, folder: Path, train_rows: int) -> Domain:
    """The values with `min_count` training rows or more, the most frequent first; all else is one domain together if it
    has training rows, or of the first.

    Raises: DataError if no value has as many, or too many have.
    """
    table = pq.read_table(vocabulary_path(folder, field.name))
    often = table.filter(np.asarray(table["count"]) >= rule.min_count)
    least = f"{rule.min_count:,} training row{'s' if rule.min_count > 1 else ''}"
    if not len(often):
        raise DataError(
            f"domain '{field.name}': no value has {least}, so there is no domain; "
            "lower domain.min_count, or leave 'domain' out"
        )
    if len(often) > MOST_DOMAINS:
        raise DataError(
            f"domain '{field.name}': {len(often):,} values have {least} or more, and at most {MOST_DOMAINS:,} domains "
            "can be; raise domain.min_count, or name another field"
        )
    known_rows = int(often["count"].to_numpy().sum())
    names = [str(value) for value in often["value"].to_pylist()]
    of_id = np.zeros(field.vocabulary_size, dtype=np.int64)
    if known_rows < train_rows:
        of_id[:] = len(names)
        names.append("other" if "other" not in names else "(other)")
    of_id[often["id"].to_numpy()] = np.arange(len(often))
    return Domain(field=field.name, names=tuple(names), of_id=tuple(of_id.tolist()))


def grown_domain(domain: Domain, vocabulary_size: int) -> Domain:
    """The same domains for a vocabulary with new tokens: they are where unseen values were before, as models know no
    others."""
    new = vocabulary_size - len(domain.of_id)
    return domain.model_copy(update={"of_id": (*domain.of_id, *[domain.of_id[OOV_ID]] * new)})
