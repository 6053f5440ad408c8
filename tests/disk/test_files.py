"""Files and folders: whole or as before, whatever fails; one writer; lines that a kill cut short."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dmoe.disk import files, replaced
from dmoe.disk.exchange import exchange
from dmoe.disk.files import append_json_line, only_writer, read_json_lines, remove_leftovers, write_text, written_aside
from dmoe.disk.replaced import check_in_place, replaced_path
from dmoe.errors import DataError, DmoeError
from dmoe.machine import limits


def folder_of(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "inside").mkdir()
    (path / "inside" / "a").write_text(text)
    return path


def fill(aside: Path) -> None:
    folder_of(aside, "new")


class Failing:
    """A function of `os` or `Path` that fails at its n-th call, with a full disk."""

    def __init__(self, original: Any, at: int) -> None:
        self.original, self.left = original, at

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.original(*arguments, **keywords)


def in_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that cannot exchange two names."""
    monkeypatch.setattr(replaced, "exchange", lambda *_: False)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", ["rename", "replace", "fsync"])
@pytest.mark.parametrize("at", range(1, 8))
def test_a_folder_is_the_old_or_the_new_one_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int, steps: int
) -> None:
    path = folder_of(tmp_path / "folder", "old")
    if steps == 2:
        in_two_steps(monkeypatch)
    failing = Failing(getattr(os, name), at)
    monkeypatch.setattr(os, name, failing)
    try:
        with written_aside(path, replace=True) as aside:
            fill(aside)
        wanted = "new"
    except OSError:
        wanted = "old"
    assert (wanted == "old") == (failing.left <= 0)
    monkeypatch.undo()
    assert (path / "inside" / "a").read_text() == wanted
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the system has no such step")
def test_a_reader_never_finds_the_place_empty(tmp_path: Path) -> None:
    path, ended, absent = folder_of(tmp_path / "folder", "old"), threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            if not path.is_dir():
                absent.append(path)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        with written_aside(path, replace=True) as aside:
            fill(aside)
    ended.set()
    reader.join()
    assert not absent
    fill(tmp_path / "other")
    assert exchange(path, tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        exchange(path, tmp_path / "absent")


def test_a_reader_waits_for_an_exchange_in_two_steps_and_names_one_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder_of(tmp_path / "folder", "old")
    path.rename(replaced_path(path))
    later = threading.Timer(0.1, lambda: folder_of(path, "new"))
    later.start()
    check_in_place(path)
    assert path.is_dir()
    later.join()
    path.rename(tmp_path / "away")
    monkeypatch.setattr(replaced, "_REPLACED_WITHIN_S", 0.05)
    with pytest.raises(DataError, match=r"folder: was being replaced when that was cut off; .*\.folder\.replaced: run"):
        check_in_place(path)


def test_what_killed_writers_left_aside_goes_with_the_next_write(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    path = tmp_path / "a*b"
    mine = files.aside_of(path)
    for process in (os.getpid(), child.pid, os.getppid()):
        folder_of(mine.with_name(mine.name.replace(f"-{os.getpid()}.", f"-{process}.")), "killed")
    folder_of(tmp_path / ".a*b.00000000-1.part", "of another machine")
    with written_aside(path) as aside:
        fill(aside)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        [".a*b.00000000-1.part", mine.name.replace(f"-{os.getpid()}.", f"-{os.getppid()}."), "a*b"]
    )


def test_an_old_folder_that_cannot_be_moved_back_is_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder_of(tmp_path / "folder", "old")
    in_two_steps(monkeypatch)
    rename = os.rename

    def only_away(source: Any, target: Any) -> None:
        if str(target).endswith(".replaced"):
            rename(source, target)
        else:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "rename", only_away)
    with (
        pytest.raises(DmoeError, match=r"what was there is kept as .*\.folder\.replaced"),
        written_aside(path, replace=True) as aside,
    ):
        fill(aside)
    assert (replaced_path(path) / "inside" / "a").read_text() == "old"


