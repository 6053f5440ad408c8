"""The figures of an experiment's report: each a matplotlib figure and what it shows in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dmoe.experiments.statistics import Compared, Spread
from dmoe.experiments.summary import Decided, Place, Table
from dmoe.report import numbers
from dmoe.report.figures import PANEL_INCHES, heat_cell
from dmoe.report.svg import DASHES, INK, MARKERS, MUTED, SERIES, label

WIDE_INCHES = 6.6


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure, the name of its files, and its text alternative."""

    key: str
    figure: Figure
    words: str


def figures(table: Table) -> list[Drawn]:
    """What an experiment shows: the paper's kind of figure where it has one, and every AUC difference."""
    drawn: list[Drawn | None] = []
    if table.name in ("fig1", "fig7", "planted"):
        drawn.append(auc_against_cec(table))
    elif table.name == "fig5":
        drawn.append(cec_bars(table))
    elif table.name == "fig6":
        drawn.append(heat_maps(table))
    elif table.name == "alpha":
        drawn += [over_alpha(table, metric) for metric in ("auc", "cec", "dead_share")]
    elif table.name == "experts":
        drawn += [over_number(table, metric) for metric in ("auc", "cec", "dead_share")]
    elif table.grid.nested:
        drawn += [gain_over_rows(table, "auc"), gain_over_rows(table, "logloss"), auc_over_rows(table)]
    elif table.name not in ("norms", "controls"):
        drawn.append(cec_bars(table))
    if not table.grid.nested:  # whose figures have them all
        drawn.append(differences(table))
    return [one for one in drawn if one is not None]


