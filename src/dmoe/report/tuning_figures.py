"""The figures of a study's report."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dmoe.report import numbers
from dmoe.report.figures import PANEL_INCHES
from dmoe.report.svg import GROUND, MUTED, SERIES, inline, label
from dmoe.tuning.folder import Record, best_of
from dmoe.tuning.space import Parameter

# Curves beyond these tell nothing apart.
_MOST_CURVES = 60


def course(records: Sequence[Record], objective: str) -> Markup | None:
    """The value of each complete trial by its number, the best so far, and where trials were given up."""
    complete = [one for one in records if one.value is not None]
    if not complete:
        return None
    figure, axes = _panel("Trials", "trial", objective)
    values = _values(complete)
    leaders = list(accumulate(values, max))
    places = [one.number for one in complete]
    until = [*places, records[-1].number]
    axes.plot(until, [*leaders, leaders[-1]], drawstyle="steps-post", color=SERIES[1], label="best so far")
    axes.plot(places, values, "o", color=SERIES[0], label="complete")
    given_up = [one.number for one in records if one.state == "pruned"]
    if given_up:
        axes.plot(
            given_up, [0.02] * len(given_up), "|", color=MUTED, markersize=8, label="given up",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    figure.legend(loc="outside lower left", ncols=3)
    words = ", ".join(f"{one.number} {one.value:.5f}" for one in complete)
    return inline(figure, "course", f"Value by trial: {words}. Given up: {given_up or 'none'}.")


def on_the_way(records: Sequence[Record], objective: str) -> Markup | None:
    """What trials had at each evaluation, those that were given up dashed; the best one in another colour."""
    shown = [one for one in records if one.evaluations][-_MOST_CURVES:]
    if not shown:
        return None
    best = best_of(list(records))
    figure, axes = _panel("Evaluations", "epochs", objective)
    for one in sorted(shown, key=lambda one: best is not None and one.number == best.number):
        leads = best is not None and one.number == best.number
        axes.plot(
            [at.done / 100 for at in one.evaluations], [at.value for at in one.evaluations],
            color=SERIES[1] if leads else SERIES[0] if one.state == "complete" else MUTED,
            linestyle="-" if one.state == "complete" else (0, (3, 2)),
            marker="o", markersize=3 if leads else 2.2, linewidth=2.0 if leads else 0.9, zorder=3 if leads else 2,
        )  # fmt: skip
    words = "; ".join(
        f"trial {one.number}: " + ", ".join(f"{at.value:.4f} at {at.done / 100:g}" for at in one.evaluations)
        for one in shown
    )
    return inline(figure, "evaluations", f"Evaluations by epochs. {words}.")


def importance(shares: Mapping[str, float]) -> Markup:
    """A bar for each parameter, the most important at the top."""
    figure = Figure(figsize=(PANEL_INCHES[0], 0.7 + 0.27 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    names = list(shares)[::-1]
    axes.barh(range(len(names)), [shares[name] for name in names], color=SERIES[0], height=0.66)
    for place, name in enumerate(names):
        axes.annotate(
            f"{shares[name]:.0%}", (shares[name], place), xytext=(4, 0), textcoords="offset points", va="center",
            color=MUTED, fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [label(name, 30) for name in names])
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.14)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("share")
    words = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return inline(figure, "importance", f"Importance: {words}.")


def slice_of(number: int, parameter: Parameter, records: Sequence[Record], objective: str) -> Markup | None:
    """The value of complete trials by one parameter."""
    shown = [one for one in records if one.value is not None and parameter.name in one.params]
    best = best_of(list(records))
    if not shown or best is None:
        return None
    figure, axes = _panel(label(parameter.name, 44), "", objective)
    if parameter.kind == "choice":
        places = {name: place for place, name in enumerate(parameter.labels)}
        x = [float(places[str(one.params[parameter.name])]) for one in shown]
        # Neighbours of one choice stand side by side.
        x = [place + 0.24 * ((index * 0.618034) % 1 - 0.5) for index, place in enumerate(x)]
        axes.set_xlim(-0.6, len(places) - 0.4)
        long = max(map(len, places)) * len(places) > 40
        axes.set_xticks(
            range(len(places)), [label(name, 22) for name in places],
            rotation=20 if long else 0, ha="right" if long else "center",
        )  # fmt: skip
    else:
        x = [float(one.params[parameter.name]) for one in shown]
        if parameter.log:
            axes.set_xscale("log")
            within = parameter.high / parameter.low < 200  # two decades: a tick at 1 alone says too little
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if within else (1.0,)))
            axes.xaxis.set_major_formatter(lambda value, _: numbers.plain(value))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=parameter.kind == "int"))
    axes.plot(x, _values(shown), "o", color=SERIES[0])
    for place, value, one in zip(x, _values(shown), shown, strict=True):
        if one.number == best.number:
            axes.plot([place], [value], "D", color=SERIES[1], markersize=8, markeredgecolor=GROUND)
    words = ", ".join(f"{one.params[parameter.name]} {one.value:.5f}" for one in shown)
    return inline(figure, f"slice-{number}", f"Value by {parameter.name}: {words}.")


def _values(records: Sequence[Record]) -> list[float]:
    return [one.value for one in records if one.value is not None]


def _panel(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=PANEL_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set(xlabel=x, ylabel=y)
    axes.margins(x=0.06, y=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure, axes