def test_a_folder_does_not_take_another_ones_place_unasked(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "folder", "old")
    with pytest.raises(OSError, match="not empty"), written_aside(path) as aside:
        fill(aside)
    assert (path / "inside" / "a").read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_a_file_reaches_the_disk_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        seen.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def noted_replace(source: Any, target: Any) -> None:
        seen.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_text(tmp_path / "file", "text")
    assert seen == ["sync file", "replace", "sync folder"]


def test_a_line_cut_short_is_dropped_before_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"n": 1})
    for torn in ('{"n": 2', "x" * 9000):
        with path.open("a") as stream:
            stream.write(torn)
        assert read_json_lines(path) == [{"n": 1}]
        append_json_line(path, {"n": 1}, durable=True)
        assert read_json_lines(path) == [{"n": 1}, {"n": 1}]
        path.write_text('{"n": 1}\n')
    path.write_text('{"n": 1}\n{"n"\n{"n": 3}\n')
    with pytest.raises(DataError, match=r"lines\.jsonl:2: damaged"):
        read_json_lines(path)
    path.write_text("no line at all")
    append_json_line(path, {"n": 1})
    assert read_json_lines(path) == [{"n": 1}]


HOLD = """
import sys, time
from pathlib import Path
from dmoe.disk.files import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_writer_at_a_time_and_a_killed_one_does_not_count(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DataError, match="another process is writing to it"), only_writer(tmp_path):
            pass
        process.kill()
    with only_writer(tmp_path):
        pass


def test_what_killed_processes_left_goes(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    for name in (".model.7.part", "evaluation/.test.json.7.part", "model"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["evaluation", "model"]


@pytest.mark.parametrize(
    ("groups", "files", "threads", "memory"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000", "a/memory.max": "4096"}, 1, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "max"}, 2, None),
        # The path of the host, seen from inside a container.
        ("0::/host/x\n", {"cpu.max": "100000 100000", "memory.max": "8192"}, 1, 8192),
        (
            "4:memory:/m\n1:cpu,cpuacct:/c\n0::/\n",
            {
                "memory/m/memory.limit_in_bytes": "4096",
                "cpu/c/cpu.cfs_quota_us": "100",
                "cpu/c/cpu.cfs_period_us": "100",
            },
            1,
            4096,
        ),
        (
            "4:memory:/\n1:cpu:/\n",
            {"memory/memory.limit_in_bytes": str(1 << 62), "cpu/cpu.cfs_quota_us": "-1"},
            2,
            None,
        ),
        (None, {}, 2, None),
    ],
)
def test_control_groups_bound_processors_and_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str | None,
    files: dict[str, str],
    threads: int,
    memory: int | None,
) -> None:
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / name).write_text(text + "\n")
    monkeypatch.setattr(limits, "_PROC", tmp_path)
    monkeypatch.setattr(limits, "_MOUNT", tmp_path / "mount")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert limits.usable_threads() == threads
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert limits.memory_bytes() == (memory or physical)


# What Windows lacks, taken away before anything of dmoe is imported (other packages ask sys.platform).
WITHOUT = """
import os, sys, random, torch, pyarrow
for name in ("fork", "register_at_fork", "sched_getaffinity", "sysconf"):
    if hasattr(os, name):
        delattr(os, name)
sys.modules["resource"] = None
import dmoe.scoring.predictor, dmoe.experiments.runner
from dmoe.machine.limits import memory_bytes, usable_threads
from dmoe.machine.limits import peak_memory_bytes
assert usable_threads() >= 1 and peak_memory_bytes() is None
"""


def test_modules_import_where_processes_cannot_fork() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_chunks_are_worked_on_once_each_by_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from dmoe.kernels.row_parallel import map_chunks

    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    lock, seen = threading.Lock(), []

    def work(start: int, stop: int) -> int:
        with lock:
            seen.append(start)
        return stop - start

    assert map_chunks(1001, 2, work) == [2] * 500 + [1]
    assert sorted(seen) == list(range(0, 1001, 2))