def differences(table: Table) -> Drawn | None:
    """A line for each AUC comparison: the difference with its 95% interval."""
    shown = [one for one in (*table.decided, *table.pooled) if one.metric == "auc"]
    if not shown:
        return None
    figure = Figure(figsize=(WIDE_INCHES, 0.9 + 0.2 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=MUTED, linewidth=0.9)
    for place, one in enumerate(shown):
        slot = {"holds": 2, "contradicted": 1, "not resolved": 0}[one.verdict]
        compared = one.compared
        axes.plot([compared.low, compared.high], [place, place], color=SERIES[slot], linewidth=1.4)
        axes.plot([compared.difference], [place], color=SERIES[slot], marker=MARKERS[slot], linestyle="")
    axes.set_yticks(range(len(shown)), [label(_comparison(one), 52) for one in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, colors=INK)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("difference of test AUC, 95% interval")
    axes.set_title("Differences of AUC", loc="left", fontweight="bold")
    words = "; ".join(
        f"{_comparison(one)} {numbers.change(one.compared.difference)} "
        f"({numbers.change(one.compared.low)} to {numbers.change(one.compared.high)}), {one.verdict}"
        for one in shown
    )
    return Drawn(f"{table.name}-differences", figure, f"Differences of test AUC: {words}.")


def _comparison(one: Decided) -> str:
    return f"{one.row}: {one.better} − {one.than}"


def auc_against_cec(table: Table) -> Drawn | None:
    """One line a model through its variants, lowest CEC to the right, with standard deviations over seeds."""
    figure = Figure(figsize=(PANEL_INCHES[0] * 1.2, PANEL_INCHES[1] * 1.25), layout="constrained")
    axes = figure.add_subplot()
    words = []
    for slot, model in enumerate(table.grid.models):
        points = [
            (place.variant, cec, auc)
            for column in table.columns
            if (place := table.places.get((model, column))) is not None
            and (cec := place.spread("cec")) is not None
            and (auc := place.spread("auc")) is not None
        ]
        if not points:
            continue
        style = slot % len(SERIES)
        axes.errorbar(
            [cec.mean for _, cec, _ in points],
            [auc.mean for _, _, auc in points],
            xerr=[cec.std or 0.0 for _, cec, _ in points],
            yerr=[auc.std or 0.0 for _, _, auc in points],
            color=SERIES[style],
            linestyle=DASHES[style],
            marker=MARKERS[style],
            elinewidth=0.8,
            label=label(model),
        )
        for variant, cec, auc in points:
            axes.annotate(
                variant,
                (cec.mean, auc.mean),
                xytext=(4, 5),
                textcoords="offset points",
                fontsize=7.5,
                color=SERIES[style],
            )
        told = ", ".join(f"{variant} CEC {cec.mean:.4f} AUC {auc.mean:.5f}" for variant, cec, auc in points)
        words.append(f"{model}: {told}")
    if not words:
        return None
    axes.invert_xaxis()
    axes.set(xlabel="CEC of the outputs (less to the right)", ylabel="test AUC")
    axes.margins(x=0.12, y=0.14)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_title("AUC against CEC", loc="left", fontweight="bold")
    figure.legend(loc="outside lower left", ncols=3, handlelength=2.6)
    return Drawn(f"{table.name}-auc-cec", figure, f"AUC against CEC. {'; '.join(words)}.")


def cec_bars(table: Table) -> Drawn | None:
    """CEC by model and variant, with standard deviations over seeds and the noise floor."""
    columns = [column for column in table.columns if any(_cec(table, model, column) for model in table.grid.models)]
    if not columns:
        return None
    models = list(table.grid.models)
    figure = Figure(figsize=(max(PANEL_INCHES[0], 0.85 * len(models) + 1), PANEL_INCHES[1]), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(columns)
    words = []
    for slot, column in enumerate(columns):
        found = [(index, _cec(table, model, column)) for index, model in enumerate(models)]
        known = [(index, place, spread) for index, pair in found if pair for place, spread in (pair,)]
        axes.bar(
            [index + (slot - (len(columns) - 1) / 2) * width for index, *_ in known],
            [spread.mean for *_, spread in known],
            yerr=[spread.std or 0.0 for *_, spread in known],
            width=width * 0.92,
            color=SERIES[slot % len(SERIES)],
            ecolor=INK,
            error_kw={"elinewidth": 0.9},
            label=label(column),
        )
        words += [f"{models[index]} {column} {spread.mean:.4f}" for index, _, spread in known]
    for index, model in enumerate(models):
        floor = next(
            (s.mean for c in columns if (p := table.places.get((model, c))) and (s := p.spread("cec_noise_floor"))),
            None,
        )
        if floor is not None:
            axes.plot([index - 0.42, index + 0.42], [floor, floor], color=INK, linewidth=1.0, linestyle=(0, (2, 2)))
    axes.set_xticks(range(len(models)), [label(model, 14) for model in models], rotation=20, ha="right")
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("CEC, summed over pairs")
    axes.set_title("CEC of the outputs; dashed: noise floor", loc="left", fontweight="bold")
    figure.legend(loc="outside lower left", ncols=3)
    return Drawn(f"{table.name}-cec", figure, f"CEC: {', '.join(words)}.")


def _cec(table: Table, model: str, column: str) -> tuple[Place, Spread] | None:
    place = table.places.get((model, column))
    spread = place.spread("cec") if place else None
    return (place, spread) if place is not None and spread is not None else None


def heat_maps(table: Table) -> Drawn | None:
    """The lower triangle of CEC between experts, mean over seeds; a row of panels for each model."""
    panels = {key: matrix for key, place in table.places.items() if (matrix := _mean_matrix(place)) is not None}
    if not panels:
        return None
    full = max(value for matrix in panels.values() for row in matrix for value in row if value is not None)
    models = [model for model in table.grid.models if any(key[0] == model for key in panels)]
    figure = Figure(figsize=(WIDE_INCHES, 2.3 * len(models)), layout="constrained")
    axes_grid = figure.subplots(len(models), len(table.columns), squeeze=False)
    words = []
    for line, model in enumerate(models):
        names = _numbered(table.grid.models[model])
        for column, variant in enumerate(table.columns):
            axes = axes_grid[line, column]
            matrix = panels.get((model, variant))
            axes.set(xlim=(-0.5, len(names) - 1.5), ylim=(len(names) - 0.5, 0.5))
            axes.set_xticks(range(len(names) - 1), names[:-1])
            axes.set_yticks(range(1, len(names)), names[1:])
            axes.tick_params(length=0, colors=INK)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.set_title(f"{label(model, 22)}, {variant}", loc="left")
            for row in range(1, len(names)):
                for other in range(row):
                    value = matrix[row][other] if matrix else None
                    heat_cell(axes, row, other, value, full)
                    if value is not None:
                        words.append(f"{model} {variant}, {names[row]} and {names[other]} {value:.4f}")
    return Drawn(f"{table.name}-cec", figure, f"Cross-expert correlation: {'; '.join(words)}.")


def _numbered(kinds: Sequence[str]) -> list[str]:
    return [kind if list(kinds).count(kind) == 1 else f"expert {index + 1}" for index, kind in enumerate(kinds)]


def _mean_matrix(place: Place) -> list[list[float | None]] | None:
    matrices = [run["cec_matrix"] for run in place.runs.values() if run.get("cec_matrix")]
    if not matrices:
        return None
    size = len(matrices[0])
    mean: list[list[float | None]] = []
    for row in range(size):
        cells = [[one[row][column] for one in matrices if one[row][column] is not None] for column in range(size)]
        mean.append([float(np.mean(values)) if values else None for values in cells])
    return mean


_METRIC_TITLES = {"auc": "Test AUC", "cec": "CEC of the outputs", "dead_share": "Share of dead units"}


def over_alpha(table: Table, metric: str) -> Drawn | None:
    """A figure against alpha, with standard deviations over seeds; alpha 0 stands at the left end."""
    figure, axes = _panel(metric)
    words = []
    for slot, model in enumerate(table.grid.models):
        places = sorted(
            ((place.alpha or 0.0, spread) for place in table.places.values()
             if place.model == model and (spread := place.spread(metric)) is not None),
            key=lambda one: one[0],
        )  # fmt: skip
        if not places:
            continue
        lowest = min((alpha for alpha, _ in places if alpha > 0), default=1.0)
        x = [math.log10(alpha if alpha > 0 else lowest / 10) for alpha, _ in places]
        style = slot % len(SERIES)
        axes.errorbar(
            x, [one.mean for _, one in places], yerr=[one.std or 0.0 for _, one in places], color=SERIES[style],
            linestyle=DASHES[style], marker=MARKERS[style], elinewidth=0.8, label=label(model),
        )  # fmt: skip
        axes.set_xticks(x, [f"{alpha:g}" for alpha, _ in places])
        words.append(f"{model}: " + ", ".join(f"alpha {alpha:g} {one.mean:.5g}" for alpha, one in places))
    axes.set_xlabel("alpha")
    return _finished(figure, f"{table.name}-{metric}", f"{_METRIC_TITLES[metric]} over alpha", words)


def over_number(table: Table, metric: str) -> Drawn | None:
    """A figure against the number of experts."""
    figure, axes = _panel(metric)
    words = []
    for slot, column in enumerate(table.columns):
        places = [
            (len(experts), spread)
            for model, experts in table.grid.models.items()
            if (place := table.places.get((model, column))) is not None and (spread := place.spread(metric)) is not None
        ]
        if not places:
            continue
        style = slot % len(SERIES)
        axes.errorbar(
            [number for number, _ in places], [one.mean for _, one in places],
            yerr=[one.std or 0.0 for _, one in places], color=SERIES[style], linestyle=DASHES[style],
            marker=MARKERS[style], elinewidth=0.8, label=label(column),
        )  # fmt: skip
        words.append(f"{column}: " + ", ".join(f"{number} experts {one.mean:.5g}" for number, one in places))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("number of experts")
    return _finished(figure, f"{table.name}-{metric}", f"{_METRIC_TITLES[metric]} over the number of experts", words)


_ROWS_LABEL = "training rows, the latest ones (logarithmic)"


def gain_over_rows(table: Table, metric: Literal["auc", "logloss"]) -> Drawn | None:
    """Of a nested grid: each difference with its 95% interval against training rows, a panel for each comparison."""
    found: dict[tuple[str, str], list[tuple[int, Compared]]] = {}
    for one in table.decided:
        shown = one.compared if metric == "auc" else one.logloss
        if one.metric == "auc" and shown is not None:
            found.setdefault((one.better, one.than), []).append((table.grid.parts[one.row], shown))
    if not found:
        return None
    figure = Figure(figsize=(PANEL_INCHES[0], 0.6 + 1.15 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    words = []
    for slot, ((better, than), points) in enumerate(found.items()):
        axes = panels[slot]
        axes.axhline(0, color=MUTED, linewidth=0.9)
        middle = [one.difference for _, one in points]
        axes.errorbar(
            [rows for rows, _ in points], middle,
            yerr=[[one.difference - one.low for _, one in points], [one.high - one.difference for _, one in points]],
            color=SERIES[slot % len(SERIES)], marker=MARKERS[slot % len(MARKERS)], elinewidth=1.2,
        )  # fmt: skip
        axes.set_title(f"{better} − {than}", loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        _rows_axis(axes, table)
        told = ", ".join(
            f"{rows:,} rows {numbers.change(one.difference, 4)} ({numbers.change(one.low, 4)} to "
            f"{numbers.change(one.high, 4)})"
            for rows, one in points
        )
        words.append(f"{better} − {than}: {told}")
    panels[0].set_ylim(*_readable([one for points in found.values() for _, one in points]))
    name, better_side = ("AUC", "above") if metric == "auc" else ("logloss", "below")
    figure.suptitle(f"Difference of test {name}; {better_side} 0 the first is better", x=0.02, ha="left", fontsize=9.5)
    panels[-1].set_xlabel(_ROWS_LABEL)
    title = f"Difference of test {name} over training rows, 95% intervals"
    return Drawn(f"{table.name}-gain-{metric}", figure, f"{title}. {'; '.join(words)}.")


def _readable(shown: Sequence[Compared]) -> tuple[float, float]:
    """Limits in which all differences and most intervals can be read; the widest may be cut, and the text has them."""
    room = 3 * float(np.median([(one.high - one.low) / 2 for one in shown]))
    low = max(min(one.low for one in shown), min(one.difference for one in shown) - room)
    high = min(max(one.high for one in shown), max(one.difference for one in shown) + room)
    margin = 0.08 * (high - low) or 1e-4
    return min(low, 0.0) - margin, max(high, 0.0) + margin


def auc_over_rows(table: Table) -> Drawn | None:
    """Of a nested grid: test AUC of every variant against training rows, with standard deviations over seeds."""
    figure, axes = _panel("auc")
    words = []
    for slot, column in enumerate(
        one for one in table.columns if table.grid.best is None or one != table.grid.best.name
    ):
        points = [
            (rows, spread)
            for row, rows in table.grid.parts.items()
            if (place := table.places.get((row, column))) is not None and (spread := place.spread("auc")) is not None
        ]
        if not points:
            continue
        style = slot % len(SERIES)
        axes.errorbar(
            [rows for rows, _ in points], [one.mean for _, one in points],
            yerr=[one.std or 0.0 for _, one in points], color=SERIES[style], linestyle=DASHES[style],
            marker=MARKERS[style], elinewidth=0.8, label=label(column),
        )  # fmt: skip
        words.append(f"{column}: " + ", ".join(f"{rows:,} rows {one.mean:.4f}" for rows, one in points))
    _rows_axis(axes, table)
    axes.set_xlabel(_ROWS_LABEL)
    return _finished(figure, f"{table.name}-auc", "Test AUC over training rows", words)


def _rows_axis(axes: Axes, table: Table) -> None:
    axes.set_xscale("log")
    axes.margins(x=0.09)  # the last label is not cut off
    parts = list(table.grid.parts.values())
    axes.set_xticks(parts, [_short(rows) for rows in parts])
    axes.minorticks_off()


def _short(rows: int) -> str:
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if rows >= unit:
            return f"{rows / unit:.3g}{letter}"
    return str(rows)


def over_training(key: str, title: str, curves: Sequence[tuple[str, Sequence[tuple[int, float]]]]) -> Drawn | None:
    """CEC at each evaluation of the validation split, one line a run."""
    figure, axes = _panel("cec")
    words = []
    for slot, (name, points) in enumerate(curves):
        if not points:
            continue
        style = slot % len(SERIES)
        axes.plot(
            [step for step, _ in points], [cec for _, cec in points], color=SERIES[style], linestyle=DASHES[style],
            marker=MARKERS[style], label=label(name),
        )  # fmt: skip
        words.append(f"{name}: from {points[0][1]:.4f} at step {points[0][0]} to {points[-1][1]:.4f}")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    return _finished(figure, key, title, words)


def _panel(metric: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=PANEL_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_METRIC_TITLES[metric], loc="left", fontweight="bold")
    axes.margins(x=0.06, y=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure, axes


def _finished(figure: Figure, key: str, title: str, words: list[str]) -> Drawn | None:
    if not words:
        return None
    figure.legend(loc="outside lower left", ncols=3, handlelength=2.6, columnspacing=1.2)
    return Drawn(key, figure, f"{title}. {'; '.join(words)}.")
