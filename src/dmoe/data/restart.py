"""Work that outlives a kill: a hidden folder beside the output, and a journal of what is finished in it.

A step is journaled after its files are closed, so what the journal names is whole.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dmoe.errors import DataError
from dmoe.files import (
    append_json_line,
    put_back,
    read_json_lines,
    replaced_path,
    sync,
    sync_tree,
    take_place,
    write_json_lines,
    write_text,
)


class Journal:
    """Finished steps as JSON lines, each with its `kind` and the seconds of work up to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries = read_json_lines(path)
        # A kill may have cut the last line short.
        write_json_lines(path, self.entries)

    def add(self, kind: str, **values: Any) -> None:
        """Raises: OSError if the disk is full."""
        append_json_line(self._path, {"kind": kind, **values})

    def of(self, kind: str, **values: Any) -> list[dict[str, Any]]:
        """The steps of this kind and with these values that earlier work had finished, in order."""
        wanted = {"kind": kind, **values}
        return [entry for entry in self.entries if all(entry.get(key) == value for key, value in wanted.items())]

    @property
    def seconds(self) -> float:
        """The time that earlier work took."""
        return max((float(entry["seconds"]) for entry in self.entries if "seconds" in entry), default=0.0)


def recover(output: Path) -> None:
    """Puts an earlier output back that a kill caught between being moved away and being replaced."""
    if output.exists() or not replaced_path(output).exists():
        return
    home = _home(output)
    home.mkdir(exist_ok=True)
    lock = FileLock(home / "lock")
    with suppress(Timeout), lock.acquire(timeout=0):  # a process that holds it is about to put the new one there
        put_back(output)


def _home(output: Path) -> Path:
    return output.parent / f".{output.name}.work"


@contextmanager
def restartable(
    output: Path, force: bool, marks: tuple[str, ...], plan: Mapping[str, Any]
) -> Iterator[tuple[Path, Path, Journal]]:
    """A folder to fill, which becomes `output` at the end; a folder for work; and the journal of earlier work.

    All three live in `.<output>.work` beside `output`. An exception removes it; an interrupt or a kill leaves it,
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
        text = json.dumps(plan, sort_keys=True)
        planned = home / "plan.json"
        if not (planned.is_file() and planned.read_text(encoding="utf-8") == text and result.is_dir()):
            _empty(home)
            result.mkdir()
            work.mkdir()
            write_text(planned, text)
        yield result, work, Journal(home / "journal.jsonl")
        sync_tree(result)
        if exists:
            take_place(result, output)
        else:
            result.rename(output)
            sync(output.parent)
        shutil.rmtree(home, ignore_errors=True)
    except Exception:
        # Not a KeyboardInterrupt: that is a pause.
        shutil.rmtree(home, ignore_errors=True)
        raise
    finally:
        lock.release()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()
