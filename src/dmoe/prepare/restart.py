"""Work that outlives a kill and a power failure: a hidden folder beside the output, and a journal of what is finished.

A step is journaled after its files are closed, so what the journal names is whole as long as the system runs. Every
`_ROUND_S` seconds all is brought to the disk, and the journal says so: after the system itself has stopped, what it
names up to there counts.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dmoe.disk.durable import sync, sync_files, sync_tree
from dmoe.disk.files import append_json_line, read_json, write_json, write_json_lines
from dmoe.disk.replaced import put_back, replaced_path, take_place
from dmoe.errors import DataError

# A step of syncing takes well below a second.
_ROUND_S = 10.0
_DURABLE = "durable"


class Journal:
    """Finished steps as JSON lines, with their `kind` and the seconds of work so far; their files are in `folders`."""

    def __init__(self, path: Path, *folders: Path) -> None:
        self._path, self._folders = path, folders
        self._boot, self._synced = _boot(), time.monotonic()
        entries = _whole_lines(path)
        ends = [number for number, entry in enumerate(entries, 1) if entry["kind"] == _DURABLE]
        # Another start of the system, or another machine: what was not brought to the disk may be no more.
        if entries and (self._boot is None or entries[0].get("boot") != self._boot):
            entries = entries[: ends[-1] if ends else 0]
        self.entries = entries
        # The boot of this writer first; a kill may have cut the last line short.
        write_json_lines(path, [{"kind": "start", "boot": self._boot}, *(e for e in entries if e["kind"] != "start")])

    def add(self, kind: str, **values: Any) -> None:
        """Raises: OSError if the disk is full."""
        append_json_line(self._path, {"kind": kind, **values})
        if time.monotonic() - self._synced >= _ROUND_S:
            for folder in self._folders:
                sync_files(folder)
            append_json_line(self._path, {"kind": _DURABLE}, durable=True)
            self._synced = time.monotonic()

    def of(self, kind: str, **values: Any) -> list[dict[str, Any]]:
        """The steps of this kind and with these values that earlier work had finished, in order."""
        wanted = {"kind": kind, **values}
        return [entry for entry in self.entries if all(entry.get(key) == value for key, value in wanted.items())]

    @property
    def seconds(self) -> float:
        """The time that earlier work took."""
        return max((float(entry["seconds"]) for entry in self.entries if "seconds" in entry), default=0.0)


def _boot() -> str | None:
    """What names this start of the system; None where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The entries up to the first damaged line."""
    entries: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict) or "kind" not in entry:
            break
        entries.append(entry)
    return entries


def recover(output: Path) -> None:
    """Puts an earlier output back that a kill caught between being moved away and being replaced."""
    if output.exists() or not replaced_path(output).exists():
        return
    home = _home(output)
    home.mkdir(exist_ok=True)
    lock = FileLock(home / "lock")
    with suppress(Timeout), lock.acquire(timeout=0):  # a process that holds it is about to put the new one there
        put_back(output)


def ended_already(output: Path, plan: Mapping[str, Any], *, but: str | None = None) -> bool:
    """Whether `output` is the result of work on this plan that was killed before it could say so.

    What that work left is then removed. The plan's part `but` is not compared: what the result took the place of.
    """
    home = _home(output)
    try:
        stored = read_json(_plan_of(home))
    except DataError:
        return False
    if not output.is_dir() or _without(but, stored) != _without(but, _identified(plan, output)):
        return False
    home.mkdir(exist_ok=True)
    with suppress(Timeout), FileLock(home / "lock").acquire(timeout=0):
        _remove_home(home)
        return True
    return False  # the work is not killed, but at its end


def _plan_of(home: Path) -> Path:
    """Beside the folder for work, so that it can be the last to go."""
    return home.with_name(f"{home.name}.json")


def _identified(plan: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The plan and the number of the folder that is its result, wherever that is moved on its file system."""
    values: dict[str, Any] = json.loads(json.dumps({**plan, "folder": folder.stat().st_ino}))
    return values


def _without(name: str | None, values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _home(output: Path) -> Path:
    return output.parent / f".{output.name}.work"


def _remove_home(home: Path) -> None:
    """As far as it can be removed; the plan goes last, for `ended_already`."""
    shutil.rmtree(home, ignore_errors=True)
    with suppress(OSError):
        _plan_of(home).unlink(missing_ok=True)


@contextmanager
def restartable(
    output: Path, force: bool, marks: tuple[str, ...], plan: Mapping[str, Any]
) -> Iterator[tuple[Path, Path, Journal]]:
    """A folder to fill, which becomes `output` at the end; a folder for work; and the journal of earlier work.

    All three live in `.<output>.work` beside `output`, the plan in `.<output>.work.json`. An exception removes them; an
    interrupt or a kill leaves them,
    and the next call with an equal `plan` finds its journal, files and all. A call with another plan starts
    anew. With `force` an existing `output` is replaced if it holds the files `marks`, which say that we made it; it is
    removed when the new one stands in its place, and whatever fails before leaves it there.

    Raises: DataError if `output` exists and is not to be, or must not be, replaced, or another process is at
    the same work; OSError.
    """
    recover(output)
    exists = output.exists() or output.is_symlink()
    if exists and not force:
        raise DataError(f"{output}: already exists; choose another --output, or replace it by --force")
    if exists and not (output.is_dir() and all((output / mark).is_file() for mark in marks)):
        raise DataError(f"{output}: is not a data set folder, so --force does not replace it; remove it yourself")
    home = _home(output)
    home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"{output}: another process is preparing it; wait for it, or choose another --output") from None
    try:
        result, work = home / "result", home / "stage"
        if not _is_of(home, result, plan):
            _empty(home)
            result.mkdir()
            work.mkdir()
            write_json(_plan_of(home), _identified(plan, result))
            sync(output.parent)
        yield result, work, Journal(home / "journal.jsonl", work, result)
        sync_tree(result)
        if exists:
            take_place(result, output)
        else:
            _place(result, output)
        _remove_home(home)
    except Exception:
        # Not a KeyboardInterrupt: that is a pause.
        _remove_home(home)
        raise
    finally:
        lock.release()


def _is_of(home: Path, result: Path, plan: Mapping[str, Any]) -> bool:
    """Whether `result` is what earlier work on this plan was filling, and not what that put aside at its end."""
    try:
        return result.is_dir() and read_json(_plan_of(home)) == _identified(plan, result)
    except DataError:
        return False


def _place(result: Path, output: Path) -> None:
    result.rename(output)
    try:
        sync(output.parent)
    except BaseException:
        output.rename(result)
        raise


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()
