"""A model drawn from its configuration, as SVG: tables, experts, gate, towers, and what keeps experts apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from xml.sax.saxutils import escape

from dmoe.config.model import ModelConfig
from dmoe.config.run import DecorrelationConfig, RunConfig

_BOX, _ROW, _GAP, _TOP = 132, 74, 46, 58
_HEIGHT = 46
_STYLE = """
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #1b1f24; text-anchor: middle; }
.small { font-size: 11px; fill: #57606a; }
.head { font-size: 11px; fill: #57606a; letter-spacing: .04em; }
rect { rx: 6px; stroke-width: 1.2; }
.ground { fill: #ffffff; stroke: #d5dae0; rx: 10px; }
.table { fill: #e4f0f8; stroke: #0072b2; }
.expert { fill: #fdeee3; stroke: #c24f00; }
.gate { fill: #e5f4ee; stroke: #00845f; }
.tower { fill: #f0f1f3; stroke: #57606a; }
path { fill: none; stroke: #57606a; stroke-width: 1.3; marker-end: url(#arrow); }
.apart { stroke: #a64d86; stroke-width: 1.6; stroke-dasharray: 5 3; marker-end: none; }
.loss { fill: #a64d86; font-size: 12px; stroke: #ffffff; stroke-width: 4px; paint-order: stroke; }
"""


@dataclass
class _Canvas:
    parts: list[str] = field(default_factory=list)

    def box(self, kind: str, column: int, y: float, title: str, below: str = "", height: float = _HEIGHT) -> None:
        left = _left(column)
        self.parts.append(f'<rect class="{kind}" x="{left}" y="{y - height / 2}" width="{_BOX}" height="{height}"/>')
        self.text(left + _BOX / 2, y + (-2 if below else 5), title)
        if below:
            self.text(left + _BOX / 2, y + 14, below, "small")

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>')

    def arrow(self, column: int, start: float, end: float, to: int | None = None) -> None:
        """From the right side of a box at height `start` to the left side of the next, or of column `to`."""
        left, right = _left(column) + _BOX, _left(column + 1 if to is None else to) - 3
        bend = left + _GAP / 2
        self.parts.append(f'<path d="M{left} {start:g} C{bend} {start:g} {bend} {end:g} {min(right, left + _GAP - 3)} '
                          f'{end:g} L{right} {end:g}"/>')  # fmt: skip


def model_drawing(config: RunConfig) -> str:
    """The model of a configuration as one SVG file, 620 to 1000 units wide.

    An entry of `model.experts` is one box, whatever its `count`; what depends on the labels or domains of data
    ("one for each task") is said in words, so no data is needed.
    """
    model = config.model
    if model.form == "benchmark":
        return _benchmark(model)
    canvas = _Canvas()
    rows = [_TOP + _ROW * (index + 0.5) for index in range(len(model.experts))]
    centre = sum(rows) / len(rows)
    alone = len(model.experts) == 1 and model.experts[0].get("count", 1) == 1 and not model.has_owners
    _tables(canvas, model, rows)
    for expert, y in zip(model.experts, rows, strict=True):
        canvas.box("expert", 1, y, _title(expert), _below(expert) or f"to {model.expert_units} units")
    bottom = rows[-1]
    column, sources = 1, rows
    for level in model.levels:
        column += 1
        above = [centre + _ROW * (index - (len(level.experts) - 1) / 2) for index in range(len(level.experts))]
        for y in above:
            for start in sources:
                canvas.arrow(column - 1, start, y)
        for expert, y in zip(level.experts, above, strict=True):
            canvas.box("expert", column, y, _title(expert), f"to {level.expert_units or model.expert_units} units")
        sources, bottom = above, max(bottom, above[-1])
    if not alone:
        gate = bottom + _ROW
        _gate(canvas, model, column, gate)
        column += 1
        for start in sources:
            canvas.arrow(column - 1, start, centre)
        canvas.box("gate", column, centre, "Σ gₘ oₘ", _heads(model, "one mixture"))
        canvas.parts.append(f'<path d="M{_left(column) + _BOX / 2} {gate - _HEIGHT / 2} V{centre + _HEIGHT / 2 + 3}"/>')
        bottom, sources = gate, [centre]
    column += 1
    canvas.arrow(column - 1, centre, centre)
    canvas.box("tower", column, centre, "tower", _widths(model.tower_units))
    canvas.text(_left(column) + _BOX / 2, centre + _HEIGHT / 2 + 18, _heads(model, "one probability"), "small")
    _apart(canvas, config.decorrelation, rows)
    names = [
        "embedding tables",
        "experts",
        *["experts above"] * len(model.levels),
        *([] if alone else ["mixture"]),
        "logit",
    ]
    return _svg(canvas, names, bottom + _ROW / 2 + 14)


def _tables(canvas: _Canvas, model: ModelConfig, rows: Sequence[float]) -> None:
    shared = model.tables == "shared" or (isinstance(model.tables, list) and len(set(model.tables)) == 1)
    width = "" if isinstance(model.embedding_dim, list) else f"width {model.embedding_dim}"
    if shared and len(rows) > 1:
        canvas.box("table", 0, sum(rows) / len(rows), "one for all", width, rows[-1] - rows[0] + _HEIGHT)
        for y in rows:
            canvas.arrow(0, y, y)
        return
    if isinstance(model.tables, list):
        centres = {
            table: sum(y for y, own in zip(rows, model.tables, strict=True) if own == table) / model.tables.count(table)
            for table in set(model.tables)
        }
        order = sorted(centres, key=centres.__getitem__)
        first = rows[0] + _ROW * (len(rows) - len(order)) / 2
        place = {table: first + _ROW * index for index, table in enumerate(order)}
        for table, y in place.items():
            widths = model.embedding_dim
            canvas.box(
                "table", 0, y, f"table {table}", f"width {widths[table] if isinstance(widths, list) else widths}"
            )
        for table, y in zip(model.tables, rows, strict=True):
            canvas.arrow(0, place[table], y)
        return
    for expert, y in zip(model.experts, rows, strict=True):
        several = expert.get("count", 1) > 1 or expert.get("per") is not None
        if model.tables == "per-owner":
            title = f"table of the {expert['per']}" if expert.get("per") else "nobody's table"
        elif several and model.tables == "per-expert":
            title = "a table each"
        else:
            title = "its own table" if len(rows) > 1 else "table"
        canvas.box("table", 0, y, title, width)
        canvas.arrow(0, y, y)


def _gate(canvas: _Canvas, model: ModelConfig, column: int, y: float) -> None:
    gate = model.gate
    table = gate.table
    if table == "own":
        canvas.box("table", 0, y, "table of the gate", "")
    elif isinstance(table, int):
        shared = model.tables == "shared"
        canvas.box("table", 0, y, "one for all" if shared else f"table of expert {table + 1}", "the same as above")
    else:
        canvas.box("table", 0, y, "table of the owner", "and nobody's" if table == "owner+shared" else "")
    kind = "gate" if gate.kind == "softmax" else f"{gate.kind} gate" + (f", k = {gate.k}" if gate.k else "")
    target = column + 1
    canvas.arrow(0, y, y, target)
    canvas.box(
        "gate",
        target,
        y,
        kind,
        "a gate for all heads" if model.gates == "one" else _heads(model, _widths(gate.hidden_units)),
    )


def _apart(canvas: _Canvas, terms: Sequence[DecorrelationConfig], rows: Sequence[float]) -> None:
    """The losses that keep experts apart, beside the experts' right side."""
    if not terms or len(rows) < 2:
        return
    x = _left(1) + _BOX / 2
    for upper, lower in pairwise(rows):
        canvas.parts.append(f'<path class="apart" d="M{x} {upper + _HEIGHT / 2} V{lower - _HEIGHT / 2}"/>')
    said = " + ".join(f"{term.loss} of the {term.location}s" for term in terms)
    canvas.text(x, (rows[0] + rows[1]) / 2 + 4, said, "loss")


def _benchmark(model: ModelConfig) -> str:
    canvas = _Canvas()
    y = _TOP + _ROW / 2
    expert = model.experts[0]
    canvas.box("table", 0, y, "table", f"width {model.embedding_dim}")
    canvas.arrow(0, y, y)
    canvas.box("expert", 1, y, _title(expert), _below(expert))
    canvas.arrow(1, y, y)
    canvas.box("tower", 2, y, "sum", "of its outputs")
    return _svg(canvas, ["embedding table", "interaction", "logit"], y + _ROW / 2 + 20)


def _svg(canvas: _Canvas, columns: Sequence[str], height: float) -> str:
    for column, name in enumerate(columns):
        canvas.text(_left(column) + _BOX / 2, 30, name, "head")
    width = _left(len(columns)) - _GAP + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="The model: {escape(", ".join(columns))}">\n'
        f"<style>{_STYLE}</style>\n"
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" style="fill: #57606a; stroke: none; marker-end: none"/>'
        "</marker></defs>\n"
        f'<rect class="ground" x=".5" y=".5" width="{width - 1:g}" height="{height - 1:g}"/>\n'
        + "\n".join(canvas.parts) + "\n</svg>\n"
    )  # fmt: skip


def _left(column: int) -> int:
    return 20 + column * (_BOX + _GAP)


def _title(expert: dict[str, object]) -> str:
    count = expert.get("count", 1)
    return str(expert["kind"]) + (f" × {count}" if count != 1 else "")


def _below(expert: dict[str, object]) -> str:
    """What the box says under the kind: its owner, else its first option."""
    if expert.get("per"):
        return f"for each {expert['per']}"
    options = [(key, value) for key, value in expert.items() if key not in ("kind", "count", "per", "fields")]
    said = f"{options[0][0].replace('_', ' ')} {_plain(options[0][1])}" if options else ""
    return said if len(said) <= 22 else said[:21] + "…"


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _widths(units: Sequence[int]) -> str:
    return "units " + ", ".join(map(str, units)) if units else "one layer"


def _heads(model: ModelConfig, alone: str) -> str:
    """What there is of a thing: one, or one for each head."""
    several = model.tasks or model.has_owners or model.heads != "task" or model.levels
    if not several:
        return alone
    return {"task": "for each task", "domain": "for each domain"}.get(model.heads, "for each task, domain")
