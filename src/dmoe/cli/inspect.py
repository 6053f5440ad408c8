"""`dmoe inspect`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dmoe.cli.common import JsonOption, PositiveOption, print_json, stderr, warn
from dmoe.errors import ConfigError

if TYPE_CHECKING:
    from dmoe.inspection.contents import Contents
    from dmoe.inspection.label_contents import LabelPair

HELP = """Show what is in a raw log or a data set folder, and suggest a data.yaml.

For each column or field: kind, distinct values, missing values, bits that it tells about the label (mutual
information, the most telling first); and warnings of fields that give the label away, of copied rows and of a label
that drifts. Of several labels also how often each is 1 where another is. The data.yaml goes to stdout, everything else
to stderr.

\b
Examples:
  dmoe inspect log.csv > data.yaml
  dmoe inspect 'day-*.csv.gz' --label clicked --rows 5000000
  dmoe inspect log.csv --label click --label sale > data.yaml
  dmoe inspect ratings.tsv --label rating --positive 4 --positive 5 > data.yaml
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
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="The label column, or several, the main one first; by default those of 0 and 1 with usual names.",
            show_default=False,
        ),
    ] = None,
    positive: PositiveOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Read at most so many rows of a raw log.")] = 1_000_000,
    as_json: JsonOption = False,
) -> None:
    if len(inputs) == 1 and (Path(inputs[0]) / "schema.json").is_file():
        if label or positive:
            raise ConfigError("--label and --positive go with raw logs only: the data set knows its label")
        _inspect_data(Path(inputs[0]), as_json)
        return
    from dmoe.inspection import inspect_log

    with stderr.status("reading"):
        found = inspect_log(inputs, label=label, positive=positive or (), max_rows=rows)
    if as_json:
        pairs = [one.values() for one in found.pairs]
        print_json({**asdict(found), "pairs": pairs, "data_yaml": found.yaml()})
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
    for one in found.labels[1:]:
        rate = one["positives"] / one["known"]
        stderr.print(f"label '{one['name']}': known in {one['known']:,} rows, rate {rate:.4f}", markup=False)
    _print_pairs([one["name"] for one in found.labels], found.pairs)
    for warning in found.warnings:
        warn(warning.text)
    typer.echo(found.yaml(), nl=False)


def _inspect_data(folder: Path, as_json: bool) -> None:
    import yaml

    from dmoe.inspection.contents import groups_of, information, read_contents
    from dmoe.inspection.label_contents import added
    from dmoe.inspection.leak_sample import suspicions
    from dmoe.schema import CategoricalField
    from dmoe.shards.folder import DataFolder

    data = DataFolder.read(folder)
    with stderr.status("reading"):
        contents = read_contents(data, groups_of(data))
    labels = [task.name for task in data.schema.tasks]
    bits = {label: information(contents[0], label) for label in labels}
    fields = sorted(data.schema.fields, key=lambda field: -bits[labels[0]][field.name])
    config = yaml.safe_dump(
        data.config().model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True, width=110
    )
    groups = [_group(one, several=len(labels) > 1) for one in contents]
    entries: list[dict[str, Any]] = [
        {"name": field.name, "information": bits[labels[0]][field.name], **data.summary["fields"][field.name]}
        for field in fields
    ]
    pairs = added([one.pairs for one in contents])
    several: dict[str, Any] = {}
    if len(labels) > 1:
        several["pairs"] = [one.values() for one in pairs]
        for entry in entries:
            entry["information_by_label"] = {label: bits[label][entry["name"]] for label in labels}
    warnings = [one.values() for one in suspicions(data)]
    if as_json:
        print_json({"groups": groups, "fields": entries, **several, "warnings": warnings, "data_yaml": config})
        return
    headings = ["bits"] if len(labels) == 1 else [f"bits of {label}" for label in labels]
    table = _table("field", "kind", "vocabulary", "missing in train", "unseen in test", *headings)
    for field, entry in zip(fields, entries, strict=True):
        size = f"{field.vocabulary_size:,}" if isinstance(field, CategoricalField) else ""
        unseen = entry.get("unseen", {}).get("test")
        table.add_row(
            field.name,
            field.kind,
            size,
            f"{entry['missing'].get('train', 0.0):.2%}",
            "" if unseen is None else f"{unseen:.2%}",
            *(f"{bits[label][field.name]:.4f}" for label in labels),
        )
    stderr.print(table)
    for one in contents:
        for label, of in one.labels.items():
            what = "label rate" if len(labels) == 1 else f"{label} known in {of.known:,}, rate"
            rate = "-" if of.rate is None else f"{of.rate:.4f}"
            stderr.print(f"{one.group.name}: {one.rows:,} rows, {what} {rate}", markup=False)
            _print_rates([("", positives / known) for known, positives in of.blocks if known])
    _print_pairs(labels, pairs)
    for warning in warnings:
        warn(warning["text"])
    typer.echo(config, nl=False)


def _group(contents: "Contents", *, several: bool) -> dict[str, Any]:
    labels = {
        name: {"known": one.known, "positives": one.positives, "blocks": one.blocks}
        for name, one in contents.labels.items()
    }
    main = next(iter(contents.labels.values()))
    values = {"name": contents.group.name, "rows": contents.rows, "positives": main.positives, "blocks": main.blocks}
    return {**values, "labels": labels} if several else values


def _print_pairs(labels: Sequence[str], pairs: Sequence["LabelPair"]) -> None:
    """How often each label is 1 where another is: where that is always, the other may be given it."""
    if not pairs:
        return
    table = _table("rows with", *labels)
    for given in labels:
        shares = {one.label: one.share for one in pairs if one.given == given}
        cells = ["" if (share := shares.get(label)) is None else f"{share:.4f}" for label in labels]
        table.add_row(f"{given} = 1", *cells)
    stderr.print("share of rows in which a label is 1, where it is known:", markup=False)
    stderr.print(table)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        text = heading in ("column", "field", "kind", "most frequent", "rows with")
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    return table


def _print_rates(rates: list[tuple[str, float]]) -> None:
    """The label rate over time as a row of bars."""
    values = [rate for _, rate in rates]
    if not values:
        return
    top = max(values) or 1.0
    bars = "".join("▁▂▃▄▅▆▇█"[min(int(value / top * 8), 7)] for value in values)
    ends = f" from {rates[0][0]} to {rates[-1][0]}" if rates[0][0] else ""
    stderr.print(f"label rate{ends}: {bars} ({min(values):.4f} to {max(values):.4f})", markup=False)
