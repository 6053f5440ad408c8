"""The run folder that a training writes to: a new one, one that goes on, or one in the place of another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dmoe.config.data import HELD_OUT
from dmoe.config.run import RunConfig
from dmoe.disk.files import only_writer
from dmoe.disk.replaced import bring_back
from dmoe.distributed.world import World
from dmoe.errors import ConfigError, DataError, Interrupted
from dmoe.evaluation.evaluate import check_split
from dmoe.nn.build import build_model, check_model
from dmoe.schema import Schema
from dmoe.training.objective import check_tasks
from dmoe.training.warm_start import set_given_vectors, unknown_values, warm_start
from dmoe.weights.run import FirstWeights, Run


def open_run(
    config: RunConfig,
    schema: Schema,
    data: Path,
    output: Path,
    resume: bool,
    overwrite: bool,
    start: Run | None,
    splits: Sequence[str] = HELD_OUT,
) -> Run:
    """The run to go on with, or a new one."""
    if resume and (output / "config.yaml").is_file():
        run = Run.open(output)
        if run.config != config:
            raise ConfigError(
                f"{output / 'config.yaml'}: differs from the configuration given; resume with the same one "
                "(or none), or choose another --output"
            )
        run.data_folder(data)
        if (output / "metrics.json").is_file():
            raise DataError(f"{output}: this run is complete; there is nothing to resume")
        run.check_rows(data)
        return run
    check_asked(config, schema, data, splits)
    first = first_weights(config, schema, data, start) if start else None
    if not (overwrite and (output / "config.yaml").is_file()):
        return Run.create(output, config, schema, data, first)
    with only_writer(output), earlier_run_back(Run(output), World()):
        _without_attempt(output)
        return Run.create(output, config, schema, data, first, replace=True)


def _without_attempt(output: Path) -> None:
    """Undoes an earlier attempt to replace a run, if it was ended before it had weights."""
    if not Run(output).weights.is_file():
        bring_back(output)


@contextmanager
def earlier_run_back(run: Run, world: World) -> Iterator[None]:
    """Puts the run that was replaced back if the new one fails before it has weights."""
    try:
        yield
    except Interrupted:
        raise
    except BaseException:
        if world.is_first:
            _without_attempt(run.path)
        raise


def check_asked(config: RunConfig, schema: Schema, data: Path, splits: Sequence[str]) -> None:
    """Whether the configuration fits the data and the memory, before anything is made or written.

    Raises: ConfigError, DataError.
    """
    check_splits(data, splits, len(config.model.mixed(schema)))
    with memory_suffices():
        check_model(config.model, config.decorrelation, schema)
    check_tasks(config, schema)


@contextmanager
def memory_suffices() -> Iterator[None]:
    """Around what makes a model or its optimisers.

    Raises: ConfigError where there is too little memory for it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch has no class of its own for it on the CPU
        signs = ("allocate memory", "out of memory")
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
            raise
        raise ConfigError(
            "the model and its optimisers take more memory than there is; lower model.embedding_dim or the experts' "
            "units, set model.embedding_storage: bfloat16, or prepare the data with a larger min_count"
        ) from None


def first_weights(config: RunConfig, schema: Schema, data: Path, start: Run) -> FirstWeights:
    """The weights of an earlier run as those that this one starts from.

    Raises: DataError if its fields are others.
    """
    model = build_model(config.model, schema, seed=config.training.seed)
    set_given_vectors(model, schema, data)
    kept, tokens = warm_start(model, schema, data, start)
    return FirstWeights(start.path, kept, tokens, unknown_values(schema, data, start), model.state_dict())


def check_splits(data: Path, splits: Sequence[str], num_experts: int) -> None:
    """What the evaluations need of the data, said before an epoch is spent; only test may be absent.

    Raises: DataError.
    """
    check_split(data, "train", 1)
    for split in splits:
        if split == "valid" or (data / split).is_dir():
            check_split(data, split, num_experts)
