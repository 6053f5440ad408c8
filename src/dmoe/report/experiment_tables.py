"""The tables of an experiment's report, as texts."""

from collections.abc import Callable, Sequence

from dmoe.experiments.grid import Metric
from dmoe.experiments.paper import PaperTable, paper
from dmoe.experiments.plan import CHOSEN_BY
from dmoe.experiments.planted import assigned
from dmoe.experiments.statistics import Compared, Spread
from dmoe.experiments.summary import Claim, Decided, ExperimentSummary, Place, Table
from dmoe.metrics.paired import SIGNIFICANCE
from dmoe.report import numbers
from dmoe.report.numbers import ABSENT
from dmoe.report.text_table import Emphasis, Text, TextTable

METRIC_NAMES = {"auc": "AUC", "logloss": "logloss", "cec": "CEC", "separation": "separation"}
_VERDICTS: dict[str, Emphasis] = {"holds": "bold", "contradicted": "italic", "not resolved": ""}


def spread(value: Spread | None, digits: int) -> str:
    """Mean ± standard deviation over seeds."""
    if value is None:
        return ABSENT
    text = f"{value.mean:.{digits}f}".replace("-", numbers.MINUS)
    if float(f"{value.mean:.{digits}f}") == 0:
        text = text.removeprefix(numbers.MINUS)
    return text if value.std is None else f"{text} ± {value.std:.{digits}f}"


def interval(compared: Compared, digits: int) -> str:
    return f"{numbers.change(compared.low, digits)} to {numbers.change(compared.high, digits)}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def scores(table: Table) -> TextTable:
    """AUC of every place, with its seeds where they differ; bold and italic as the comparisons decide."""

    def cell(place: Place) -> Text:
        if not place.runs:
            return Text(ABSENT, place.missing)
        marks = table.marks(place.model, place.variant)
        # Better than one and worse than another: no emphasis.
        emphasis = _VERDICTS[next(iter(marks))] if len(marks) == 1 else ""
        return Text(spread(place.spread("auc"), 5), emphasis=emphasis)

    compared = dict.fromkeys(f"{one.better} with {one.than}" for one in table.grid.compare if one.metric == "auc")
    caption = f"{table.grid.title}: test AUC, mean ± standard deviation over seeds."
    if compared:
        caption += (
            f" Bold: better, italic: worse, beyond chance (Holm, {100 * (1 - SIGNIFICANCE):.0f}%), comparing "
            + ", ".join(compared)
            + "."
        )
    return _by_variant(table, "auc", caption, cell)


def gains(table: Table) -> TextTable | None:
    """Of a nested grid: every difference of AUC and logloss by training rows, and its growth; None for other grids."""
    if not table.grid.nested:
        return None
    shown = [one for one in (*table.decided, *table.pooled, *table.slopes) if one.metric == "auc"]
    compared = list(dict.fromkeys((one.better, one.than) for one in shown))
    rows = []
    for row in dict.fromkeys(one.row for one in shown):
        cells = [Text(row)]
        for pair in compared:
            one = next((each for each in shown if each.row == row and (each.better, each.than) == pair), None)
            if one is None:
                cells += [Text(ABSENT), Text(ABSENT)]
                continue
            loss = one.logloss
            cells.append(
                Text(
                    numbers.change(one.compared.difference, 4),
                    interval(one.compared, 4),
                    emphasis=_VERDICTS[one.verdict],
                )
            )
            cells.append(
                Text(numbers.change(loss.difference, 4), interval(loss, 4)) if loss is not None else Text(ABSENT)
            )
        rows.append(cells)
    head = [table.grid.row_title]
    for better, than in compared:
        head += [f"AUC, {better} − {than}", f"Logloss, {better} − {than}"]
    caption = (
        f"{table.grid.title}: difference on the same test rows with its 95% interval over seeds and test rows. Bold: "
        "better, italic: worse in AUC beyond chance (Holm). Ten times the rows: by how much the difference grows."
    )
    return TextTable(f"{table.name}-gains", caption, head, rows) if rows else None


def other(table: Table, metric: Metric, digits: int, caption: str) -> TextTable:
    """Another figure of every place."""
    return _by_variant(table, metric, caption, lambda place: Text(spread(place.spread(metric), digits)))


def _by_variant(table: Table, key: str, caption: str, cell: Callable[[Place], Text]) -> TextTable:
    rows = []
    for model in table.grid.models:
        places = [table.places.get((model, column)) for column in table.columns]
        rows.append([Text(model), *(Text(ABSENT) if place is None else cell(place) for place in places)])
    return TextTable(f"{table.name}-{key}", caption, [table.grid.row_title, *table.columns], rows)


