"""Where training starts: given vectors, or an earlier run's weights on newly prepared data, whose vocabularies may
have grown or changed.

V table rows, S summed width of the tables.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmoe.errors import ConfigError
from dmoe.nn.model import DMoE
from dmoe.schema import FIRST_TOKEN_ID, OOV_ID, CategoricalField, Schema
from dmoe.shards.files import count_rows, find_parts
from dmoe.tokens.lookup import open_tokens
from dmoe.tokens.unseen import Finding, is_far_above, source_columns
from dmoe.tokens.vectors import read_vectors
from dmoe.tokens.vocabulary import AT_ONCE, read_counts, read_tokens
from dmoe.weights.run import Run


def set_given_vectors(model: DMoE, schema: Schema, data: Path) -> None:
    """Puts the given vectors of the data set folder `data` into the tables.

    Raises: DataError if a file is absent or does not fit the schema.
    """
    for index, field in enumerate(schema.categorical):
        if field.vectors is not None:
            model.embedding.set_vectors(index, torch.from_numpy(read_vectors(data, field)))


def warm_start(model: DMoE, schema: Schema, data: Path, run: Run) -> tuple[int, int]:
    """Copies the best weights of `run` into `model`, in place; how many tokens of the data it knew, of how many.
    `unknown_values` says how many of its training values those are.

    A row of a table goes where its token now is, whatever its id was; the rows of missing and unseen values keep
    their places; tokens that the earlier run did not know keep their initial rows, and given vectors that are not
    trained are those of the data. Statistics of the optimiser start anew.

    Raises: ConfigError if the fields or the shape of the model differ from those of the run.
    """
    _check_fields(schema, run)
    earlier = run.load_model()
    weights, own = earlier.state_dict(), model.state_dict()
    weights |= {name: own[name] for name in own if name.startswith(("calibration.", "linear."))}  # fitted to new rows
    tables = {f"embedding.{name}" for name in model.embedding.table_names()}
    differ = sorted(
        name
        for name in own.keys() | weights.keys()
        if name not in own or name not in weights or _shape(own, name, tables) != _shape(weights, name, tables)
    )
    if differ:
        raise ConfigError(
            f"--from {run.path}: its model has another shape ({differ[0]}); "
            "leave CONFIG out to continue with the run's own configuration"
        )
    kept = total = 0
    for index, (new, old) in enumerate(zip(schema.categorical, run.schema.categorical, strict=True)):
        if new.vocabulary_name != new.name:
            continue
        ids_new, ids_old = _shared_ids(new, data, old, run.path)
        kept += len(ids_new)
        total += new.vocabulary_size - FIRST_TOKEN_ID
        place, place_old = model.embedding.place(index), earlier.embedding.place(index)
        if place is None or place_old is None or (new.vectors is not None and not new.vectors.trainable):
            continue
        target = own[f"embedding.{place[0]}"][place[1]]
        source = weights[f"embedding.{place_old[0]}"][place_old[1]]
        target[:FIRST_TOKEN_ID] = source[:FIRST_TOKEN_ID]
        target[torch.from_numpy(ids_new)] = source[torch.from_numpy(ids_old)]
    model.load_state_dict({**weights, **{name: own[name] for name in tables}})
    return kept, total


def unknown_values(schema: Schema, data: Path, run: Run) -> list[Finding]:
    """The fields of which far more training values are no tokens of `run`, or are missing, than its rows showed."""
    columns = source_columns(schema)
    rows = count_rows(find_parts(data, "train", schema))
    found = []
    for field in schema.fields:
        known = run.schema.coverage.get(field.name)
        if known is None:
            continue
        if isinstance(field, CategoricalField) and field.vocabulary_name == field.name:
            old = next(one for one in run.schema.categorical if one.name == field.name)
            counts = read_counts(data, field)
            unseen, values = int(counts[_ids_in(run.path, old, data, field) == OOV_ID].sum()), int(counts.sum())
            if is_far_above(unseen, values, known.expected_unseen):
                column = columns.get(field.name, field.name)
                found.append(Finding(field.name, column, "unseen", unseen, values, known.expected_unseen))
        missing = round(rows * schema.coverage[field.name].missing["train"]) if field.name in schema.coverage else 0
        if is_far_above(missing, rows, known.expected_missing):
            column = columns.get(field.name, field.name)
            found.append(Finding(field.name, column, "missing", missing, rows, known.expected_missing))
    return found


def _shape(tensors: Mapping[str, Tensor], name: str, tables: Collection[str]) -> torch.Size:
    """That of a tensor; of a table, whose rows may have become more, without their number."""
    return tensors[name].shape[1:] if name in tables else tensors[name].shape


def _shared_ids(
    new: CategoricalField, data: Path, old: CategoricalField, run: Path
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ids, now and then, of the tokens that both vocabularies hold."""
    # Yesterday's type may be another: its tokens are what it makes of today's.
    ids_old = _ids_in(run, old, data, new, old.values.token)
    kept = np.flatnonzero(ids_old != OOV_ID)
    return kept + FIRST_TOKEN_ID, ids_old[kept]


def _ids_in(
    run: Path,
    old: CategoricalField,
    data: Path,
    new: CategoricalField,
    token: Callable[[str], str] = str,
) -> npt.NDArray[np.int64]:
    """For each token of `data`, of which `token` is taken: its id in the vocabulary of `run`, (K,)."""
    known, tokens = open_tokens(run, old), read_tokens(data, new)
    parts = (tokens[start : start + AT_ONCE].to_pylist() for start in range(0, len(tokens), AT_ONCE))
    return np.concatenate([np.empty(0, np.int64), *(known.ids([token(text) for text in part]) for part in parts)])


def _check_fields(schema: Schema, run: Run) -> None:
    for kind in ("categorical", "numeric"):
        names = [[field.name for field in getattr(one, kind)] for one in (schema, run.schema)]
        if names[0] != names[1]:
            raise ConfigError(
                f"--from {run.path}: its {kind} fields are {', '.join(names[1]) or 'none'}, those of the data are "
                f"{', '.join(names[0]) or 'none'}; prepare the data with the same fields in the same order"
            )
    transforms = [[field.transform for field in one.numeric] for one in (schema, run.schema)]
    if transforms[0] != transforms[1]:
        raise ConfigError(
            f"--from {run.path}: a numeric field has another transform; prepare the data with the same one"
        )
