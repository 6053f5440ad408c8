"""Tables of the report that set runs side by side."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dmoe.report import numbers, sentences
from dmoe.report.runs import ReportedRun
from dmoe.runs.records import Apart, CorrelationRecord, EvaluationRecord, ExpertScores

MAX_UNSEEN_FIELDS = 12


@dataclass(frozen=True)
class TableCell:
    """A figure of one run; `change` is its difference from the first run."""

    text: str
    change: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One figure of every run."""

    label: str
    cells: Sequence[TableCell]


@dataclass(frozen=True)
class ExpertLine:
    """What an expert contributes: the scores without it and with it alone, and their changes."""

    name: str
    table: str
    parameters: str
    without: TableCell
    without_logloss: TableCell
    alone: TableCell
    alone_logloss: TableCell
    changes: tuple[float | None, float | None] = field(default=(None, None))


def comparison(runs: Sequence[ReportedRun], further: Sequence[Line] = ()) -> list[Line]:
    """The lines of the table at the top, `further` ones behind the scores; differences are to the first run."""
    lines = []
    for split in _all_splits(runs):
        scores = [run.scores(split) for run in runs]
        auc = [one.auc if one else None for one in scores]
        logloss = [one.logloss if one else None for one in scores]
        lines += [
            compared(f"AUC, {split}", auc, numbers.score, better="high", decimals=5),
            compared(f"Logloss, {split}", logloss, numbers.score, better="low", decimals=5),
        ]
    lines += further
    outputs = [_output(run) for run in runs]
    where = {run.detail.split for run in runs if run.detail is not None and run.num_experts > 1}
    suffix = f", {where.pop()}" if len(where) == 1 else ""
    total = [one.cec if one else None for one in outputs]
    lines += [
        compared(f"CEC of outputs{suffix}", total, numbers.correlation, decimals=4),
        compared("CEC noise floor", [one.cec_floor if one else None for one in outputs], numbers.correlation),
        Line("Dead output units", [TableCell(_dead(one)) for one in outputs]),
        compared("Training rows/s", [run.rows_per_second for run in runs], numbers.whole),
        compared("Training time", [run.metrics.seconds if run.metrics else None for run in runs], numbers.duration),
        compared("Parameters", [run.metrics.parameters if run.metrics else None for run in runs], numbers.whole),
        Line("De-correlation", [TableCell(_terms(run)) for run in runs]),
    ]
    return [line for line in lines if any(cell.text != numbers.ABSENT for cell in line.cells)]


def compared(
    label: str,
    values: Sequence[float | None],
    written: Callable[[float | None], str],
    *,
    better: Literal["high", "low"] | None = None,
    decimals: int | None = None,
) -> Line:
    """A figure of every run, with its difference from the first run's to so many decimals, and the best marked."""
    known = [value for value in values if value is not None]
    best = None if better is None or len(known) < 2 else (max if better == "high" else min)(known)
    first = values[0]
    cells = []
    for index, value in enumerate(values):
        shown = ""
        if decimals is not None and index and value is not None and first is not None:
            shown = numbers.change(value - first, decimals)
        cells.append(TableCell(written(value), shown, best is not None and value == best))
    return Line(label, cells)


def _all_splits(runs: Sequence[ReportedRun]) -> list[str]:
    longest = max((run.splits for run in runs), key=len, default=[])
    return list(longest) + [
        split for split in dict.fromkeys(s for run in runs for s in run.splits) if split not in longest
    ]


def _output(run: ReportedRun) -> CorrelationRecord | None:
    return run.detail.correlation.get("output") if run.detail else None


def _dead(measured: CorrelationRecord | None) -> str:
    if measured is None or not measured.dead_columns:
        return numbers.ABSENT
    return f"{numbers.whole(sum(measured.dead_columns))} of {numbers.whole(sum(measured.columns))}"


def _terms(run: ReportedRun) -> str:
    terms = [
        f"{one.loss}, {one.location}, α {numbers.plain(one.alpha)}" for one in run.config.decorrelation if one.alpha > 0
    ]
    return "; ".join(terms) or "none"


def warnings(runs: Sequence[ReportedRun]) -> list[str]:
    """Why the runs of one table may not be comparable."""
    found = []
    first = runs[0]
    if other := next((run for run in runs if run.schema != first.schema), None):
        found.append(
            f"{first.name} and {other.name} were trained on different data or vocabularies: their scores "
            "answer different questions."
        )
    for split in _all_splits(runs):
        rows = {run.name: (one.rows, one.positives) for run in runs if (one := run.evaluations.get(split)) is not None}
        if len(set(rows.values())) > 1:
            counts = sentences.join([f"{name} {numbers.whole(count)}" for name, (count, _) in rows.items()])
            found.append(f"The {split} rows differ ({counts}): differences on {split} mean little.")
    return found


