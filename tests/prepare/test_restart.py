"""Interrupted and killed work: an equal command ends with the bytes of undisturbed work."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from dmoe.cli import prepare as cli
from dmoe.cli.main import main
from dmoe.errors import DataError
from dmoe.prepare import restart
from dmoe.prepare.prepare import prepare
from dmoe.sources import lines
from dmoe.sources.pieces import LogFile
from tests.prepare.logs import config, random_rows, write_csv
from tests.prepare.test_prepare import data_files


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (5000,))


class Stop:
    """Interrupts at the n-th report of progress."""

    def __init__(self, at: int) -> None:
        self.left, self.seen = at, 0

    def __call__(self, _step: str, _done: int, share: float) -> None:
        assert 0 < share <= 1
        self.seen += 1
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", ["stratified", "ordered"])
def test_every_interruption_is_continued_to_the_same_bytes(tmp_path: Path, kind: str) -> None:
    logs = [str(write_csv(tmp_path / f"{name}.csv", random_rows(700, seed))) for seed, name in enumerate("ab")]
    plan, options = config(split={"kind": kind}), {"shard_rows": 100, "threads": 2}
    counting = Stop(-1)
    want = prepare(plan, logs, tmp_path / "whole", progress=counting, **options)
    assert counting.seen > 20
    for at in range(1, counting.seen + 1):
        with pytest.raises(KeyboardInterrupt):
            prepare(plan, logs, tmp_path / "data", progress=Stop(at), **options)
        assert not (tmp_path / "data").exists()
        # Once more before the end, as a second kill may come.
        again = Stop(3)
        try:
            got = prepare(plan, logs, tmp_path / "data", progress=again, **options)
        except KeyboardInterrupt:
            got = prepare(plan, logs, tmp_path / "data", **options)
        assert data_files(tmp_path / "data") == data_files(tmp_path / "whole"), at
        for key in ("rows", "splits", "fields", "files"):
            assert got[key] == want[key], (at, key)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv", "data", "whole"]
        (tmp_path / "data").rename(tmp_path / "done")
        _remove(tmp_path / "done")


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.mark.usefixtures("small_chunks")
def test_finished_pieces_and_shards_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = str(write_csv(tmp_path / "log.csv", random_rows(1000, 3)))
    seen = Stop(-1)
    prepare(config(), [log], tmp_path / "whole", shard_rows=50, progress=seen)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(), [log], tmp_path / "data", shard_rows=50, progress=Stop(seen.seen - 2))
    parts = sorted((tmp_path / ".data.work" / "result" / "train").iterdir())
    stamps = {path.name: path.stat().st_mtime_ns for path in parts[:-2]}
    assert len(stamps) > 3

    def unread(_: LogFile) -> Any:
        raise AssertionError

    monkeypatch.setattr(LogFile, "pieces", unread)
    prepare(config(), [log], tmp_path / "data", shard_rows=50)
    assert {name: (tmp_path / "data" / "train" / name).stat().st_mtime_ns for name in stamps} == stamps


def _touch(log: Path) -> dict[str, Any]:
    os.utime(log, ns=(1, 1))
    return {}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("change", [_touch, lambda _: {"shard_rows": 70}])
def test_another_plan_starts_anew(tmp_path: Path, change: Callable[[Path], dict[str, Any]]) -> None:
    log = write_csv(tmp_path / "log.csv", random_rows(400, 3))
    seen = Stop(-1)
    prepare(config(), [str(log)], tmp_path / "whole", shard_rows=50, progress=seen)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(), [str(log)], tmp_path / "data", shard_rows=50, progress=Stop(seen.seen - 1))
    again = Stop(-1)
    prepare(config(), [str(log)], tmp_path / "data", **({"shard_rows": 50} | change(log)), progress=again)
    assert again.seen == seen.seen


def test_two_processes_do_not_share_the_work(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", random_rows(50, 3))
    (tmp_path / ".data.work").mkdir()
    with (
        FileLock(tmp_path / ".data.work" / "lock"),
        pytest.raises(DataError, match="another process is preparing it"),
    ):
        prepare(config(), [str(log)], tmp_path / "data")


def test_a_journal_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", random_rows(100, 3))
    prepare(config(), [str(log)], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        prepare(config(), [str(log)], tmp_path / "data", progress=Stop(2))
    journal = tmp_path / ".data.work" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    prepare(config(), [str(log)], tmp_path / "data")
    assert data_files(tmp_path / "data") == data_files(tmp_path / "whole")


@pytest.mark.usefixtures("small_chunks")
def test_after_a_power_failure_only_what_is_on_the_disk_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = str(write_csv(tmp_path / "log.csv", random_rows(700, 3)))
    prepare(config(), [log], tmp_path / "whole", shard_rows=50)
    synced: list[Path] = []
    sync = restart.sync_files
    monkeypatch.setattr(restart, "sync_files", lambda folder: (synced.append(folder), sync(folder)))
    monkeypatch.setattr(restart, "_ROUND_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(), [log], tmp_path / "data", shard_rows=50, progress=Stop(3))
    home = tmp_path / ".data.work"
    assert set(synced) == {home / "stage", home / "result"}
    monkeypatch.setattr(restart, "_ROUND_S", 60.0)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(), [log], tmp_path / "data", shard_rows=50, progress=Stop(6))
    before = restart.Journal(home / "journal.jsonl").of("piece")
    # The system starts anew: of what was not synced the files are empty, and the journal ends in what never was text.
    monkeypatch.setattr(restart, "_boot", lambda: "another")
    with (home / "journal.jsonl").open("ab") as stream:
        stream.write(b"\0" * 5000)
    kept = len(restart.Journal(home / "journal.jsonl").of("piece"))
    assert 0 < kept < len(before)
    for entry in before[kept:]:
        (home / "stage" / f"rows-{entry['name']}.arrow").write_bytes(b"")
    prepare(config(), [log], tmp_path / "data", shard_rows=50)
    assert data_files(tmp_path / "data") == data_files(tmp_path / "whole")


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LogFile, "pieces", interrupted)
    log = write_csv(tmp_path / "log.csv", random_rows(50, 3))
    (tmp_path / "data.yaml").write_text("label: y\nfields: {categorical: [site]}\n")
    with pytest.raises(SystemExit) as done:
        main(
            ["prepare", "--config", str(tmp_path / "data.yaml"), "-i", str(log), "-o", str(tmp_path / "data")],
        )
    assert done.value.code == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err


def test_progress_in_a_log_file_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 9.0, 12.0, 13.0, 30.0])
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(clock))
    report = cli._lines()
    for done, share in ((100, 0.1), (200, 0.2), (300, 0.3), (400, 0.4), (500, 0.5)):
        report("read", done, share)
    # 0.2 of the step in 11 seconds: 0.7 takes 38.5. Then 0.4 in 29: 0.5 takes 36.25.
    assert capsys.readouterr().err.splitlines() == [
        "read 300 rows, 30% of this step, 0:00:38 left",
        "read 500 rows, 50% of this step, 0:00:36 left",
    ]


# Small pieces and shards, so that every step has many moments to be killed at.
_CHILD = """
import sys
from pathlib import Path
from dmoe.sources import lines
from dmoe.prepare import restart
from dmoe.prepare.prepare import prepare
from tests.prepare.logs import config
lines.read_line_chunks.__defaults__ = (20_000,)
prepare(config(split={"kind": "stratified"}), [sys.argv[1]], Path(sys.argv[2]), shard_rows=500)
"""


@pytest.mark.slow
def test_killed_at_twenty_moments_the_bytes_are_the_same(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", random_rows(40_000, 3))

    def start(output: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", _CHILD, str(log), str(tmp_path / output)])

    started = time.perf_counter()
    assert start("whole").wait() == 0
    seconds = time.perf_counter() - started
    want, draw, killed = data_files(tmp_path / "whole"), random.Random(0), 0
    while killed < 20:
        child = start("data")
        try:
            child.wait(timeout=draw.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        if (tmp_path / "data").exists():
            assert data_files(tmp_path / "data") == want
            _remove(tmp_path / "data")
    prepared = (tmp_path / "data").exists() or start("data").wait() == 0
    assert prepared
    assert data_files(tmp_path / "data") == want
