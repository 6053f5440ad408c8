"""The runner's progress on a terminal: a live table; elsewhere one line a finished cell."""

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dmoe.disk.files import read_json_lines
from dmoe.experiments.folder import Folder
from dmoe.experiments.plan import Wanted
from dmoe.experiments.runner import Running, State

REFRESH_SECONDS = 0.5


def cell_words(one: Wanted) -> str:
    """A cell in a few words: experts, tables, loss, seed."""
    config = one.cell.config
    kinds = " + ".join(str(expert["kind"]) for expert in config.model.experts)
    parts = [kinds]
    if len(config.model.experts) > 1:
        parts.append("shared table" if config.model.tables == "shared" else "own tables")
    for term in config.decorrelation:
        norm = f" {term.norm}" if term.norm else ""
        parts.append(f"{term.loss}{norm} at {term.location}, alpha {term.alpha:g}")
    if one.cell.part is not None:
        parts.append(f"{one.cell.part:,} rows")
    return ", ".join([*parts, f"seed {one.seed}"])


class TerminalDisplay:
    """Shows a `State` on `console`; use as a context."""

    def __init__(self, console: Console, folder: Folder) -> None:
        self.console, self.folder = console, folder
        self.live: Live | None = None
        self.shown = 0.0
        self.began = time.monotonic()

    def __enter__(self) -> "TerminalDisplay":
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def show(self, state: State) -> None:
        if self.live is None or time.monotonic() - self.shown < REFRESH_SECONDS:
            return
        self.shown = time.monotonic()
        self.live.update(self._table(state), refresh=True)

    def ended(self, one: Running, seconds: float, failure: str | None) -> None:
        name = f"{one.wanted.experiments[0]}: {cell_words(one.wanted)}"
        if failure is not None:
            self.console.print(f"{name}: failed: {failure}", markup=False)
            return
        figures = self.folder.figures(one.wanted.cell.key) or {}
        self.console.print(f"{name}: {_result(figures)}, {seconds:.0f} s", markup=False)

    def _table(self, state: State) -> Group:
        table = Table(box=None, pad_edge=False, expand=False)
        for title in ("experiment", "cell", "step", "valid AUC", "CEC", "time"):
            table.add_column(title, justify="left" if title in ("experiment", "cell") else "right", no_wrap=True)
        for one in state.running.values():
            lines = read_json_lines(self.folder.cell(one.wanted.cell.key) / "run" / "metrics.jsonl")
            last = lines[-1] if lines else {}
            cec = last.get("cec")
            table.add_row(
                one.wanted.experiments[0],
                cell_words(one.wanted),
                str(last.get("step", "")),
                f"{last['valid']['auc']:.4f}" if last else "",
                "" if cec is None else f"{cec:.4f}",
                f"{time.monotonic() - one.began:.0f} s",
            )
        done = len(state.done) + len(state.failed)
        words = f"{done} of {state.expected} cells"
        if state.failed:
            words += f", {len(state.failed)} failed"
        if state.here and state.left:
            seconds = sum(state.here) / len(state.here) * state.left / max(len(state.running), 1)
            words += f", about {seconds / 60:.0f} min left"
        bar = Table.grid(padding=(0, 2))
        bar.add_row(ProgressBar(total=state.expected, completed=done, width=30), Text(words))
        return Group(bar, table)


def _result(figures: dict[str, Any]) -> str:
    valid = figures["metrics"]["valid"]
    words = f"valid AUC {valid['auc']:.4f}, logloss {valid['logloss']:.4f}"
    return words if valid.get("cec") is None else f"{words}, CEC {valid['cec']:.4f}"