def unseen_shares(run: ReportedRun) -> list[tuple[str, list[float | None]]]:
    """By field the share of unseen values in train, valid and test, the largest first; fields that have some."""
    known = [
        (name, [one.unseen.get(split) for split in ("train", "valid", "test")])
        for name, one in run.schema.coverage.items()
        if any(one.unseen.values())
    ]
    return sorted(known, key=lambda one: -max(share or 0.0 for share in one[1]))[:MAX_UNSEEN_FIELDS]


def unseen_scores(detail: EvaluationRecord) -> list[tuple[str, Apart]]:
    """Scores with and without unseen values: of any field, then of the fields with the largest shares."""
    if detail.unseen is None or not detail.unseen.any.with_unseen.rows:
        return []
    worst = sorted((one for one in detail.unseen.fields if one.scores), key=lambda one: -one.share)
    fields = [(f"{one.field} (or missing)" if one.with_missing else one.field, one.scores) for one in worst]
    return [("any field", detail.unseen.any), *((name, scores) for name, scores in fields if scores is not None)]


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as `a.b[0].c` to value."""
    if isinstance(values, dict) and values:
        entries: Iterable[tuple[str, Any]] = (
            (f"{prefix}.{key}" if prefix else str(key), value) for key, value in values.items()
        )
    elif isinstance(values, list) and any(isinstance(value, dict | list) for value in values):
        entries = ((f"{prefix}[{index}]", value) for index, value in enumerate(values))
    else:
        return {prefix: values}
    return {key: inner for name, value in entries for key, inner in flatten(value, name).items()}


def configuration_differences(runs: Sequence[ReportedRun]) -> list[Line]:
    """The keys of config.yaml that are not alike in all runs."""
    return [line for line in _by_key([run.config_values for run in runs]) if len({*_texts(line)}) > 1]


def environment(runs: Sequence[ReportedRun]) -> list[Line]:
    """environment.json of every run, key by key."""
    return _by_key([run.environment or {} for run in runs])


def _texts(line: Line) -> list[str]:
    return [cell.text for cell in line.cells]


def _by_key(values: Sequence[dict[str, Any]]) -> list[Line]:
    flat = [flatten(one) if one else {} for one in values]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [
        Line(key, [TableCell(_setting(key, one[key]) if key in one else numbers.ABSENT) for one in flat])
        for key in keys
    ]


def _setting(key: str, value: Any) -> str:
    """A value of a configuration or environment; the key's last word tells its unit."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key.endswith("bytes"):
            return numbers.size(value)
        if key.endswith("seconds"):
            return numbers.duration(value)
    return json.dumps(value, ensure_ascii=False)


def experts(run: ReportedRun, detail: EvaluationRecord) -> list[ExpertLine]:
    """Removal and alone scores by expert, none for a run that has neither."""
    if not detail.removal and not detail.alone:
        return []
    known = {run.expert_name(expert.index): expert for expert in detail.experts}
    removed = {run.expert_name(one.expert): one for one in detail.removal}
    alone = {run.expert_name(one.expert): one for one in detail.alone}
    lines = []
    for name in run.expert_names:
        expert = known.get(name)
        pairs = (_effect(removed.get(name), detail), _effect(alone.get(name), detail))
        lines.append(
            ExpertLine(
                name,
                numbers.ABSENT if expert is None or expert.table is None else str(expert.table),
                numbers.whole(expert.parameters if expert else None),
                pairs[0][0],
                pairs[0][1],
                pairs[1][0],
                pairs[1][1],
                (pairs[0][2], pairs[1][2]),
            )
        )
    return lines


def _effect(scores: ExpertScores | None, whole: EvaluationRecord) -> tuple[TableCell, TableCell, float | None]:
    if scores is None:
        return TableCell(numbers.ABSENT), TableCell(numbers.ABSENT), None
    auc = None if scores.auc is None or whole.auc is None else scores.auc - whole.auc
    logloss = None if scores.logloss is None or whole.logloss is None else scores.logloss - whole.logloss
    return (
        TableCell(numbers.score(scores.auc), "" if auc is None else numbers.change(auc)),
        TableCell(numbers.score(scores.logloss), "" if logloss is None else numbers.change(logloss)),
        auc,
    )