def details(table: Table) -> TextTable:
    """Every figure of every place, one line each."""
    rows = []
    for place in table.places.values():
        if not place.runs:
            continue
        rows.append(
            [
                Text(place.model),
                Text(place.variant),
                Text(_alpha(place)),
                Text(str(len(place.runs))),
                Text(spread(place.spread("auc"), 5)),
                Text(spread(place.spread("logloss"), 5)),
                Text(spread(place.spread("calibration_error"), 4)),
                Text(spread(place.spread("predicted_to_observed"), 3)),
                Text(spread(place.spread("cec"), 4), _floor(place)),
                Text(spread(place.spread("cka"), 3)),
                Text(_percent(place.spread("dead_share"))),
                Text(numbers.whole(_mean(place, "parameters"))),
                Text(numbers.duration(_mean(place, "seconds"))),
            ]
        )
    head = [
        table.grid.row_title, "Variant", "α", "Seeds", "AUC", "Logloss", "Calibration error", "Predicted / observed",
        "CEC", "CKA",
        "Dead units", "Parameters", "Training time",
    ]  # fmt: skip
    caption = (
        f"{table.grid.title}: every figure on the test split, mean ± standard deviation over seeds. α: at scale paper, "
        "and dimension-free where the loss is at the output. Below CEC: its noise floor."
    )
    return TextTable(f"{table.name}-details", caption, head, rows, frozenset({1, 2}))


def inside(table: Table) -> TextTable | None:
    """What the experts of every place are like, or None where no model has several."""
    rows = []
    for place in table.places.values():
        if not place.values("gate_entropy"):
            continue
        fields: dict[str, int] = {}
        for run in place.runs.values():
            for one in run["gate_fields"]:
                fields[one["field"]] = fields.get(one["field"], 0) + 1
        rows.append(
            [
                Text(place.model),
                Text(place.variant),
                Text(spread(place.spread("auc"), 4)),
                Text(spread(place.spread("best_alone_auc"), 4)),
                Text(spread(place.spread("mean_alone_auc"), 4)),
                Text(spread(place.spread("error_correlation"), 3)),
                Text(spread(place.spread("gate_entropy"), 3)),
                Text(", ".join(sorted(fields, key=lambda name: (-fields[name], name))[:3])),
                Text(spread(place.spread("abundance"), 3)),
            ]
        )
    if not rows:
        return None
    head = [
        table.grid.row_title, "Variant", "AUC", "Best expert alone", "Mean of experts alone", "Error correlation",
        "Gate entropy",
        "Fields that decide the gate", "Information abundance",
    ]  # fmt: skip
    caption = (
        f"{table.grid.title}: the experts. Alone: the tower on one expert's output; mean: of their logits. Error "
        "correlation: of y − p between experts alone. Gate entropy: 1 if all experts weigh the same in every row, 0 if "
        "one decides. Information abundance of the experts' tables, by the count of tokens, 1 without collapse."
    )
    return TextTable(f"{table.name}-experts", caption, head, rows, frozenset({1, 7}))


def structures(table: Table) -> TextTable | None:
    """What each expert holds of each planted structure, or None where none was planted."""
    rows = []
    parts: list[str] = []
    for place in table.places.values():
        found = [run["planted"] for run in place.runs.values() if run.get("planted")]
        if not found:
            continue
        parts = found[0]["parts"]
        cells = []
        for owner in range(len(parts)):
            for part in range(len(parts)):
                held = [one["r_squared"][assigned(one["r_squared"])[owner]][part] for one in found]
                cells.append(Text(spread(Spread.of(held), 3), emphasis="bold" if owner == part else ""))
        rows.append([Text(place.model), Text(place.variant), *cells])
    if not rows:
        return None
    head = ["Model", "Variant", *(f"{part}, by the expert of {owner}" for owner in parts for part in parts)]
    caption = (
        f"{table.grid.title} R² of a linear read-out of each planted structure from an expert’s outputs, on the test "
        "split. Each structure is given the expert that separates them best; bold: that expert’s own structure."
    )
    return TextTable(f"{table.name}-structures", caption, head, rows, frozenset({1}))


def comparisons(table: Table) -> TextTable | None:
    """Every comparison with its intervals."""
    rows = [_compared(one) for one in (*table.decided, *table.pooled, *table.slopes)]
    if not rows:
        return None
    head = [
        table.grid.row_title, "Compared", "Figure", "Difference", "95% interval", "p", "p (Holm)",
        "95% of test rows alone",
        "Logloss difference", "95% interval of logloss", "Verdict",
    ]  # fmt: skip
    caption = (
        f"{table.grid.title}: comparisons, first minus second. The interval counts both seeds and test rows "
        "(DeLong); that of test rows alone is a bootstrap of rows for these very models. Holm: over the table’s "
        "comparisons of the same figure."
    )
    if table.slopes:
        caption += (
            " The last rows: the slope of the least-squares line of the difference over the logarithm of the training "
            "rows, and Holm over these."
        )
    return TextTable(f"{table.name}-comparisons", caption, head, rows, frozenset({1, 2, 10}))


