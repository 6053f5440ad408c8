"""Scores of each label and each domain, and of what labels of a chain say together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dmoe.report import numbers
from dmoe.report.runs import ReportedRun
from dmoe.report.tables import Line, compared
from dmoe.runs.records import CalibrationRecord, LabelRecord, PartRecord, TaskRecord
from dmoe.schema import links

MAX_DOMAINS = 20


@dataclass(frozen=True)
class ScoresLine:
    """Scores of one label, of several together, or of one domain, as they are written."""

    name: str
    cells: tuple[str, ...]  # rows, unknown, positive, AUC, logloss, RIG, predicted / observed


@dataclass(frozen=True)
class DomainTable:
    """The domains of one label by falling count in train, and the two ways of taking them together."""

    title: str
    lines: list[ScoresLine]
    left_out: list[str]
    others: int  # domains that are not shown


@dataclass(frozen=True)
class Labels:
    """What the section says of one run."""

    split: str
    lines: list[ScoresLine]
    domains: list[DomainTable]
    facts: list[str]


def of_run(run: ReportedRun) -> Labels | None:
    """Of the evaluation shown in detail, None without several labels or domains."""
    if run.detail is None or not run.detail.tasks:
        return None
    lines, domains = [], []
    for name, task in run.detail.tasks.items():
        for title, one, unknown in _parts(name, task, run.detail.tasks):
            lines.append(_line(title, one, unknown, one.relative_information_gain))
            if one.domains:
                domains.append(_domains(title, one))
    return Labels(
        run.detail.split, lines, domains, [*_beside(run, run.detail.split), *_own_best(run), *_gradients(run)]
    )


def calibrations(run: ReportedRun) -> list[tuple[str, CalibrationRecord]]:
    """Of the evaluation shown in detail: of each label and each chain, by title, which one label alone needs not."""
    if run.detail is None:
        return []
    tasks = run.detail.tasks
    if len(tasks) < 2:
        return [("", run.detail.calibration)] if run.detail.calibration is not None else []
    parts = [part for name, task in tasks.items() for part in _parts(name, task, tasks)]
    return [(title, one.calibration) for title, one, _ in parts if one.calibration is not None]


def _parts(name: str, task: TaskRecord, tasks: Mapping[str, TaskRecord]) -> list[tuple[str, LabelRecord, int | None]]:
    """A label by itself, and with those above it: title, scores, and rows that do not know it."""
    if task.joint is None:
        return [(name, task, task.unknown)]
    together = " and ".join(links({one: said.given for one, said in tasks.items()}, name))
    return [(f"{name} given {task.given}", task, task.unknown), (together, task.joint, None)]


def _line(title: str, one: PartRecord, unknown: int | None, gain: float | None) -> ScoresLine:
    return ScoresLine(
        title,
        (
            numbers.whole(one.rows),
            numbers.whole(unknown),
            numbers.percent(one.positives / one.rows if one.rows else None),
            numbers.score(one.auc),
            numbers.score(one.logloss),
            numbers.percent(gain),
            numbers.weight(one.predicted_to_observed),
        ),
    )


def _domains(title: str, one: LabelRecord) -> DomainTable:
    parts = list(one.domains.items())
    lines = [_line(name, part, None, None) for name, part in parts[:MAX_DOMAINS]]
    lines.append(_line("all rows together (micro)", one, None, None))
    macro = one.macro
    if macro is not None:
        written = (numbers.score(macro.auc), numbers.score(macro.logloss))
        absent = numbers.ABSENT
        lines.append(ScoresLine("mean over domains (macro)", (absent, absent, absent, *written, absent, absent)))
    return DomainTable(title, lines, list(macro.left_out) if macro else [], max(0, len(parts) - MAX_DOMAINS))


def _beside(run: ReportedRun, split: str) -> list[str]:
    """How far each label is above a regression of its own."""
    found = []
    for name, splits in (run.beside or {}).get("tasks", {}).items():
        if split in splits:
            auc, logloss = splits[split]["auc"], splits[split]["logloss"]
            found.append(
                f"A logistic regression of {name} by itself has AUC {numbers.score(auc['first'])} and logloss "
                f"{numbers.score(logloss['first'])} on {split}; the run differs by {_interval(auc)} and "
                f"{_interval(logloss)}."
            )
    return found


def _interval(paired: Mapping[str, float]) -> str:
    low, high = numbers.change(paired["low"]), numbers.change(paired["high"])
    return f"{numbers.change(paired['difference'])} [{low}, {high}]"


def _own_best(run: ReportedRun) -> list[str]:
    """What one set of weights for all labels costs each."""
    own = run.metrics.own_best if run.metrics is not None else {}
    if not own:
        return []
    short = {name: one for name, one in own.items() if one.short}
    if not short:
        return ["The kept evaluation is the best for every label by itself."]
    return [
        f"For {name} alone the evaluation at step {numbers.whole(one.step)} was the best; the kept one is "
        f"{numbers.score(one.short)} short of it ({run.config.training.monitor})."
        for name, one in short.items()
    ]


def _gradients(run: ReportedRun) -> list[str]:
    """Whether labels pull the shared weights the same way."""
    pairs = run.metrics.task_gradients.pairs if run.metrics is not None else ()
    return [
        f"The gradients of {one.first} and {one.second} at the experts and table rows have a mean cosine of "
        f"{numbers.change(one.cosine, 3)}, below 0 in {numbers.percent(one.below_0)} of the batches looked at."
        for one in pairs
        if one.cosine is not None
    ]


def comparison(runs: Sequence[ReportedRun]) -> list[Line]:
    """Scores of the labels beside the main one, and joint ones, on the split that every run shows in detail."""
    splits = {run.detail.split for run in runs if run.detail is not None}
    if len(splits) != 1:
        return []
    split = splits.pop()
    found: list[dict[str, LabelRecord]] = []
    for run in runs:
        tasks = run.detail.tasks if run.detail is not None else {}
        parts = [part for name, task in tasks.items() for part in _parts(name, task, tasks)]
        found.append({title: one for title, one, _ in parts if title != run.schema.label})
    lines = []
    for title in dict.fromkeys(title for one in found for title in one):
        scores = [one.get(title, LabelRecord()) for one in found]
        auc, logloss = [one.auc for one in scores], [one.logloss for one in scores]
        lines += [
            compared(f"AUC of {title}, {split}", auc, numbers.score, better="high", decimals=5),
            compared(f"Logloss of {title}, {split}", logloss, numbers.score, better="low", decimals=5),
        ]
    return lines
