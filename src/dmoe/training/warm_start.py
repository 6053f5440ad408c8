"""Starting from an earlier run's weights on newly prepared data, whose vocabularies may have grown or changed.

V table rows, S summed width of the tables.
"""

from pathlib import Path

import numpy as np
import torch

from dmoe.data.vocabulary import read_vocabulary
from dmoe.errors import ConfigError
from dmoe.nn.model import DMoE
from dmoe.schema import FIRST_TOKEN_ID, CategoricalField, Schema
from dmoe.training.run import Run

_TABLES = "embedding.weight"


def warm_start(model: DMoE, schema: Schema, data: Path, run: Run) -> tuple[int, int]:
    """Copies the best weights of `run` into `model`, in place; how many tokens of the data it knew, of how many.

    A row of a table goes where its token now is, whatever its id was; the rows of missing and unseen values keep
    their places; tokens that the earlier run did not know keep their initial rows. Statistics of the optimiser
    start anew.

    Raises: ConfigError if the fields or the shape of the model differ from those of the run.
    """
    _check_fields(schema, run)
    weights = run.load_weights()
    own = model.state_dict()
    differ = sorted(
        name
        for name in own.keys() | weights.keys()
        if name != _TABLES and (name not in own or name not in weights or own[name].shape != weights[name].shape)
    )
    if differ or own[_TABLES].shape[1] != weights[_TABLES].shape[1]:
        raise ConfigError(
            f"--from {run.path}: its model has another shape ({(differ or [_TABLES])[0]}); "
            "leave CONFIG out to continue with the run's own configuration"
        )
    kept = total = 0
    first_new = first_old = 0
    for new, old in zip(schema.categorical, run.schema.categorical, strict=True):
        ids_new, ids_old = _shared_ids(new, data, old, run.path)
        target, source = own[_TABLES], weights[_TABLES]
        target[first_new : first_new + FIRST_TOKEN_ID] = source[first_old : first_old + FIRST_TOKEN_ID]
        target[torch.from_numpy(ids_new) + first_new] = source[torch.from_numpy(ids_old) + first_old]
        kept += len(ids_new)
        total += new.vocabulary_size - FIRST_TOKEN_ID
        first_new += new.vocabulary_size
        first_old += old.vocabulary_size
    model.load_state_dict({**weights, _TABLES: own[_TABLES]})
    return kept, total


def _shared_ids(
    new: CategoricalField, data: Path, old: CategoricalField, run: Path
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The ids, now and then, of the tokens that both vocabularies hold."""
    ids_old = read_vocabulary(run, old)
    pairs = [(id_, ids_old[token]) for token, id_ in read_vocabulary(data, new).items() if token in ids_old]
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


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
