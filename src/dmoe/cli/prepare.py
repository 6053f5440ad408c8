"""`dmoe prepare`."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dmoe.cli.common import JsonOption, print_json, show_path, stderr
from dmoe.errors import ConfigError

HELP = """Turn raw logs into a data set folder: vocabularies and encoded Parquet shards.

Reads CSV, TSV (plain or gzip) and Parquet. Rows that cannot be encoded go to rejects.parquet, with file, line and
reason; with more of them than --max-rejects nothing is written.

\b
Examples:
  dmoe prepare --recipe criteo_numeric --input train.txt.gz --output data
  dmoe prepare --config data.yaml --input 'day-*.csv' --output data --split random,seed=3
  dmoe prepare --config data.yaml --split given --input train=a.csv --input test=b.csv --output data
"""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Data set folder to make.", show_default=False)],
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            "-i",
            metavar="FILE",
            help="Raw log or glob pattern; may be repeated. With split kind given: train=FILE and so on.",
            show_default=False,
        ),
    ],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="Further raw logs, as a shell expands a pattern.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe of `dmoe recipes`.", show_default=False)] = None,
    config: Annotated[Path | None, typer.Option(help="A data.yaml of your own.", show_default=False)] = None,
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
    memory: Annotated[str, typer.Option(help="Memory to stay within, as in 2GB; the rest goes to disk.")] = "2GB",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; by default one per processor.", show_default=False)
    ] = None,
    max_rejects: Annotated[int, typer.Option(min=0, help="Rejected rows to put up with.")] = 1000,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing data set folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    from dmoe.data.prepare import prepare

    data_config = _config(recipe, config, split, seed)
    if more and len(inputs) > 1:
        raise ConfigError(f"'{more[0]}': give every file its own --input, or all files after one --input")
    with stderr.status("reading") as status:
        words = {"read": "read {:,} rows", "count": "counted {:,} fields", "write": "wrote {:,} rows"}
        summary = prepare(
            data_config,
            [*inputs, *(more or [])],
            output,
            memory_bytes=_bytes(memory),
            threads=threads,
            max_rejects=max_rejects,
            force=force,
            progress=lambda step, count: status.update(words[step].format(count)),
        )
    _show(summary, output)
    if as_json:
        print_json({"data": str(output), **summary})


def _config(recipe: str | None, path: Path | None, split: str | None, seed: int | None) -> Any:
    from dmoe.data.catalogue import read_recipe
    from dmoe.data.config import parse_split, read_data_config
    from dmoe.validation import validate

    if (recipe is None) == (path is None):
        raise ConfigError("give either --recipe NAME or --config data.yaml")
    config = read_recipe(recipe) if recipe is not None else read_data_config(Path(str(path)))
    chosen = config.split if split is None else parse_split(split)
    if seed is not None:
        chosen = validate(type(chosen), {**chosen.model_dump(exclude_unset=True), "seed": seed}, "--seed")
    values = {**config.model_dump(exclude_unset=True), "split": chosen.model_dump(exclude_unset=True)}
    return validate(type(config), values, "--split")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not match:
        raise ConfigError(f"--memory: '{text}' is no amount of memory; expected for example 2GB or 512MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _show(summary: dict[str, Any], output: Path) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("split", "rows", "positives", "click rate"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for name, split in summary["splits"].items():
        table.add_row(name, f"{split['rows']:,}", f"{split['positives']:,}", f"{split['click_rate']:.4f}")
    stderr.print(table)
    rows = summary["rows"]
    stderr.print(
        f"{rows['read']:,} rows read, {rows['rejected']:,} rejected, {summary['seconds']:.1f} s "
        f"({summary['rows_per_second']:,} rows/s)"
    )
    for reason, count in summary["rejects"].items():
        stderr.print(f"  {count:,} rejected: {reason}", markup=False)
    stderr.print(f"data set: {show_path(output)}", markup=False)
