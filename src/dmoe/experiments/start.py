"""From what a user asks for to an experiment folder."""

from collections.abc import Sequence
from pathlib import Path

from dmoe.errors import ConfigError
from dmoe.experiments import grid
from dmoe.experiments.folder import Asked, Folder, describe_data
from dmoe.experiments.planted import Truth


def start(
    names: Sequence[str], *, data: Path, output: Path, seeds: int, size: str = "auto", truth: Path | None = None
) -> Folder:
    """The folder `output`, with what is wanted noted in it.

    Args:
        names: experiments, or the groups `all` and `beyond`.
        size: a size that ships with the package, or `auto`.
        truth: the `.truth.json` of the generated log that `data` was prepared from.
    Raises: ConfigError for an unknown name or size, a missing truth, or a folder of other runs; DataError for data
    without the three splits, or a truth that is not of this log.
    """
    wanted = grid.expand(list(names))
    schema, splits = describe_data(data)
    if truth is None:
        if "planted" in names:
            raise ConfigError("planted: needs --truth, the .truth.json of the generated log")
        wanted = [name for name in wanted if not grid.grid(name).needs_truth]
    else:
        known = Truth.read(truth)
        rows = sum(one.rows for one in splits.values())
        if known.rows != rows:
            raise ConfigError(
                f"{truth}: is of a log of {known.rows} rows, but {data} holds {rows}; name the truth of this log"
            )
    if size == "auto":
        size = grid.size_for(schema, splits["train"].rows)
    grid.size(size)
    folder = Folder(output)
    folder.ask(
        Asked(
            data=str(data.resolve()),
            splits=splits,
            fields=len(schema.fields),
            tokens=sum(schema.vocabulary_sizes),
            size=size,
            seeds=seeds,
            names=tuple(wanted),
            truth=str(truth.resolve()) if truth else None,
        )
    )
    return folder
