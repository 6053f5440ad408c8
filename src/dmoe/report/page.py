"""The report page: runs in, one self-contained HTML file out."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from dmoe.disk.files import written_aside
from dmoe.report import figures, labels, numbers, sentences, tables
from dmoe.report.place import check_page
from dmoe.report.runs import ReportedRun, read_runs
from dmoe.report.svg import drawing
from dmoe.runs.records import EpochLine, GateField

# The gate weights of a few fields say where it acts; the rest are in the evaluation file.
MAX_GATE_FIELDS = 4
MAX_GATE_VALUES = 16


@dataclass(frozen=True)
class Drawings:
    """The figures of the page; by run name, then by location where there are several."""

    training: list[Markup]
    labels: list[Markup]
    calibration: dict[str, list[Markup]]
    correlation: dict[str, dict[str, Markup]]
    experts: dict[str, Markup]
    full_heat: float


def write_report(runs: Sequence[Path], output: Path) -> None:
    """Writes one HTML page about the runs to `output`; the others are compared with the first.

    The page needs no network: style and figures are inside. Equal files give equal bytes.

    Raises: DataError if a folder is no run folder or a file in it is damaged; ConfigError if `output` is a
    folder or is not named .html, no run is given, or one is given twice.
    """
    check_page(output)
    page = render(read_runs(runs))
    with written_aside(output) as aside:
        aside.write_bytes(page.encode("utf-8"))


def render(runs: Sequence[ReportedRun]) -> str:
    """The page as text."""
    template = page_environment().get_template("page.html.j2")
    return template.render(
        runs=runs,
        several=len(runs) > 1,
        drawings=_draw(runs),
        comparison=tables.comparison(runs, labels.comparison(runs)),
        warnings=tables.warnings(runs),
        config_differences=tables.configuration_differences(runs),
        environment=tables.environment(runs),
        labels={run.name: found for run in runs if (found := labels.of_run(run))},
        experts={run.name: tables.experts(run, run.detail) for run in runs if run.detail},
        calibrations=labels.calibrations,
        same_schema=all(run.schema == runs[0].schema for run in runs),
        version=version("dmoe"),
    )


def page_environment() -> jinja2.Environment:
    """Templates with the filters that write numbers; text is escaped, and an unknown name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dmoe.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters |= {
        "score": numbers.score,
        "loss": numbers.loss,
        "correlation": numbers.correlation,
        "weight": numbers.weight,
        "percent": numbers.percent,
        "whole": numbers.whole,
        "plain": numbers.plain,
    }
    environment.globals |= {
        "words": sentences,
        "gate_fields": _gate_fields,
        "unseen_shares": tables.unseen_shares,
        "unseen_scores": tables.unseen_scores,
        "unseen_words": sentences.unseen,
        "max_gate_values": MAX_GATE_VALUES,
        "absent": numbers.ABSENT,
        "source_text": _source_text,
    }
    return environment


def _finalize(value: Any) -> Any:
    return numbers.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _source_text(source: dict[str, Any]) -> str:
    return yaml.safe_dump(source, sort_keys=False, allow_unicode=True, width=110)


def _gate_fields(fields: Sequence[GateField]) -> list[GateField]:
    """The fields by which the gate tells rows apart most."""
    known = [field for field in fields if field.values]
    return sorted(known, key=lambda field: (-(field.spread or 0.0), field.field))[:MAX_GATE_FIELDS]


