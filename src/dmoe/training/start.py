"""The weights of an earlier run as the start of a new one, on data that has grown since."""

from pathlib import Path

import torch

from dmoe.config import RunConfig
from dmoe.data.vocabulary import read_vocabulary
from dmoe.errors import ConfigError, DataError
from dmoe.nn.model import DMoE
from dmoe.schema import CategoricalField, Schema
from dmoe.training.run import Run


def check_start(earlier: Run, config: RunConfig, data: Path) -> None:
    """Whether a model of `config` on the data set folder `data` can start from the weights of an earlier run.

    Raises: ConfigError if it is another model; DataError if the data are not an update of what it was trained on.
    """
    schema = Schema.read(data)
    if earlier.config.model != config.model:
        raise ConfigError(
            f"{earlier.path}: its model is another one; give --start-from with the configuration {earlier.path}"
            "/config.yaml, changed under 'training', 'optimiser' and 'decorrelation' only"
        )
    old, new = {field.name: field for field in earlier.schema.fields}, {field.name: field for field in schema.fields}
    for name in (*old, *new):
        before, after = old.get(name), new.get(name)
        if isinstance(before, CategoricalField) and isinstance(after, CategoricalField):
            fits = after.vocabulary_size >= before.vocabulary_size and after.edges == before.edges
        else:
            fits = before == after
        if not fits:
            raise _other_data(earlier, name)
    if list(old) != list(new):
        raise _other_data(earlier, next(a for a, b in zip(new, old, strict=True) if a != b))
    for before, after in zip(earlier.schema.categorical, schema.categorical, strict=True):
        now = read_vocabulary(data, after)
        if any(now.get(value) != identity for value, identity in read_vocabulary(earlier.path, before).items()):
            raise _other_data(earlier, after.name)


def start_from(model: DMoE, earlier: Run) -> None:
    """Gives `model` the weights of an earlier run; tokens that it did not have keep their initial rows."""
    trained = earlier.load_model()
    weights = trained.state_dict()
    table_VS, old_VS = model.embedding.weight.detach(), weights.pop("embedding.weight")
    with torch.no_grad():
        for index in range(len(earlier.schema.categorical)):
            rows, old_rows = model.embedding.field_rows(index), trained.embedding.field_rows(index)
            size = old_rows.stop - old_rows.start
            table_VS[rows.start : rows.start + size] = old_VS[old_rows]
    model.load_state_dict(weights, strict=False)


def _other_data(earlier: Run, field: str) -> DataError:
    return DataError(
        f"{earlier.path}: field '{field}' has other ids or values in this data set; --start-from needs the data set "
        "that the run was trained on, or one made of it by `dmoe prepare --update`"
    )
