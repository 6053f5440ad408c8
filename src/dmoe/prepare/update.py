"""New rows for a data set that models were trained on: no id moves, new tokens follow."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmoe.config.data import DataConfig, SplitRule
from dmoe.prepare.prepare import PrepareOptions, run
from dmoe.prepare.restart import recover
from dmoe.shards.folder import DataFolder
from dmoe.validation import validate


def update(
    data: Path, inputs: Sequence[str], output: Path | None = None, *, split: SplitRule | None = None, **options: Any
) -> dict[str, Any]:
    """Adds raw logs to the data set folder `data`; gives what summary.json then says.

    The result replaces `data`, or is made at `output` and leaves `data` as it is. The new rows are split by
    `split`, or as those of `data` were, on their own; their shards follow the old ones. Scalings and bucket edges
    stay. A token that `data` did not keep becomes one if the new training rows alone have it often enough.
    The keywords are those of `PrepareOptions`.

    Raises: as `prepare`.
    """
    recover(data)
    base = DataFolder.read(data)
    config = base.config().model_copy(update={"checks": None})
    if split is not None:
        values = {**config.model_dump(exclude_unset=True), "split": split.model_dump(exclude_unset=True)}
        config = validate(DataConfig, values, "--split")
    chosen = PrepareOptions(**options)
    if output is None or output.resolve() == data.resolve():
        output, chosen = data, replace(chosen, force=True)
    return run(config, inputs, output, base, chosen)
