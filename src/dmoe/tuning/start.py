"""From what a user asks for to a study: a new one, or the earlier one of the folder if it is the same."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from dmoe.config.data import HELD_OUT
from dmoe.config.run import RunConfig
from dmoe.disk.files import write_json
from dmoe.errors import ConfigError
from dmoe.nn.build import check_model
from dmoe.schema import Schema
from dmoe.shards.files import digest_of
from dmoe.training.log_facts import measure_log
from dmoe.training.objective import check_tasks
from dmoe.training.opening import check_splits
from dmoe.training.recipe import needs_facts, resolved
from dmoe.tuning.folder import ASKED, Asked, StudyFolder
from dmoe.tuning.space import Drawn, Number, Parameter, Space
from dmoe.tuning.study import check_stored, create, optuna_module
from dmoe.weights.run import choose_device


def start(
    base: RunConfig,
    space: Space,
    *,
    data: Path,
    output: Path,
    storage: str,
    name: str,
    seed: int,
    sampler: Literal["tpe", "random"],
    pruning: bool,
    tell: Callable[[str], None],
) -> StudyFolder:
    """The study folder at `output`, whose trials `storage` holds.

    The first trial of a new study is `base` itself, where the space holds it.

    Raises: ConfigError if an earlier study there is not of the same, naming what differs, or the configuration cannot
        be trained here; DataError if the data lack what is needed.
    """
    optuna_module()
    schema = Schema.read(data)
    asked = Asked(
        id=uuid.uuid4().hex,
        name=name,
        data=str(data.resolve()),
        data_digest=digest_of(data),
        config=base.values(),
        space=space.facts(),
        seed=seed,
        sampler=sampler,
        pruning=pruning,
    )
    folder = StudyFolder(output)
    if not StudyFolder.is_one(output):
        if output.exists() and (not output.is_dir() or any(one.name != ".lock" for one in output.iterdir())):
            raise ConfigError(f"{output}: exists and is no folder of `dmoe tune`; choose another --output")
        _check(base, schema, data)
        output.mkdir(parents=True, exist_ok=True)
    with folder.lock():
        if StudyFolder.is_one(output):
            earlier = StudyFolder.open(output).asked
            if difference := asked.differs(earlier):
                raise ConfigError(
                    f"{output}: is another study: {difference}; ask for the same, or choose another --output"
                )
            check_stored(earlier, storage)
            return folder
        create(asked, storage, _first(base, space, data, schema, tell))
        write_json(output / ASKED, asked.model_dump(mode="json"))
    return folder


def _check(base: RunConfig, schema: Schema, data: Path) -> None:
    """What would fail every trial, or the end of the study."""
    choose_device(base.training.device)
    check_model(base.model, base.decorrelation, schema)
    check_tasks(base, schema)
    check_splits(data, HELD_OUT, len(base.model.mixed(schema)))


def _first(base: RunConfig, space: Space, data: Path, schema: Schema, tell: Callable[[str], None]) -> Drawn | None:
    """The point of the space that is `base`, with what its recipe chooses for the log; None if it is not in it."""
    facts = measure_log(data, schema) if needs_facts(base) else None

    def whole(config: RunConfig) -> dict[str, Any]:
        return (resolved(config, facts) if facts else config).model_dump(mode="json")

    values = whole(base)
    missing: list[str] = []

    def suggest(parameter: Parameter) -> Number | str:
        if parameter.kind == "choice":
            for label in parameter.labels:
                try:
                    same = whole(space.config(base, {parameter.name: label})) == values
                except ConfigError:  # it needs others beside it
                    continue
                if same:
                    return label
        else:
            found = _at(values, parameter.key)
            if isinstance(found, int | float) and parameter.holds(found):
                return found
        missing.append(parameter.name)
        return parameter.ends()[0]

    point = space.draw(suggest)
    if missing:
        tell(f"no trial is the configuration itself: what it has for {', '.join(missing)} is not in the space")
        return None
    return point


def _at(values: Any, key: str) -> Any:
    """What stands at a dotted path, None if nothing does."""
    for part in key.split("."):
        if isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        elif isinstance(values, dict) and part in values:
            values = values[part]
        else:
            return None
    return values
