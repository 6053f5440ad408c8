"""From what a user asks for to an experiment folder."""

from collections.abc import Sequence
from pathlib import Path

from dmoe.errors import ConfigError
from dmoe.experiments import grid
from dmoe.experiments.families import FAMILIES, check_family, family_arms, slices
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
    parts: Sequence[int] = (),
    changes: Sequence[str] = (),
    truth: Path | None = None,
) -> Folder:
    """The folder `output`, with what is wanted noted in it.

    Args:
        names: experiments, or the groups `all` and `beyond`.
        size: a size that ships with the package, or `auto`.
        parts: training rows of each part of the log that `growth` takes; by default those of the folder, or of
            `grid.default_parts`.
        changes: `key.path=value` words for the configuration of every cell.
        truth: the `.truth.json` of the generated log that `data` was prepared from.
    Raises: ConfigError for an unknown name, size or key, a missing truth, or a folder of other runs; DataError for data
    without the three splits, or a truth that is not of this log.
    """
    families = [name for name in FAMILIES if name in names]
    ordinary = grid.expand([name for name in names if name not in FAMILIES])
    wanted = [*ordinary, *families]
    schema, splits = describe_data(data)
    for name in families:
        check_family(name, schema)
    if truth is None:
        if "planted" in names:
            raise ConfigError("planted: needs --truth, the .truth.json of the generated log")
        ordinary = [name for name in ordinary if not grid.grid(name).needs_truth]
        wanted = [*ordinary, *families]
    else:
        known = Truth.read(truth)
        rows = sum(one.rows for one in splits.values())
        if known.rows != rows:
            raise ConfigError(
                f"{truth}: is of a log of {known.rows} rows, but {data} holds {rows}; name the truth of this log"
            )
    train_rows = splits["train"].rows
    if size == "auto":
        by_recipe = not set(ordinary) - {grid.GROWTH}
        size = grid.RECIPE if by_recipe else grid.size_for(schema, train_rows)
        if grid.GROWTH in wanted and size != grid.RECIPE:
            raise ConfigError(
                "growth: trains each part by its recipe, and other experiments train by a fixed size; give growth a "
                "folder of its own, or choose one --size for all"
            )
    known_parts = _parts(parts, wanted, train_rows, output)
    if any(change.startswith(_FIXED) for change in changes):
        raise ConfigError(f"--set {' '.join(changes)}: experts, tables, losses and seeds are what experiments vary")
    for name in families:
        for of in slices(name, schema):
            for one in family_arms(name, of, grid.size(size), tuple(changes), schema):
                one.cell(1, 1.0 if one.loss else None)
    for name in ordinary:
        for arm in grid.arms(name, grid.size(size), tuple(changes), known_parts, train_rows):
            arm.cell(1, 1.0 if arm.loss else None)
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
            parts=known_parts,
            changes=tuple(changes),
            truth=str(truth.resolve()) if truth else None,
        )
    )
    return folder


def _parts(asked: Sequence[int], wanted: Sequence[str], train_rows: int, output: Path) -> tuple[int, ...]:
    if grid.GROWTH not in wanted:
        if asked:
            raise ConfigError("--rows: only growth takes parts of the log; add growth, or leave it out")
        return ()
    for rows in asked:
        if not 1 <= rows <= train_rows:
            raise ConfigError(f"--rows {rows}: must be from 1 to {train_rows}, the rows of the train split")
    if not asked and Folder.is_one(output) and (earlier := Folder(output).asked.parts):
        return earlier
    return tuple(sorted({*asked})) or tuple(grid.default_parts(train_rows))
