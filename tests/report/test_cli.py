"""`dmoe report` as a program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dmoe.cli.main import main
from tests.report.conftest import MakeRun


def run_main(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def test_report_says_where_the_page_is(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("se")
    make_run("me")
    monkeypatch.chdir(tmp_path)
    assert run_main(["report", "se", "me", "-o", "both.html"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "report: both.html\n"
    assert captured.err == ""
    assert (tmp_path / "both.html").is_file()


def test_json_is_one_object(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report.html"
    assert run_main(["report", str(make_run()), "-o", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(output)}


def test_folder_that_is_no_run_exits_2_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(["report", str(tmp_path), "-o", str(tmp_path / "report.html")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"dmoe: {tmp_path}: has no config.yaml, so it is not a run folder of `dmoe train`\n"


def test_help_does_not_load_matplotlib() -> None:
    code = (
        "import sys; from dmoe.cli.main import main\n"
        "try: main(['report', '--help'])\n"
        "finally: assert not {'matplotlib', 'torch', 'jinja2'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RUN" in done.stdout
