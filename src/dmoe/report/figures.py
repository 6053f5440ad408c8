"""The figures of the report, each a function from numbers to inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from dmoe.report import numbers
from dmoe.report.svg import DASHES, GRID, GROUND, HEAT, INK, MARKERS, MUTED, SERIES, inline, label
from dmoe.runs.records import CalibrationBinRecord, CorrelationRecord

PANEL_INCHES = (4.3, 2.7)
# Opacity of the fullest heat-map cell: the ink on it keeps a contrast of 4.5 to 1 on either ground.
FULL_HEAT = 0.6
MAX_POINTS = 150
SQUARE_CELL_INCHES = 0.62


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points (x, y) of one run; `slot` is the run's place on the page; `best` indexes the ringed point."""

    name: str
    slot: int
    x: Sequence[float]
    y: Sequence[float | None]
    best: int | None = None

    @property
    def points(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None and math.isfinite(y)]


def curves(key: str, title: str, x_label: str, series: Sequence[Curve], *, markers: bool = True) -> Markup | None:
    """One panel with a line for each run, or None where no run has a point."""
    drawn = [curve for curve in series if curve.points]
    if not drawn:
        return None
    figure = Figure(figsize=PANEL_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for curve in drawn:
        x, y = zip(*curve.points, strict=True)
        style = curve.slot % len(SERIES)
        axes.plot(
            x,
            y,
            color=SERIES[style],
            linestyle=DASHES[style],
            marker=MARKERS[style] if markers else "",
            linewidth=1.8 if markers else 1.3,
            label=label(curve.name),
        )
        if curve.best is not None and (ring := curve.y[curve.best]) is not None:
            axes.plot(
                [curve.x[curve.best]],
                [ring],
                marker="o",
                markersize=10,
                markerfacecolor="none",
                markeredgecolor=SERIES[style],
                linestyle="",
            )
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(x_label)
    axes.margins(x=0.04, y=0.12)
    whole = all(float(x).is_integer() for curve in drawn for x, _ in curve.points)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if len(series) > 1:
        figure.legend(loc="outside lower left", ncols=min(3, len(drawn)), handlelength=2.6, columnspacing=1.2)
    return inline(figure, key, f"{title} by {x_label}. " + " ".join(_in_words(curve) for curve in drawn))


def _in_words(curve: Curve) -> str:
    ys = [y for _, y in curve.points]
    if len(ys) == 1:
        return f"{curve.name}: {ys[0]:.5g}."
    return f"{curve.name}: from {ys[0]:.5g} to {ys[-1]:.5g}, lowest {min(ys):.5g}, highest {max(ys):.5g}."


def bars(key: str, title: str, x_label: str, values: Sequence[tuple[str, float, float]]) -> Markup | None:
    """A horizontal bar for each name, with a tick at its second number (what chance alone would show)."""
    if not values:
        return None
    figure = Figure(figsize=(PANEL_INCHES[0], 0.8 + 0.19 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(values))[::-1]
    axes.barh(places, [value for _, value, _ in values], color=SERIES[0], height=0.7)
    axes.plot([chance for _, _, chance in values], places, linestyle="", marker="|", markersize=8, color=INK)
    axes.set_yticks(places, [label(name) for name, _, _ in values])
    axes.set(xlabel=x_label)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.set_title(title, loc="left", fontweight="bold")
    words = ", ".join(f"{name} {value:.4f} (chance {chance:.4f})" for name, value, chance in values)
    return inline(figure, key, f"{title}: {words}.")


def thinned(x: Sequence[float], y: Sequence[float | None]) -> tuple[list[float], list[float | None]]:
    """At most MAX_POINTS points: means of equal blocks, at the last x of each block."""
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if not kept:
        return [], []
    blocks = np.array_split(np.array(kept, dtype=np.float64), min(MAX_POINTS, len(kept)))
    return [float(block[-1, 0]) for block in blocks], [float(block[:, 1].mean()) for block in blocks]


def calibration(key: str, name: str, slot: int, bins: Sequence[CalibrationBinRecord]) -> Markup | None:
    """Click rate against mean prediction with 95% intervals, and the rows of each bin below."""
    held = [
        (one, one.mean_predicted, one.click_rate)
        for one in bins
        if one.rows > 0 and one.mean_predicted is not None and one.click_rate is not None
    ]
    if not held:
        return None
    colour = SERIES[slot % len(SERIES)]
    figure = Figure(figsize=(PANEL_INCHES[0], 3.9), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    x = np.array([predicted for _, predicted, _ in held])
    y = np.array([rate for _, _, rate in held])
    rows = np.array([one.rows for one, _, _ in held])
    low, high = _wilson(y, rows)
    limit = min(1.0, 1.08 * max(float(x.max()), float(high.max())))
    upper.plot([0, limit], [0, limit], color=MUTED, linewidth=1.0, linestyle=(0, (3, 3)))
    upper.errorbar(x, y, yerr=(y - low, high - y), color=colour, marker="o", markersize=4, linewidth=1.5, elinewidth=1)
    upper.set(ylabel="observed rate", xlim=(0, limit), ylim=(0, limit))
    upper.set_title(f"Calibration: {label(name)}", loc="left", fontweight="bold")
    edges = [(one.low, one.high) for one, _, _ in held]
    lower.bar(
        [a for a, _ in edges],
        rows,
        width=[b - a for a, b in edges],
        align="edge",
        color=colour,
        edgecolor=GROUND,
        linewidth=0.6,
    )
    if rows.max() > 50 * rows.min():
        lower.set_yscale("log")
        lower.set_ylim(bottom=max(0.5, rows.min() / 3))
    else:
        lower.yaxis.set_major_locator(MaxNLocator(nbins=3))
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    lower.set(ylabel="rows", xlabel="predicted probability")
    lower.grid(visible=False, axis="x")
    worst = int(np.abs(x - y).argmax())
    words = (
        f"Calibration of {name}: {len(held)} bins, predictions from {x.min():.3f} to {x.max():.3f}. "
        f"Largest gap: predicted {x[worst]:.3f}, clicked {y[worst]:.3f}, {rows[worst]:,} rows."
    )
    return inline(figure, key, words)


def _wilson(
    rate: np.ndarray[tuple[int], np.dtype[np.float64]], rows: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """95% interval of a click rate (Wilson 1927), which stays within [0, 1] and contains `rate`."""
    z2 = 1.96**2
    centre = (rate + z2 / (2 * rows)) / (1 + z2 / rows)
    half = np.sqrt(z2 * (rate * (1 - rate) / rows + z2 / (4 * rows**2))) / (1 + z2 / rows)
    return np.minimum(centre - half, rate).clip(0, 1), np.maximum(centre + half, rate).clip(0, 1)


def heat_map(key: str, title: str, correlation: CorrelationRecord, names: Sequence[str], full: float) -> Markup:
    """The lower triangle of CEC values; `full` is the value of the darkest cell."""
    rows, columns = list(range(1, len(names))), list(range(len(names) - 1))
    margin = 0.075 * max(len(label(names[row], 16)) for row in rows) + 0.2
    cell = SQUARE_CELL_INCHES if len(names) < 8 else 0.5
    # Wide cells for few experts: their names stand below.
    width = max(cell, 1.25 - 0.2 * len(columns))
    figure = Figure(
        figsize=(margin + width * len(columns) + 0.25, cell * len(rows) + (0.95 if len(columns) > 2 else 0.6)),
        layout="constrained",
    )
    axes = figure.add_subplot()
    for row in rows:
        for column in range(row):
            heat_cell(axes, row, column, correlation.matrix[row][column], full)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) + 0.5, 0.5))
    tilted = len(columns) > 2
    axes.set_xticks(
        columns,
        [label(names[column], 16) for column in columns],
        rotation=35 if tilted else 0,
        ha="right" if tilted else "center",
        rotation_mode="anchor" if tilted else "default",
    )
    axes.set_yticks(rows, [label(names[row], 16) for row in rows])
    axes.tick_params(length=0, colors=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontweight="bold")
    pairs = ", ".join(
        f"{names[row]} and {names[column]} {numbers.correlation(value)}" for row, column, value in correlation.pairs
    )
    return inline(figure, key, f"Cross-expert correlation, {title}: {pairs or 'no pair has a value'}.")


def heat_cell(axes: Axes, row: int, column: int, value: float | None, full: float) -> None:
    """One cell of a heat map, with its value; `full` is the value of the darkest cell."""
    opacity = 0.0 if value is None or full <= 0 else FULL_HEAT * min(1.0, value / full)
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=HEAT, edgecolor="none", alpha=opacity))
    axes.add_patch(Rectangle(corner, 1, 1, facecolor="none", edgecolor=GRID, linewidth=1.0))
    axes.text(column, row, numbers.correlation(value), ha="center", va="center", fontsize=9, color=INK)


