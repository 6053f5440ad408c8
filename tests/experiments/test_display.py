"""What a person sees while cells run, with a terminal and without."""

import io
from pathlib import Path

from rich.console import Console

from dmoe.disk.files import append_json_line
from dmoe.experiments.display import TerminalDisplay, cell_words
from dmoe.experiments.plan import Wanted
from dmoe.experiments.runner import Running, State
from tests.experiments.fake import fake_folder


def test_terminal_and_log_tell_where_the_cells_stand(tmp_path: Path) -> None:
    folder = fake_folder(tmp_path / "e", ("fig5",), seeds=1)
    arm = next(arm for arm in folder.arms("fig5") if (arm.model, arm.variant) == ("DCNv2", "ME+Loss"))
    cell = arm.cell(1, 100.0)
    one = Running(Wanted(cell, 1, ["fig5"]), process=None, log=None, memory=0, began=0.0)
    (folder.cell(cell.key) / "run").mkdir()
    append_json_line(
        folder.cell(cell.key) / "run" / "metrics.jsonl", {"step": 88, "valid": {"auc": 0.75123}, "cec": 0.01234}
    )
    stream = io.StringIO()
    state = State(expected=15, done={"a", "b"}, failed={"c": "why"}, running={cell.key: one}, here=[30.0])
    with TerminalDisplay(Console(file=stream, force_terminal=True, width=160), folder) as display:
        display.show(state)
    shown = stream.getvalue()
    assert "3 of 15 cells, 1 failed, about 6 min left" in shown
    assert "dcnv2 + dcnv2, own tables, corr at output, alpha 100, seed 1" in shown
    assert "0.7512" in shown
    assert "0.0123" in shown
    plain = io.StringIO()
    with TerminalDisplay(Console(file=plain, width=160), folder) as display:
        display.show(state)
        display.ended(one, 12.3, None)
        display.ended(one, 12.3, "loss diverged")
    lines = plain.getvalue().splitlines()
    assert len(lines) == 2
    assert "valid AUC 0." in lines[0]
    assert lines[0].endswith("12 s")
    assert lines[1].endswith("alpha 100, seed 1: failed: loss diverged")


def test_a_single_expert_has_no_tables_to_tell_apart(tmp_path: Path) -> None:
    folder = fake_folder(tmp_path / "e", ("table1",), seeds=1, keep=lambda _: False)
    arm = folder.arms("table1")[0]
    assert cell_words(Wanted(arm.cell(4), 4, ["table1"])) == "nfm, seed 4"
