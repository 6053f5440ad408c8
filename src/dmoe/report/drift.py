"""The drift page: how later rows of a data set differ from the first training rows."""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dmoe.disk.files import written_aside
from dmoe.errors import DataError
from dmoe.inspection.contents import Contents, FieldDrift, drift, far_above, groups_of, read_contents
from dmoe.report.figures import Curve, bars, curves
from dmoe.report.page import page_environment
from dmoe.report.place import check_page
from dmoe.report.svg import drawing
from dmoe.shards.folder import DataFolder

MAX_BARS = 20


@dataclass(frozen=True)
class GroupDrift:
    """One group of rows beside the first: label rates, and its fields from the most shifted on."""

    contents: Contents
    fields: list[FieldDrift]
    figure: Markup | None

    @property
    def name(self) -> str:
        return self.contents.group.name

    @property
    def rates(self) -> dict[str, float | None]:
        """By label, in the rows where it is known."""
        return _rates(self.contents)


def write_drift_report(folder: Path, output: Path) -> dict[str, Any]:
    """Writes one HTML page about the data set folder to `output`; gives its figures.

    Raises: DataError if the folder is no whole data set or has one group of rows only; ConfigError if `output`
    cannot be an HTML page.
    """
    check_page(output)
    data = DataFolder.read(folder)
    groups = groups_of(data)
    if len(groups) < 2:
        raise DataError(f"{folder}: holds one split of one preparation; there is nothing to compare it with")
    first, *others = read_contents(data, groups)
    with drawing():
        found = [_group(data, first, other, index) for index, other in enumerate(others)]
        rates = [one for name in first.labels if (one := _rate_figure(name, [first, *others])) is not None]
    warnings = [
        {"group": group, **one.values(), "text": one.text_of_update() if group.startswith("update") else one.text()}
        for group, one in far_above(data, [first, *others])
    ]
    page = page_environment().get_template("drift.html.j2")
    text = page.render(
        folder=str(folder), first=first, groups=found, rates=rates, warnings=warnings, version=version("dmoe")
    )
    with written_aside(output) as aside:
        aside.write_bytes(text.encode("utf-8"))
    return {
        "reference": first.group.name,
        **_told_rates(_rates(first)),
        "far_above": warnings,
        "groups": [
            {
                "name": one.name,
                "rows": one.contents.rows,
                **_told_rates(one.rates),
                "fields": [asdict(field) for field in one.fields],
            }
            for one in found
        ],
    }


def _rates(contents: Contents) -> dict[str, float | None]:
    return {name: one.rate for name, one in contents.labels.items()}


def _told_rates(rates: dict[str, float | None]) -> dict[str, Any]:
    """The rate of the main label, and of all where there are several."""
    main = {"label_rate": next(iter(rates.values()))}
    return {**main, "label_rates": rates} if len(rates) > 1 else main


def _group(data: DataFolder, first: Contents, other: Contents, index: int) -> GroupDrift:
    fields = drift(data, first, other)
    shown = fields[:MAX_BARS]
    figure = bars(
        f"shift-{index}",
        f"Shift of {other.group.name}",
        "bits",
        [(field.name, field.shift, field.chance) for field in shown],
    )
    return GroupDrift(other, fields, figure)


def _rate_figure(label: str, contents: list[Contents]) -> Markup | None:
    """The rate of a label along the rows of each group."""
    series = []
    for slot, one in enumerate(contents):
        blocks = one.labels[label].blocks
        ends = [(index + 1) / len(blocks) for index in range(len(blocks))]
        rates = [positives / known if known else None for known, positives in blocks]
        series.append(Curve(name=one.group.name, slot=slot, x=ends, y=rates))
    several = len(contents[0].labels) > 1
    place = list(contents[0].labels).index(label)
    key, title = (f"rates-{place}", f"Rate of {label}") if several else ("rates", "Label rate")
    return curves(key, title, "share of the rows of the group", series)