def expert_effects(
    key: str,
    name: str,
    experts: Sequence[str],
    removed: Sequence[float | None],
    alone: Sequence[float | None],
) -> Markup | None:
    """Bars of the AUC change when an expert is removed, and when it is the only one."""
    if all(value is None for value in (*removed, *alone)):
        return None
    figure = Figure(figsize=(PANEL_INCHES[0], 0.95 + 0.5 * len(experts)), layout="constrained")
    axes = figure.add_subplot()
    for offset, values, slot, what in ((-0.19, removed, 0, "without it"), (0.19, alone, 1, "it alone")):
        places = [index + offset for index, value in enumerate(values) if value is not None]
        kept = [value for value in values if value is not None]
        axes.barh(places, kept, height=0.34, color=SERIES[slot], linewidth=0, label=what)
    axes.axvline(0, color=MUTED, linewidth=0.9)
    axes.set_yticks(range(len(experts)), [label(expert, 18) for expert in experts])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, colors=INK)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.margins(x=0.06)
    axes.set_xlabel("change of AUC against all experts")
    figure.legend(loc="outside lower left", ncols=2)
    words = "; ".join(
        f"{expert}: removed {numbers.change(without)}, alone {numbers.change(only)}"
        for expert, without, only in zip(experts, removed, alone, strict=True)
    )
    return inline(figure, key, f"Change of AUC by expert in {name}. {words}.")
