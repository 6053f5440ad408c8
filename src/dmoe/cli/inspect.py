"""`dmoe inspect`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dmoe.cli.common import JsonOption, print_json, stderr, warn
from dmoe.errors import ConfigError

HELP = """Show what is in a raw log or a data set folder, and suggest a data.yaml.

For each column or field: kind, distinct values, missing values, bits that it tells about the label (mutual
information, the most telling first); and warnings of fields that give the label away, of copied rows and of a label
that drifts. The data.yaml goes to stdout, everything else to stderr.

\b
Examples:
  dmoe inspect log.csv > data.yaml
  dmoe inspect 'day-*.csv.gz' --label clicked --rows 5000000
  dmoe inspect data
"""


def command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA|FILE...", help="A data set folder, or raw logs, folders of them or glob patterns."
        ),
    ],
    label: Annotated[
        str | None,
        typer.Option(help="The label column; by default one of 0 and 1 with a usual name.", show_default=False),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Read at most so many rows of a raw log.")] = 1_000_000,
    as_json: JsonOption = False,
) -> None:
    if len(inputs) == 1 and (Path(inputs[0]) / "schema.json").is_file():
        if label is not None:
            raise ConfigError("--label goes with raw logs only: the data set knows its label")
        _inspect_data(Path(inputs[0]), as_json)
        return
    from dmoe.inspection import inspect_log

    with stderr.status("reading"):
        found = inspect_log(inputs, label=label, max_rows=rows)
    if as_json:
        print_json({**asdict(found), "data_yaml": found.yaml()})
        return
    table = _table("column", "kind", "distinct", "missing", "bits", "most frequent")
    for column in sorted(found.columns, key=lambda one: -one.information):
        kind = column.kind if column.format is None else f"{column.kind} ({column.format})"
        top = ", ".join(text if len(text) <= 20 else f"{text[:19]}…" for text, _ in column.top[:3])
        table.add_row(
            column.name, kind, f"{column.distinct:,}", f"{column.missing:.2%}", f"{column.information:.4f}", top
        )
    stderr.print(table)
    _print_rates([(start, rate) for start, _, rate in found.rates])
    part = "" if found.whole else " (the first of more)"
    stderr.print(
        f"{found.rows:,} rows{part}, {found.rejected:,} not readable; label '{found.label}', rate {found.rate:.4f}",
        markup=False,
    )
    for warning in found.warnings:
        warn(warning.text)
    typer.echo(found.yaml(), nl=False)


def _inspect_data(folder: Path, as_json: bool) -> None:
    import yaml

    from dmoe.inspection.contents import groups_of, information, read_contents
    from dmoe.inspection.leak_sample import suspicions
    from dmoe.schema import CategoricalField
    from dmoe.shards.folder import DataFolder

    data = DataFolder.read(folder)
    with stderr.status("reading"):
        contents = read_contents(data, groups_of(data))
    bits = information(contents[0])
    fields = sorted(data.schema.fields, key=lambda field: -bits[field.name])
    config = yaml.safe_dump(
        data.config().model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True, width=110
    )
    groups = [
        {"name": one.group.name, "rows": one.rows, "positives": one.positives, "blocks": one.blocks} for one in contents
    ]
    entries: list[dict[str, Any]] = [
        {"name": field.name, "information": bits[field.name], **data.summary["fields"][field.name]} for field in fields
    ]
    warnings = [one.values() for one in suspicions(data)]
    if as_json:
        print_json({"groups": groups, "fields": entries, "warnings": warnings, "data_yaml": config})
        return
    table = _table("field", "kind", "vocabulary", "missing in train", "unseen in test", "bits")
    for field, entry in zip(fields, entries, strict=True):
        size = f"{field.vocabulary_size:,}" if isinstance(field, CategoricalField) else ""
        unseen = entry.get("unseen", {}).get("test")
        table.add_row(
            field.name,
            field.kind,
            size,
            f"{entry['missing'].get('train', 0.0):.2%}",
            "" if unseen is None else f"{unseen:.2%}",
            f"{entry['information']:.4f}",
        )
    stderr.print(table)
    for one in contents:
        stderr.print(f"{one.group.name}: {one.rows:,} rows, label rate {one.positives / one.rows:.4f}", markup=False)
        _print_rates([("", positives / rows) for rows, positives in one.blocks])
    for warning in warnings:
        warn(warning["text"])
    typer.echo(config, nl=False)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        text = heading in ("column", "field", "kind", "most frequent")
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    return table


def _print_rates(rates: list[tuple[str, float]]) -> None:
    """The label rate over time as a row of bars."""
    values = [rate for _, rate in rates]
    top = max(values) or 1.0
    bars = "".join("▁▂▃▄▅▆▇█"[min(int(value / top * 8), 7)] for value in values)
    ends = f" from {rates[0][0]} to {rates[-1][0]}" if rates[0][0] else ""
    stderr.print(f"label rate{ends}: {bars} ({min(values):.4f} to {max(values):.4f})", markup=False)
