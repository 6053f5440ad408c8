"""The report on an experiment folder: one self-contained HTML page, and its tables and figures as files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dmoe.disk.files import write_text, written_aside
from dmoe.experiments.folder import Folder
from dmoe.experiments.paper import paper
from dmoe.experiments.summary import ExperimentSummary, Table
from dmoe.report import experiment_tables, numbers
from dmoe.report.experiment_figures import Drawn, figures, over_training
from dmoe.report.page import page_environment
from dmoe.report.place import HTML, check_page
from dmoe.report.svg import drawing, inline, write_figure
from dmoe.report.text_table import TextTable


@dataclass(frozen=True)
class Section:
    """What the page says of one experiment."""

    name: str
    title: str
    paper: str | None
    main: list[TextTable]
    drawings: list[Markup]
    folded: list[tuple[str, TextTable]]
    of_paper: TextTable | None
    statements: Sequence[str]
    slips: Sequence[str]
    trend: str


def write_experiment_report(folder: Path, output: Path, summary: ExperimentSummary | None = None) -> list[Path]:
    """Writes the page, or its tables in one Markdown file, to `output`.

    `tables/` (Markdown, LaTeX) and `figures/` (SVG, PNG) go into the folder.

    Raises: DataError if the folder is no experiment folder; ConfigError if `output` is no name of either kind.
    """
    check_page(output, (*HTML, ".md"))
    summary = summary or ExperimentSummary(Folder.open(folder))
    written = [output]
    for name in ("tables", "figures"):
        (folder / name).mkdir(exist_ok=True)
    claims = experiment_tables.claims(summary.claims())
    searches = experiment_tables.searches(summary)
    with drawing():
        drawn = {table.name: [*figures(table), *_training(summary, table)] for table in summary.tables}
        sections = [_section(table, drawn[table.name]) for table in summary.tables]
        template = "experiment.md.j2" if output.suffix == ".md" else "experiment.html.j2"
        page = page_environment().get_template(template).render(
            summary=summary,
            asked=summary.asked,
            sections=sections,
            claims=claims,
            searches=searches,
            facts=_facts(summary),
            not_given=paper().not_given,
            version=version("dmoe"),
        )  # fmt: skip
        with written_aside(output) as aside:
            aside.write_bytes(page.encode("utf-8"))
        for one in (one for many in drawn.values() for one in many):
            write_figure(one.figure, folder / "figures" / one.key)
            written += [folder / "figures" / f"{one.key}{suffix}" for suffix in (".svg", ".png")]
    texts = [claims, *([searches] if searches else [])]
    texts += [text for section in sections for text in (*section.main, *(two for _, two in section.folded))]
    for text in texts:
        for suffix, content in ((".md", text.markdown()), (".tex", text.latex())):
            write_text(folder / "tables" / f"{text.key}{suffix}", content)
            written.append(folder / "tables" / f"{text.key}{suffix}")
    return written


def _section(table: Table, drawn: Sequence[Drawn]) -> Section:
    main = [experiment_tables.scores(table)]
    if (gains := experiment_tables.gains(table)) is not None:
        main.append(gains)
    if any(place.values("cec") for place in table.places.values()):
        caption = "CEC of the outputs on the test split, summed over pairs, mean ± standard deviation over seeds"
        main.append(experiment_tables.other(table, "cec", 4, caption))
    if table.grid.needs_truth:
        caption = (
            "Separation of the planted structures: the R² with which an expert of its own tells each structure, minus "
            "the best R² of another expert"
        )
        main.append(experiment_tables.other(table, "separation", 3, caption))
        if (held := experiment_tables.structures(table)) is not None:
            main.append(held)
    folded = [
        (title, text)
        for title, text in (
            ("Comparisons", experiment_tables.comparisons(table)),
            ("Every figure", experiment_tables.details(table)),
            ("The experts", experiment_tables.inside(table)),
        )
        if text is not None and text.rows
    ]
    trend = ""
    if table.trend is not None and table.grid.trend is not None:
        value, low, high = (numbers.change(one, 2) for one in table.trend)
        trend = (
            f"{table.grid.trend}: Spearman’s ρ of AUC with CEC over the places of this table is {value}; resampling "
            f"seeds, 95% of values lie from {low} to {high}. A negative value supports the claim."
        )
    return Section(
        table.name,
        table.grid.title,
        table.grid.paper,
        main,
        [inline(one.figure, one.key, one.words) for one in drawn],
        folded,
        experiment_tables.of_paper(table.name),
        paper().statements.get(table.name, ()),
        paper().slips.get(table.name, ()),
        trend,
    )


def _training(summary: ExperimentSummary, table: Table) -> list[Drawn]:
    """CEC over training of the first seed, a figure for each model of figure 1."""
    if table.name != "fig1":
        return []
    found = []
    for number, model in enumerate(table.grid.models):
        curves = []
        for column in table.columns:
            place = table.places.get((model, column))
            if place is None or not place.cells:
                continue
            lines = summary.finished[place.cells[min(place.cells)]]["training"]
            points = [(line["step"], line["cec"]) for line in lines if line["cec"] is not None]
            curves.append((f"{model}, {column}", points))
        drawn = over_training(f"fig1-training-{number}", f"CEC over training, {model}, valid split", curves)
        if drawn is not None:
            found.append(drawn)
    return found


def _facts(summary: ExperimentSummary) -> list[tuple[str, str]]:
    """What was run, on what, and with what."""
    asked = summary.asked
    cells = list(summary.finished.values())
    seconds = sum(cell["seconds"] for cell in cells)
    facts: list[tuple[str, Any]] = [
        ("Data", Path(asked.data).name),
        *(
            (f"Rows, {split}", f"{numbers.whole(one.rows)}, {numbers.percent(one.positives / one.rows)} clicked")
            for split, one in asked.splits.items()
        ),
        ("Fields", f"{asked.fields} with {numbers.whole(asked.tokens)} vocabulary entries"),
        ("Size of models", asked.size + (f", changed by {' '.join(asked.changes)}" if asked.changes else "")),
        ("Seeds", f"1 to {asked.seeds}"),
        ("Runs", f"{summary.number_finished} of {summary.expected} finished, {len(summary.failed)} failed"),
        ("Training time", numbers.duration(seconds)),
    ]
    for name in sorted({name for cell in cells for name in cell["versions"]}):
        facts.append((name, ", ".join(sorted({cell["versions"].get(name, numbers.ABSENT) for cell in cells}))))
    for name in ("machine", "system", "threads", "gpu"):
        values = Counter(str(cell["hardware"][name]) for cell in cells if cell["hardware"].get(name) is not None)
        if values:
            facts.append((name.capitalize(), ", ".join(sorted(values))))
    if cells:
        facts.append(("Peak memory of a run", numbers.size(max(cell["peak_memory_bytes"] for cell in cells))))
    return facts