def _draw(runs: Sequence[ReportedRun]) -> Drawings:
    with drawing():
        full = max(
            (
                value
                for run in runs
                if run.detail
                for measured in run.detail.correlation.values()
                for _, _, value in measured.pairs
            ),
            default=0.0,
        )
        calibration, correlation, experts = {}, {}, {}
        for slot, run in enumerate(runs):
            if (detail := run.detail) is None:
                continue
            drawn_parts = [
                figures.calibration(f"calibration-{slot}-{index}", f"{run.name} {title}".strip(), slot, found.bins)
                for index, (title, found) in enumerate(labels.calibrations(run))
            ]
            if any(drawn_parts):
                calibration[run.name] = [one for one in drawn_parts if one is not None]
            if run.num_experts == 1:
                continue
            correlation[run.name] = {
                location.key: figures.heat_map(
                    f"cec-{slot}-{index}",
                    location.short,
                    detail.correlation[location.key],
                    run.expert_names,
                    full,
                )
                for index, location in enumerate(sentences.locations(detail))
            }
            if lines := tables.experts(run, detail):
                drawn = figures.expert_effects(
                    f"experts-{slot}",
                    run.name,
                    run.expert_names,
                    [line.changes[0] for line in lines],
                    [line.changes[1] for line in lines],
                )
                if drawn is not None:
                    experts[run.name] = drawn
        return Drawings(_training_curves(runs), _label_curves(runs), calibration, correlation, experts, full)


def _training_curves(runs: Sequence[ReportedRun]) -> list[Markup]:
    panels = [
        _epoch_panel(runs, "train-loss", "Training loss", [_values(run, "train_loss") for run in runs]),
        _epoch_panel(runs, "train-logloss", "Training logloss", [_values(run, "train_logloss") for run in runs]),
        _epoch_panel(runs, "valid-auc", "Validation AUC", [[e.valid.auc for e in run.epochs] for run in runs]),
        _epoch_panel(
            runs,
            "valid-logloss",
            "Validation logloss",
            [[e.valid.logloss for e in run.epochs] for run in runs],
        ),
        _epoch_panel(
            runs, "decorrelation", "De-correlation loss", [_values(run, "decorrelation_loss") for run in runs]
        ),
        _step_panel(runs, "step-logloss", "Training logloss, step by step", "logloss"),
        _step_panel(runs, "step-decorrelation", "De-correlation loss, step by step", "decorrelation"),
    ]
    return [panel for panel in panels if panel is not None]


def _label_curves(runs: Sequence[ReportedRun]) -> list[Markup]:
    """AUC and logloss of each label while training, none of runs of one label."""
    found = []
    for number, name in enumerate(
        dict.fromkeys(name for run in runs for line in run.epochs for name in line.valid.tasks)
    ):
        for key, title in (("auc", "AUC"), ("logloss", "logloss")):
            values = [
                [getattr(line.valid.tasks[name], key) if name in line.valid.tasks else None for line in run.epochs]
                for run in runs
            ]
            found.append(_epoch_panel(runs, f"label-{number}-{key}", f"Validation {title}, {name}", values))
    return [panel for panel in found if panel is not None]


def _values(run: ReportedRun, key: str) -> list[float | None]:
    values: list[float | None] = [getattr(line, key) for line in run.epochs]
    # A run without the loss logs zeros or nothing: no curve either way.
    return values if key != "decorrelation_loss" or any(values) else [None] * len(values)


def _epoch_panel(
    runs: Sequence[ReportedRun], key: str, title: str, values: Sequence[list[float | None]]
) -> Markup | None:
    by_step = any(len({line.epoch for line in run.epochs}) < len(run.epochs) for run in runs)

    def place(line: EpochLine) -> float:
        return float(line.step) if by_step else line.epoch

    series = [
        figures.Curve(
            name=run.name,
            slot=slot,
            x=[place(line) for line in run.epochs],
            y=values[slot],
            best=next((i for i in reversed(range(len(run.epochs))) if run.epochs[i].best), None),
        )
        for slot, run in enumerate(runs)
    ]
    return figures.curves(key, title, "step" if by_step else "epoch", series)


def _step_panel(runs: Sequence[ReportedRun], key: str, title: str, column: str) -> Markup | None:
    series = []
    for slot, run in enumerate(runs):
        values = [getattr(line, column) for line in run.steps]
        shown = values if column != "decorrelation" or any(values) else [None] * len(values)
        x, y = figures.thinned([line.step for line in run.steps], shown)
        series.append(figures.Curve(name=run.name, slot=slot, x=x, y=y))
    return figures.curves(key, title, "step", series, markers=False)
