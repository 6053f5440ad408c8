"""From what a user asks for to an experiment folder."""

from collections.abc import Sequence
from pathlib import Path

from dmoe.errors import ConfigError
from dmoe.experiments import grid
from dmoe.experiments.folder import Asked, Folder, describe_data
from dmoe.experiments.planted import Truth

# Keys that grids set themselves.
_FIXED = ("model.experts", "model.tables", "decorrelation", "training.seed")


def start(
    names: Sequence[str],
    *,
    data: Path,
    output: Path,
    seeds: int,
    size: str = "auto",
    changes: Sequence[str] = (),
    truth: Path | None = None,
) -> Folder:
    """The folder `output`, with what is wanted noted in it.

    Args:
        names: experiments, or the groups `all` and `beyond`.
        size: a size that ships with the package, or `auto`.
        changes: `key.path=value` words for the configuration of every cell.
        truth: the `.truth.json` of the generated log that `data` was prepared from.
    Raises: ConfigError for an unknown name, size or key, a missing truth, or a folder of other runs; DataError for data
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
    if any(change.startswith(_FIXED) for change in changes):
        raise ConfigError(f"--set {' '.join(changes)}: experts, tables, losses and seeds are what experiments vary")
    for name in wanted:
        grid.arms(name, grid.size(size), tuple(changes))[0].cell(1, 1.0)
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
            changes=tuple(changes),
            truth=str(truth.resolve()) if truth else None,
        )
    )
    return folder
