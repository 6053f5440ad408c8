"""The data configuration that the schema of a folder carries, by which raw rows are read again."""

from pathlib import Path

from dmoe.config.data import DataConfig
from dmoe.config.fields import MultiValuedOptions, NumericOptions, PretrainedOptions
from dmoe.errors import DataError
from dmoe.schema import AnyField, MultiValuedField, NumericField, Schema
from dmoe.validation import validate_stored


def stored_config(schema: Schema, folder: Path) -> DataConfig:
    """What the data of a schema were prepared with.

    Raises: DataError if schema.json does not hold it, or other fields and labels than it makes.
    """
    where = folder / "schema.json"
    config = validate_stored(DataConfig, schema.source, f"{where}: source")
    _same(where, "fields", config.fields.names(), [field.name for field in schema.fields])
    _same(where, "labels", list(config.tasks), [task.name for task in schema.tasks])
    for field in schema.fields:
        if not _makes(config, field):
            raise DataError(f"{where}: source makes another field of '{field.name}' than fields says; it was changed")
    return config


def _same(where: Path, what: str, made: list[str], said: list[str]) -> None:
    if made != said:
        one = next(iter({*made} ^ {*said}), said[0])
        raise DataError(f"{where}: source makes other {what} than {what} says, as '{one}'; it was changed")


def _makes(config: DataConfig, field: AnyField) -> bool:
    """Whether a field is of the kind that its options make."""
    options = config.fields.options(field.name)
    if isinstance(field, NumericField):
        return isinstance(options, NumericOptions) and options.transform == field.transform
    if isinstance(field, MultiValuedField):
        return isinstance(options, MultiValuedOptions) and (
            (options.max_length, options.shares) == (field.max_length, field.shares)
        )
    if isinstance(options, MultiValuedOptions) or (field.vectors is None) == isinstance(options, PretrainedOptions):
        return False
    if not isinstance(options, NumericOptions):
        return field.edges is None
    return options.makes_tokens and (field.edges is None) == (options.transform != "quantile")
