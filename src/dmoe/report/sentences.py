"""What the report says in sentences: what was trained, on what, and what came of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmoe.report import numbers
from dmoe.report.runs import ReportedRun
from dmoe.runs.records import CalibrationMap, CorrelationRecord, EvaluationRecord, GateRecord, ScoresRecord
from dmoe.schema import Schema

_LOCATIONS = {
    "output": "Expert outputs (after the ReLU)",
    "pre-activation": "Before the ReLU",
    "intermediate": "Intermediate layer",
    "input": "Expert inputs (embeddings)",
}
# Below this multiple of the floor a CEC says no more than that the rows were finite.
AT_THE_FLOOR = 1.5
MANY_DEAD = 0.1
SCORES_DIFFER = 1e-5


@dataclass(frozen=True)
class Location:
    """A place where correlation was measured, and how figures and tables name it."""

    key: str
    short: str
    full: str


def locations(evaluation: EvaluationRecord) -> list[Location]:
    """The measured locations from output to input; a location of several layers is measured layer by layer."""
    order = list(_LOCATIONS)
    found = []
    for key in evaluation.correlation:
        base, _, layer = key.partition(" ")
        full = f"{_LOCATIONS.get(base, base)} {layer}".strip()
        rank = order.index(base) if base in order else len(order)
        found.append((rank, int(layer) if layer.isdigit() else 0, Location(key, key.capitalize(), full)))
    return [location for *_, location in sorted(found, key=lambda one: one[:2])]


def join(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def model(run: ReportedRun) -> str:
    """What was trained."""
    names = run.expert_names
    if run.baseline is not None:
        return f"A simple model to stand beside the others: {run.baseline}."
    if len(names) == 1:
        return f"A single {names[0]} expert, without gate or mixture."
    tables = run.config.model.tables
    if tables == "shared":
        table_words = "one embedding table that all experts share"
    elif tables == "per-expert":
        table_words = "an embedding table for each expert"
    else:
        table_words = "embedding tables by group (" + (
            ", ".join(f"{name}: table {table}" for name, table in zip(names, tables, strict=False)) + ")"
        )
    return f"A mixture of {len(names)} experts, {join(names)}, with {table_words}; {decorrelation(run)}."


def decorrelation(run: ReportedRun) -> str:
    terms = [
        f"the {term.loss} loss at the {term.location} (α = {numbers.plain(term.alpha)})"
        for term in run.config.decorrelation
        if term.alpha > 0
    ]
    return f"de-correlated by {join(terms)}" if terms else "no de-correlation loss"


def grouped(run: ReportedRun) -> str:
    """AUC inside groups, as far as it was asked for."""
    detail = run.detail
    assert detail is not None
    assert detail.grouped_auc is not None
    scores = [
        f"{name} {numbers.score(one.auc)} ({numbers.whole(one.groups)} groups with both classes, "
        f"{numbers.whole(one.rows)} rows)"
        if one is not None
        else f"{name} none (no group has both classes)"
        for name, one in detail.grouped_auc.tasks.items()
    ]
    return f"AUC inside the groups of {detail.grouped_auc.field} on {detail.split}, {run.name}: {join(scores)}."


def data(run: ReportedRun) -> str:
    """On what it was trained."""
    schema = run.schema
    parts = []
    if schema.categorical:
        entries = numbers.whole(sum(schema.vocabulary_sizes))
        parts.append(f"{len(schema.categorical)} categorical with {entries} vocabulary entries")
    if schema.numeric:
        parts.append(f"{len(schema.numeric)} numeric")
    return f"{len(schema.fields)} fields ({join(parts)}), {_labels(schema)}."


def _labels(schema: Schema) -> str:
    if not schema.labels:
        labels = f"label {schema.label}"
    else:
        labels = "labels " + join(
            [task.name if task.given is None else f"{task.name} (given {task.given})" for task in schema.labels]
        )
    if schema.domain is not None:
        labels += f", {len(schema.domain.names)} domains by {schema.domain.field}"
    return labels if schema.weight is None else f"{labels}, rows weighted by {schema.weight}"


def training(run: ReportedRun) -> str:
    """How long it trained and which weights were kept."""
    parts = []
    if run.metrics is None:
        parts.append("Training has not finished: the folder has no metrics.json.")
    elif run.metrics.seconds is not None:
        parts.append(f"Trained for {numbers.duration(run.metrics.seconds)}.")
    if run.metrics is not None and run.metrics.best_epoch is not None:
        last = f" of {numbers.plain(run.epochs[-1].epoch)}" if run.epochs else ""
        parts.append(f"The weights kept are those of epoch {numbers.plain(run.metrics.best_epoch)}{last}.")
    return " ".join(parts)


def result(run: ReportedRun) -> list[str]:
    """The result in sentences, most important first."""
    if not run.splits:
        return ["It has no score yet: neither metrics.json nor an evaluation is in the folder."]
    split = run.splits[0]
    scores = run.scores(split) or ScoresRecord()
    evaluation = run.evaluations.get(split)
    of = ""
    if evaluation is not None:
        rate = evaluation.positives / evaluation.rows if evaluation.rows else None
        of = f" ({numbers.whole(evaluation.rows)} rows, {numbers.percent(rate)} clicked)"
    first = f"On {judged(run, split)}{of}: AUC {numbers.score(scores.auc)}, "
    sentences = [first + f"logloss {numbers.score(scores.logloss)}."]
    sentences += [warning for known in run.splits if (warning := _stale(run, known))]
    if evaluation is not None and evaluation.calibration is not None:
        ratio = evaluation.calibration.predicted_to_observed
        if ratio is not None:
            sentences.append(f"It predicts {ratio:.3f} times the clicks that happened.")
    sentences += [f"Attention: {fault}." for fault in run.faults]
    if (detail := run.detail) is not None and run.num_experts > 1:
        sentences += _experts(run, detail)
    return sentences


def judged(run: ReportedRun, split: str) -> str:
    """A split, and of several labels the one that its scores are of."""
    return f"{split}, {run.schema.label}" if run.schema.labels else split


def _stale(run: ReportedRun, split: str) -> str | None:
    """Training and evaluation measure one model on one split: a difference means that one is out of date."""
    evaluation = run.evaluations.get(split)
    trained = run.metrics.splits.get(split) if run.metrics else None
    if evaluation is None or trained is None or evaluation.auc is None or trained.auc is None:
        return None
    if abs(evaluation.auc - trained.auc) <= SCORES_DIFFER:
        return None
    return (
        f"Attention: metrics.json says AUC {numbers.score(trained.auc)} on {split}, the evaluation "
        f"{numbers.score(evaluation.auc)}; one of them is of other weights or rows. Run dmoe evaluate again."
    )


def _experts(run: ReportedRun, detail: EvaluationRecord) -> list[str]:
    sentences = []
    output = detail.correlation.get("output")
    if output is not None:
        sentences += [correlation(output), dead_units(run, output)]
    if detail.gate is not None:
        sentences.append(gate(run, detail.gate))
    return [sentence for sentence in sentences if sentence]


def correlation(measured: CorrelationRecord) -> str:
    """CEC against its floor."""
    if measured.cec is None:
        return "The correlation between the experts’ outputs is undefined: no pair has live units on both sides."
    start = f"Cross-expert correlation (CEC) at the output is {numbers.correlation(measured.cec)}"
    if len(measured.pairs) > 1:
        start += f", summed over {len(measured.pairs)} pairs"
    if measured.num_undefined:
        start += f" (without {measured.num_undefined} of which an expert has no live unit)"
    floor = measured.cec_floor
    if not floor:
        return start + "."
    ratio = measured.cec / floor
    against = f" outputs that are independent would show {numbers.correlation(floor)} on as many rows"
    if ratio < AT_THE_FLOOR:
        return f"{start}, not above the noise floor:{against}."
    return f"{start}, {numbers.times(ratio)} times the noise floor:{against}."


def dead_units(run: ReportedRun, measured: CorrelationRecord) -> str:
    """How many units never vary, per expert; a warning where they are many."""
    counted = list(zip(run.expert_names, measured.dead_columns, measured.columns, strict=False))
    if not counted:
        return ""
    if not any(dead for _, dead, _ in counted):
        return "No unit is dead."
    parts = [f"{numbers.whole(dead)} of {numbers.whole(units)} in {name}" for name, dead, units in counted]
    text = f"Dead units: {join(parts)}."
    if any(dead > MANY_DEAD * units for _, dead, units in counted):
        text += " CEC leaves them out: part of the de-correlation may be units that stopped working."
    lost = [name for name, dead, units in counted if dead == units]
    if lost:
        text += f" Nothing of {join(lost)} varies from row to row, so the mixture gains nothing by it."
    return text


def gate(run: ReportedRun, measured: GateRecord) -> str:
    """How the gate shares the rows out."""
    shares = [f"{name} {numbers.weight(mean)}" for name, mean in zip(run.expert_names, measured.mean, strict=True)]
    text = f"The gate gives {join(shares)} on average"
    if measured.mean_entropy is not None:
        most = math.log(run.num_experts)
        text += f"; its mean entropy is {measured.mean_entropy:.3f} of {most:.3f} nats (all experts alike)"
    return text + "."


def unseen(detail: EvaluationRecord) -> str:
    """What unseen values do to the scores of a split."""
    if detail.unseen is None:
        return ""
    apart = detail.unseen.any
    rows = apart.with_unseen.rows
    if not rows:
        return f"No row of {detail.split} has a value that training never saw."
    text = f"{numbers.percent(rows / detail.rows)} of the rows of {detail.split} have a value that training never saw"
    if apart.with_unseen.auc is not None and apart.without.auc is not None:
        text += (
            f": AUC is {numbers.score(apart.with_unseen.auc)} on them, {numbers.score(apart.without.auc)} on the others"
        )
    return text + "."


def missing(run: ReportedRun, part: str) -> str:
    """Why a section has nothing to show for a run."""
    if run.num_experts == 1 and part in ("correlation", "gate", "experts"):
        return f"{run.name} has a single expert: there is nothing to compare, weigh or remove."
    if run.detail is None:
        return f"{run.name} was not evaluated; `dmoe evaluate` on its folder adds these figures."
    return f"The evaluation of {run.name} holds no such figures."


def beside(run: ReportedRun, split: str, paired: Mapping[str, Any]) -> str:
    """How the run stands to the logistic regression of its data set on the same rows."""
    assert run.beside is not None  # the caller has read it
    parts = []
    for name, key, better in (("AUC", "auc", 1), ("logloss", "logloss", -1)):
        one = paired[key]
        interval = f"{numbers.change(one['low'])} to {numbers.change(one['high'])}"
        verdict = "not resolved" if one["p"] >= 0.05 else ("better" if one["difference"] * better > 0 else "worse")
        parts.append(f"{name} {numbers.change(one['difference'])} ({interval}, {verdict})")
    text = f"{run.name} against the {run.beside['name']} on the same {split} rows: {', '.join(parts)}."
    apart = (run.beside["unseen"].get(split) or {}).get("any")
    own = run.evaluations[split].unseen if split in run.evaluations else None
    if apart is None or own is None:
        return text
    sides = (("with", own.any.with_unseen.auc, "with"), ("without", own.any.without.auc, "without"))
    told = [
        f"{numbers.score(auc)} against {numbers.score(apart[key]['auc'])} on rows {words} unseen values"
        for words, auc, key in sides
        if auc is not None and apart[key]["auc"] is not None
    ]
    return f"{text} AUC {join(told)}." if told else text


def linear(run: ReportedRun) -> str:
    """What the regression beside the experts is, and what each has by itself."""
    assert run.linear is not None  # the caller has read it
    if not run.linear.used:
        return (
            "The model has room for a logistic regression beside the experts, but the data set’s is on rates of lists, "
            "which are no sum over values: it has no share of the logit."
        )
    share = run.linear.share
    text = (
        f"Beside the experts stands the data set’s logistic regression ({run.linear.encoding}): its share of the logit "
        f"is {numbers.percent(share)}, the mixture’s {numbers.percent(1 - share)}"
    )
    split = next((name for name in ("test", "valid") if name in run.linear.splits), None)
    if split is None:
        return text + "."
    scores = run.linear.splits[split]
    return (
        f"{text}. On {split} the mixture by itself has AUC {numbers.score(scores.mixture.auc)} and logloss "
        f"{numbers.score(scores.mixture.logloss)}, the regression by itself {numbers.score(scores.linear.auc)} and "
        f"{numbers.score(scores.linear.logloss)}."
    )


_MAPS = {
    "temperature": "divided by a temperature",
    "platt": "scaled and shifted (Platt)",
    "isotonic": "bent by isotonic regression",
}


def calibration_map(found: CalibrationMap) -> str:
    """What became of the logits after training."""
    if found.kind == "none":
        return "The logits are the model’s own: no map fitted on valid was better beyond chance on rows left out of it."
    rows = "valid" if found.rows == found.valid_rows else f"the last {numbers.whole(found.rows)} rows of valid"
    return (
        f"The model’s logits are {_MAPS.get(found.kind, found.kind)}, as fitted on {rows}; test rows had no part in it."
    )