def _compared(one: Decided) -> list[Text]:
    compared, digits = one.compared, 5 if one.metric == "auc" else 4
    rows_alone = ABSENT
    if compared.rows_low is not None and compared.rows_high is not None:
        rows_alone = f"{numbers.change(compared.rows_low, digits)} to {numbers.change(compared.rows_high, digits)}"
    logloss = one.logloss
    return [
        Text(one.row),
        Text(f"{one.better} − {one.than}"),
        Text(METRIC_NAMES[one.metric]),
        Text(numbers.change(compared.difference, digits)),
        Text(interval(compared, digits)),
        Text(p_value(compared.p)),
        Text(p_value(one.adjusted)),
        Text(rows_alone),
        Text(numbers.change(logloss.difference) if logloss else ABSENT),
        Text(interval(logloss, 5) if logloss else ABSENT),
        Text(_in_words(one), emphasis=_VERDICTS[one.verdict]),
    ]


def _in_words(one: Decided) -> str:
    """The verdict; without a claim there is only a difference."""
    if one.claim is not None or one.verdict == "not resolved":
        return one.verdict
    return "better" if one.verdict == "holds" else "worse"


def claims(found: Sequence[Claim]) -> TextTable:
    """Each claim: in how many comparisons it holds, and the difference over all models of a table."""
    rows = []
    for one in found:
        digits = 5 if one.metric == "auc" else 4
        pooled = ABSENT
        if one.pooled:
            # Later tables say the same of fewer models; their own sections hold it.
            name, first = one.pooled[0]
            pooled = f"{numbers.change(first.compared.difference, digits)} ({interval(first.compared, digits)}), {name}"
        rows.append(
            [
                Text(one.text),
                Text(METRIC_NAMES[one.metric]),
                Text(str(one.number("holds"))),
                Text(str(one.number("contradicted"))),
                Text(str(one.number("not resolved"))),
                Text(pooled),
            ]
        )
    head = ["Claim", "Figure", "Holds", "Contradicted", "Not resolved", "Mean difference over models (95% interval)"]
    caption = "Claims, and the number of comparisons that decide them after Holm's correction within each table"
    return TextTable("claims", caption, head, rows, frozenset({1, 5}))


def searches(summary: ExperimentSummary) -> TextTable | None:
    """Every search for an alpha."""
    rows = []
    for one in summary.searches():
        tried = [f"{alpha:g}: {'failed' if score is None else f'{score:.5f}'}" for alpha, score in one.tried]
        chosen = ABSENT if one.chosen is None else f"{one.chosen:g}"
        loss = one.arm.loss
        assert loss is not None
        rows.append(
            [
                Text(one.arm.model),
                Text(f"{loss.alphas_key} at {loss.location}"),
                Text(", ".join(tried)),
                Text(chosen, "at the edge of what was tried" if one.at_edge else ""),
            ]
        )
    if not rows:
        return None
    caption = f"Searches for alpha, on seed 1: {CHOSEN_BY} by alpha. The test split had no part in them."
    return TextTable("searches", caption, ["Model", "Loss", "Tried", "Chosen"], rows, frozenset({1, 2}))


def of_paper(name: str) -> TextTable | None:
    """The numbers that the paper gives for an experiment."""
    table: PaperTable | None = paper().tables.get(name)
    if table is None:
        return None
    rows = [
        [Text(row), *(Text(ABSENT if value is None else f"{value:.{table.digits}f}") for value in values)]
        for row, values in table.rows.items()
    ]
    return TextTable(f"{name}-paper", table.title, ["Model", *table.columns], rows)


def _alpha(place: Place) -> str:
    if place.alpha is None:
        return ABSENT
    if place.other_alpha is None:
        return f"{place.alpha:g}"
    return f"{place.other_alpha[0]:g}, {place.other_alpha[1]:.3g}"


def _mean(place: Place, metric: str) -> float | None:
    found = place.spread(metric)
    return None if found is None else found.mean


def _percent(value: Spread | None) -> str:
    if value is None:
        return ABSENT
    return f"{100 * value.mean:.1f}%" + ("" if value.std is None else f" ± {100 * value.std:.1f}")


def _floor(place: Place) -> str:
    floor = _mean(place, "cec_noise_floor")
    return "" if floor is None else f"{floor:.4f}"
