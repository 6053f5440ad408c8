"""`dmoe init`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmoe.cli.common import JsonOption, PositiveOption, print_json, show_path, stderr, warn
from dmoe.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dmoe.inspection import Inspection

HELP = """Write a data.yaml and a run.yaml for a raw log, with comments, and print the next three commands.

The log is looked at as `dmoe inspect` does. What cannot be known from it is asked for: which column is the label, where
none has a usual name and several hold two values; and which of its values are a click, where they are neither 0 and 1
nor yes and no.

\b
Examples:
  dmoe init log.csv
  dmoe init 'day-*.csv.gz' --output clicks --label clicked
  dmoe init log.parquet --label click --label sale
  dmoe init ratings.tsv --label rating --positive 4 --positive 5
"""

_FILES = ("data.yaml", "run.yaml")
# A tenth of them, rounded half up, is a row to hold out.
_LEAST_OF_A_CLASS = 5


def command(
    inputs: Annotated[list[str], typer.Argument(metavar="LOG...", help="Raw logs, folders of them or glob patterns.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the two files, made if absent.")
    ] = Path(),
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="The label column, or several, the main one first.", show_default=False),
    ] = None,
    positive: PositiveOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Look at no more than so many rows.")] = 1_000_000,
    force: Annotated[bool, typer.Option("--force", help="Replace a data.yaml or run.yaml that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    from dmoe.config.data import DataConfig
    from dmoe.disk.files import written_aside
    from dmoe.inspection import inspect_log
    from dmoe.sources.inputs import expand_inputs
    from dmoe.training.first_config import first_config
    from dmoe.validation import validate

    paths = [output / name for name in _FILES]
    _check_place(output, paths, inputs, force)
    with stderr.status("reading"):
        found = inspect_log(inputs, label=label, positive=positive or (), max_rows=rows)
    if found.other_labels:
        names = ", ".join(repr(one) for one in [found.label, *found.other_labels][:8])
        raise ConfigError(
            f"{inputs[0]}: {names} hold two values each and none is named like a label; say which is by --label COLUMN"
        )
    _check_counts(str(inputs[0]), found, asked=bool(label))
    data = validate(DataConfig, found.config, "suggested data.yaml")
    learned = max(1, round(found.rows * getattr(data.split, "train", 0.8)))
    commands = _commands(inputs, output)
    run_text = first_config(max(1, len(data.labels)), learned)
    texts = (_data_text(found, commands[0]), f"# {_one_line(commands[1])}\n{run_text}")
    read = expand_inputs(inputs)
    output.mkdir(parents=True, exist_ok=True)
    for path, text in zip(paths, texts, strict=True):
        with written_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
    if expand_inputs(inputs) != read:  # a pattern that matches all
        for path in paths:
            path.unlink()
        raise ConfigError(f"{inputs[0]}: matches {paths[0]} too; choose another --output")
    if as_json:
        print_json(
            {
                "files": [str(path) for path in paths],
                "rows": found.rows,
                "labels": found.labels,
                "warnings": [one.text for one in found.warnings],
                "commands": commands,
            }
        )
        return
    part = "" if found.whole else " (the first of more)"
    stderr.print(f"{found.rows:,} rows{part}, {found.rejected:,} not readable", markup=False)
    for one in found.labels:
        if data.labels and one["name"] not in data.labels:
            warn(f"label '{one['name']}' is left out: too few rows of a class for a valid and a test split")
            continue
        rate = one["positives"] / one["known"]
        stderr.print(f"label '{one['name']}': 1 in {rate:.2%} of {one['known']:,} rows", markup=False)
    for warning in found.warnings:
        warn(warning.text)
    told = {warning.field for warning in found.warnings}
    for column in found.columns:
        if column.kind == "left out" and column.name not in told:
            warn(f"'{column.name}' is no field: {column.note}")
    stderr.print(f"written: {', '.join(map(show_path, paths))}; look at data.yaml, then:", markup=False)
    for line in commands:
        typer.echo(line)


def _check_place(output: Path, paths: Sequence[Path], inputs: Sequence[str], force: bool) -> None:
    """Raises: ConfigError if something is in the way; DataError if the files would be read as a part of the log."""
    from dmoe.sources.inputs import check_outside, expand_inputs

    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: is a file; --output is the folder for data.yaml and run.yaml")
    read = {path.resolve() for path in expand_inputs(inputs)}
    for path in paths:
        check_outside(path, inputs)
        if path.resolve() in read:
            raise ConfigError(f"{path}: is one of the inputs; choose another --output")
        if path.exists() and not force:
            raise ConfigError(f"{path}: exists already; give --force to replace it, or another --output")


def _check_counts(log: str, found: "Inspection", *, asked: bool) -> None:
    """Raises: DataError for labels of which no held-out split could be judged."""
    main = found.labels[0]
    counts = {1: main["positives"], 0: main["known"] - main["positives"]}
    rarer = min(counts, key=counts.__getitem__)
    if found.whole and counts[rarer] < _LEAST_OF_A_CLASS:
        raise DataError(
            f"{log}: label '{main['name']}' is {rarer} in {counts[rarer]} rows; at least {_LEAST_OF_A_CLASS} rows of "
            "each class are needed to train and to test, so give more rows or another --label"
        )
    if asked and found.rare_labels:
        raise DataError(
            f"{log}: label '{found.rare_labels[0]}' has too few rows of a class for a valid and a test split; leave "
            "it out, or give more rows"
        )


def _commands(inputs: Sequence[str], output: Path) -> list[str]:
    """Prepare, train, report: in folders that are not there yet, so that nothing is in their way."""
    data, run = _free(output / "data"), _free(output / "runs" / "first")
    report = _free(output / "report.html")
    given = [word for text in inputs for word in ("--input", text)]
    words = (
        ["prepare", "--config", str(output / "data.yaml"), *given, "--output", str(data)],
        ["train", str(output / "run.yaml"), "--data", str(data), "--output", str(run)],
        ["report", str(run), "--output", str(report)],
    )
    return [shlex.join(["dmoe", *one]) for one in words]


def _free(path: Path) -> Path:
    """The path itself, or with the first number at which nothing is."""
    number, free = 2, path
    while free.exists():
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return free


def _data_text(found: "Inspection", prepare: str) -> str:
    whole = f"all {found.rows:,} rows" if found.whole else f"the first {found.rows:,} rows"
    lines = [
        f"# {prepare}",
        f"# What the columns of the log are, found in {whole}. Columns that are not named are ignored.",
        "# Change what is wrong: an id among the numbers, a column that is not known when a row is shown.",
    ]
    text = "".join(f"{_one_line(line)}\n" for line in lines) + found.yaml()
    said = "\n".join(found.comments.values())
    warnings = [one.text for one in found.warnings if one.text not in said]
    if warnings:
        text += "# warnings:\n" + "".join(f"#   {_one_line(one)}\n" for one in warnings)
    return text + (
        "# further keys:\n"
        "#   weight: COLUMN  # how much a row counts\n"
        "#   domain: FIELD  # what tells placements or countries apart, each with a gate and tower of its own\n"
    )


def _one_line(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)
