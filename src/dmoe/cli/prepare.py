"""`dmoe prepare`."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from dmoe.cli import completion
from dmoe.cli.common import JsonOption, print_json, show_path, stderr, warn
from dmoe.errors import ConfigError, Interrupted

HELP = """Turn raw logs into a data set folder: vocabularies and encoded Parquet shards.

Reads CSV, TSV (plain, or compressed by gzip, zstd, bzip2, xz or lz4) and Parquet. A folder stands for the data files
below it, and the names of its folders (day=2026-01-01) are columns. Rows that cannot be encoded go to
rejects.parquet, with file, line and reason; where they are not few or not by chance nothing is written. After Ctrl-C or
a kill the same command goes on where the work stopped.

\b
Examples:
  dmoe prepare --recipe criteo_numeric --input train.txt.gz --output data
  dmoe prepare --config data.yaml --input 'day-*.csv' --output data --split random,seed=3
  dmoe prepare --config data.yaml --input spark-output --output data
  dmoe prepare --config data.yaml --split given --input train=a.csv --input test=b.csv --output data
  dmoe prepare --config data.yaml --input log.csv --output data --engine spark --spark-master spark://host:7077
  dmoe prepare --update data --split given --input train=day-31.csv
"""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def command(
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            "-i",
            metavar="FILE",
            help="Raw log, folder or glob pattern; may be repeated. With split kind given: train=FILE and so on.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Data set folder to make; with --update by default that one.", show_default=False
        ),
    ] = None,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="Further raw logs, as a shell expands a pattern.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe of `dmoe recipes`.", show_default=False, autocompletion=completion.recipes),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A data.yaml of your own.", show_default=False)] = None,
    update: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Add the rows to this data set, as it was prepared: no id moves, new tokens follow.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="KIND[,key=value...]",
            help="Replace the split: ordered, random, stratified, time or given, as in random,train=0.7,valid=0.1,"
            "test=0.2 or time,column=hour.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of a random or stratified split.", show_default=False)
    ] = None,
    engine: Annotated[
        Literal["duckdb", "polars", "spark"],
        typer.Option(help="What counts, sorts and joins the values: every engine gives the same data set."),
    ] = "duckdb",
    spark_master: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where Spark runs; by default in this machine.", show_default=False),
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory to stay within, as in 2GB; the rest goes to disk.")] = "2GB",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; by default one per processor.", show_default=False)
    ] = None,
    max_rejects: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Rejected rows to put up with, whatever they are; by default at most 1 in 1,000, and only by chance.",
            show_default=False,
        ),
    ] = None,
    allow_rejects: Annotated[
        list[str] | None,
        typer.Option(metavar="REASON", help="Put up with all rows rejected for this reason; may be repeated."),
    ] = None,
    no_check: Annotated[
        bool,
        typer.Option("--no-check", help="Given splits need not be the published files that a recipe names."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing data set folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    from dmoe.prepare.prepare import prepare
    from dmoe.prepare.update import update as add

    if [recipe, config, update].count(None) != 2:
        raise ConfigError("give one of --recipe NAME, --config data.yaml and --update DATA")
    if output is None and update is None:
        raise ConfigError("give --output, the data set folder to make")
    if more and len(inputs) > 1:
        raise ConfigError(f"'{more[0]}': give every file its own --input, or all files after one --input")
    place = Path(str(output or update))
    files = [*inputs, *(more or [])]
    with _progress() as progress:
        options = {
            "engine": engine,
            "spark_master": spark_master,
            "memory_bytes": _bytes(memory),
            "threads": threads,
            "max_rejects": max_rejects,
            "allow_rejects": tuple(allow_rejects or ()),
            "force": force,
            "check": not no_check,
            "progress": progress,
        }
        try:
            if update is None:
                summary = prepare(_config(recipe, config, split, seed), files, place, **options)
            else:
                summary = add(update, files, output, split=_split(split, seed), **options)
        except KeyboardInterrupt:
            raise Interrupted(f"{place}: interrupted; the same command goes on from here") from None
    _show(summary, place)
    if as_json:
        print_json({"data": str(place), **summary})


_WORDS = {"read": "read {:,} rows", "count": "counted {:,} fields", "write": "wrote {:,} rows"}
_LINE_S = 10.0


@contextmanager
def _progress() -> Iterator[Callable[[str, int, float], None]]:
    """Shows the step at work, what of it is done, and the time that it will still take."""
    if not stderr.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        tasks = {step: progress.add_task(step, total=1.0, visible=False, start=False) for step in _WORDS}

        def report(step: str, done: int, share: float) -> None:
            progress.start_task(tasks[step])
            for other, task in tasks.items():
                progress.update(task, visible=other == step)
            progress.update(tasks[step], completed=share, description=_WORDS[step].format(done))

        yield report


def _lines() -> Callable[[str, int, float], None]:
    """The same for a log file: a line every `_LINE_S` seconds."""
    started: dict[str, tuple[float, float]] = {}
    said = time.monotonic()

    def report(step: str, done: int, share: float) -> None:
        nonlocal said
        now = time.monotonic()
        # An earlier run may have done the first part of the step.
        since, before = started.setdefault(step, (now, share))
        if now - said >= _LINE_S and share > before:
            left = timedelta(seconds=round((now - since) * (1 - share) / (share - before)))
            stderr.print(f"{_WORDS[step].format(done)}, {share:.0%} of this step, {left} left", markup=False)
            said = now

    return report


def _split(text: str | None, seed: int | None) -> Any:
    """The split of --split and --seed, None if neither is given."""
    from dmoe.config.data import parse_split

    if text is None:
        if seed is not None:
            raise ConfigError("--seed: with --update say --split too, as in --split random,seed=3")
        return None
    return _seeded(parse_split(text), seed)


def _seeded(split: Any, seed: int | None) -> Any:
    from dmoe.validation import validate

    if seed is None:
        return split
    return validate(type(split), {**split.model_dump(exclude_unset=True), "seed": seed}, "--seed")


def _config(recipe: str | None, path: Path | None, split: str | None, seed: int | None) -> Any:
    from dmoe.config.data import parse_split, read_data_config
    from dmoe.prepare.recipes import read_recipe
    from dmoe.validation import validate

    config = read_recipe(recipe) if recipe is not None else read_data_config(Path(str(path)))
    chosen = _seeded(config.split if split is None else parse_split(split), seed)
    values = {**config.model_dump(exclude_unset=True), "split": chosen.model_dump(exclude_unset=True)}
    return validate(type(config), values, "--split")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not match:
        raise ConfigError(f"--memory: '{text}' is no amount of memory; expected for example 2GB or 512MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _of_label(splits: dict[str, dict[str, int]]) -> dict[str, dict[str, Any]]:
    """Rows that know a label, in place of all rows."""
    return {
        name: {
            "rows": one["known"],
            "positives": one["positives"],
            "click_rate": one["positives"] / one["known"] if one["known"] else 0.0,
        }
        for name, one in splits.items()
    }


def _show(summary: dict[str, Any], output: Path) -> None:
    from dmoe.schema import Schema
    from dmoe.sources.rejects import HINTS, kind_of
    from dmoe.tokens.unseen import Finding

    table = Table(box=None, pad_edge=False)
    for heading in ("split", "rows", "positives", "click rate"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    shown = dict(Schema.read(output).source.get("split") or {}).get("label")
    counted = summary.get("labels", {}).get(shown)
    splits = summary["splits"] if counted is None else _of_label(counted["splits"])
    for name, split in splits.items():
        table.add_row(name, f"{split['rows']:,}", f"{split['positives']:,}", f"{split['click_rate']:.4f}")
    stderr.print(table)
    for name, label in summary.get("labels", {}).items():
        known, ones, unknown, odd = (
            sum(split[kind] for split in label["splits"].values())
            for kind in ("known", "positives", "unknown", "contradictions")
        )
        contradicting = f", {odd:,} of 1 where the one it is given is 0" if odd else ""
        stderr.print(f"{name}: {ones:,} of {known:,} rows, unknown in {unknown:,}{contradicting}", markup=False)
    if "domain" in summary:
        names = summary["domain"]["names"]
        shown = f"{', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
        stderr.print(f"{len(names)} domains of '{summary['domain']['field']}': {shown}", markup=False)
    rows = summary["updates"][-1]["rows"] if "updates" in summary else summary["rows"]
    stderr.print(
        f"{rows['read']:,} rows read, {rows['rejected']:,} rejected, {summary['seconds']:.1f} s "
        f"({summary['rows_per_second']:,} rows/s)"
    )
    empty = [file["path"] for file in summary["files"] if not file["encoded"] + file["rejected"]]
    if empty:
        held = f"{len(empty)} of {len(summary['files'])} input files hold no rows"
        stderr.print(f"  {held}, the first: {empty[0]}", markup=False)
    for one in summary["warnings"]:
        warn(one["text"])
    for reason, count in summary["rejects"].items():
        hint = HINTS.get(kind_of(reason))
        stderr.print(f"  {count:,} rejected: {reason}{f' ({hint})' if hint else ''}", markup=False)
    stderr.print(f"data set: {show_path(output)}", markup=False)
    if "updates" in summary:
        for one in summary["updates"][-1]["far_above"]:
            warn(Finding(**one).text_of_update())
