"""The report on a study of `dmoe tune`: one self-contained HTML page, made from the files of its folder."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import yaml

from dmoe.config.run import RunConfig
from dmoe.disk.files import written_aside
from dmoe.report import numbers, tuning_figures
from dmoe.report.page import page_environment
from dmoe.report.place import check_page
from dmoe.report.svg import drawing
from dmoe.report.text_table import Emphasis, Text, TextTable
from dmoe.runs.folder import RunFolder
from dmoe.runs.records import FinalMetrics, FinalScores, read_final_metrics
from dmoe.tuning.folder import Asked, Record, StudyFolder, best_of
from dmoe.tuning.importance import LEAST_TRIALS, importances
from dmoe.tuning.space import Parameter, Space
from dmoe.validation import validate

_OBJECTIVES = {"auc": "AUC", "logloss": "negative logloss", "auc-logloss": "AUC − logloss"}


def write_study_report(folder: Path, output: Path) -> None:
    """Writes the page to `output`.

    Raises: DataError if the folder is no study folder; ConfigError if `output` is not named .html or has no folder;
    MissingExtraError without Optuna, which says how much each parameter mattered.
    """
    check_page(output)
    page = _render(StudyFolder.open(folder))
    with written_aside(output) as aside:
        aside.write_bytes(page.encode("utf-8"))


def _render(folder: StudyFolder) -> str:
    asked, records = folder.asked, folder.records()
    base = validate(RunConfig, asked.config, str(folder.path / "study.json"))
    space = Space.of_facts(asked.name, asked.space)
    objective = _OBJECTIVES[base.training.monitor]
    shares = importances(space, records)
    best = best_of(records)
    with drawing():
        course = [
            svg for svg in (tuning_figures.course(records, objective), tuning_figures.on_the_way(records, objective))
            if svg is not None
        ]  # fmt: skip
        bars = tuning_figures.importance(shares) if shares else None
        slices = [
            svg
            for number, parameter in enumerate(space.parameters)
            if (svg := tuning_figures.slice_of(number, parameter, records, objective)) is not None
        ]
    kept = _kept(folder, best)
    return page_environment().get_template("tuning.html.j2").render(
        asked=asked,
        lead=_lead(asked, records, objective),
        best=None if best is None else _parameters(space, records, best),
        figures=_figures(best, kept),
        verdict=_verdict(folder, records, best),
        notices=_notices(folder, best),
        course=course,
        importance=bars,
        least=LEAST_TRIALS,
        slices=slices,
        trials=_trials(space, records, best),
        facts=_facts(asked, records),
        space=_space(space),
        objective=objective,
        config=yaml.safe_dump(asked.config, sort_keys=False, allow_unicode=True, width=110),
        version=version("dmoe"),
    )  # fmt: skip


def _kept(folder: StudyFolder, best: Record | None) -> FinalMetrics | None:
    """The figures of the run that is kept, None while none is, or an earlier best one is."""
    if best is None or RunFolder(folder.best).environment.get("trial") != best.number:
        return None
    return read_final_metrics(folder.best)


def _lead(asked: Asked, records: Sequence[Record], objective: str) -> str:
    complete = sum(one.state == "complete" for one in records)
    return (
        f"{len(records)} trials on {Path(asked.data).name}, {complete} complete and {len(records) - complete} given "
        f"up, in {numbers.duration(sum(one.seconds for one in records))} of training; chosen by {objective} on the "
        "validation split."
    )


def _verdict(folder: StudyFolder, records: Sequence[Record], best: Record | None) -> list[str]:
    if best is None:
        return []
    found = [f"Trial {best.number} is the best of {len(records)}; its run is kept in {folder.best.name}/."]
    first = records[0]
    if first.number == 0 and first.value is not None and best.value is not None and best.number != 0:
        gain = numbers.change(best.value - first.value)
        found.append(
            f"On validation it is {gain} from trial 0. The best of many trials is partly the luckiest: the figures on "
            "test, which no trial saw, are what to expect."
        )
    return found


def _notices(folder: StudyFolder, best: Record | None) -> list[str]:
    readings = folder.readings()
    if best is None or not readings:
        return ["The test split has not been read."] if best is not None else []
    last = readings[-1]
    found = []
    if len(readings) > 1:
        times = ", ".join(f"after {one.trials} trials for trial {one.trial}" for one in readings)
        found.append(f"The test split was read {len(readings)} times: {times}.")
    if last.trial != best.number:
        found.append(f"The test split was read for trial {last.trial}, which is no longer the best.")
    return found


def _parameters(space: Space, records: Sequence[Record], best: Record) -> TextTable:
    first = records[0] if records[0].number == 0 and best.number != 0 else None
    rows = []
    for parameter in space.parameters:
        if parameter.name in best.params:
            cells = [Text(parameter.name), Text(_value(best.params[parameter.name]))]
            if first is not None:
                cells.append(Text(_value(first.params.get(parameter.name))))
            rows.append([*cells, Text(_range(parameter))])
    head = ["Parameter", f"Trial {best.number}", *([f"Trial {first.number}"] if first else []), "Searched"]
    return TextTable("best", "What the best trial is", head, rows, frozenset(range(1, len(head))))


def _figures(best: Record | None, kept: FinalMetrics | None) -> TextTable:
    rows = []
    if best is not None and best.valid is not None:
        test = None if kept is None else kept.splits.get("test")
        for split, found in {"valid": best.valid, **({} if test is None else {"test": test})}.items():
            for name, one in found.by_label().items():
                where = f"{split}, {name}" if name else split
                rows.append(
                    [
                        Text(where),
                        Text(numbers.whole(one.rows)),
                        Text(numbers.score(one.auc)),
                        Text(numbers.score(one.logloss)),
                    ]
                )
    return TextTable("figures", "Figures of the best trial", ["Split", "Rows", "AUC", "Logloss"], rows)


def _trials(space: Space, records: Sequence[Record], best: Record | None) -> TextTable:
    names = [one.name for one in space.parameters]
    rows = []
    for one in sorted(records, key=lambda one: (-(one.value if one.value is not None else -1e9), one.number)):
        valid = one.valid or FinalScores()
        mark: Emphasis = "bold" if best is not None and one.number == best.number else ""
        rows.append(
            [
                Text(f"{one.number}"),
                Text(numbers.score(one.value), _reached(one), emphasis=mark),
                Text(numbers.score(valid.auc)),
                Text(numbers.score(valid.logloss)),
                Text(numbers.whole(one.parameters)),
                Text(numbers.duration(one.seconds)),
                Text(one.reason or numbers.ABSENT),
                *(Text(_value(one.params.get(name))) for name in names),
            ]
        )
    head = ["Trial", "Value", "AUC", "Logloss", "Trained numbers", "Time", "Given up because", *names]
    words = frozenset(range(6, len(head)))
    return TextTable("trials", "All trials, the best first", head, rows, words)


def _reached(one: Record) -> str:
    """What a trial that was given up had at its last evaluation."""
    if one.value is not None or not one.evaluations:
        return ""
    last = one.evaluations[-1]
    return f"{numbers.score(last.value)} at {last.done / 100:g} epochs"


def _facts(asked: Asked, records: Sequence[Record]) -> TextTable:
    core = sum(one.seconds * one.threads for one in records)
    facts = [
        ("Data", asked.data),
        ("Sampler", {"tpe": "tree-structured Parzen estimator", "random": "blind draws"}[asked.sampler]),
        ("Pruning", "below the median of trials at an evaluation" if asked.pruning else "none"),
        ("Seed of the search", str(asked.seed)),
        ("Core-hours of all trials", f"{core / 3600:.2f}"),
        ("Threads of a trial", ", ".join(sorted({str(one.threads) for one in records})) or numbers.ABSENT),
    ]
    rows = [[Text(name), Text(value)] for name, value in facts]
    return TextTable("facts", "How it was searched", ["", ""], rows, frozenset({1}))


def _space(space: Space) -> TextTable:
    rows = [
        [
            Text(one.name),
            Text(_range(one)),
            Text("; ".join(f"{name} is {' or '.join(labels)}" for name, labels in one.when) or numbers.ABSENT),
        ]
        for one in space.parameters
    ]
    return TextTable("space", "What was searched", ["Parameter", "Between", "Only where"], rows, frozenset({1, 2}))


def _range(parameter: Parameter) -> str:
    if parameter.kind == "choice":
        return ", ".join(parameter.labels)
    text = f"{parameter.low:g} to {parameter.high:g}"
    if parameter.step is not None:
        text += f" in steps of {parameter.step:g}"
    return text + (", logarithmic" if parameter.log else "")


def _value(value: float | int | str | None) -> str:
    if value is None:
        return numbers.ABSENT
    return f"{value:.4g}" if isinstance(value, float) else str(value)
