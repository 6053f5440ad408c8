"""Files and folders that are whole or absent: written aside, brought to the disk, then renamed."""

import errno
import glob
import json
import math
import os
import platform
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dmoe.disk.durable import remove, sync, sync_tree
from dmoe.disk.replaced import keep_beside, take_place
from dmoe.errors import DataError, DmoeError

# Of JSON and JSON-lines files; a file of holes takes no room on a disk, and all of it in memory.
_MOST_TEXT_BYTES = 1 << 28

# Process numbers say nothing about the processes of another machine, which may see the same folder.
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"


@contextmanager
def written_aside(path: Path, *, replace: bool = False, keep: bool = False) -> Iterator[Path]:
    """A sibling path to write to; it becomes `path` when the block ends well, and vanishes when it does not.

    A file takes the place of an earlier one; a folder does so only with `replace`, and the earlier one is removed when
    the new one stands in its place, or with `keep` stays at `replaced_path`. What killed writers of `path` left aside
    is removed first.

    Raises: OSError if the disk is full, or a folder is to be made where one with files is.
    """
    _remove_asides_of_dead(path)
    aside = aside_of(path)
    try:
        yield aside
        sync_tree(aside)
        if replace and aside.is_dir() and os.path.lexists(path):
            (keep_beside if keep else take_place)(aside, path)
        else:
            aside.replace(path)
            sync(path.parent)
    except BaseException:
        with suppress(OSError):
            remove(aside)
        raise


def aside_of(path: Path) -> Path:
    """Where this process writes what is to be at `path`."""
    return path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}.part")


def _remove_asides_of_dead(path: Path) -> None:
    mark = f".{path.name}.{_MACHINE}-"
    for left in path.parent.glob(f"{glob.escape(mark)}*.part"):
        number = left.name[len(mark) : -len(".part")]
        if number.isdigit() and not _runs_elsewhere(int(number)):
            remove(left)


def _runs_elsewhere(process: int) -> bool:
    """Whether it is another living process of this machine: in a container every one may be number 1."""
    if process == os.getpid():
        return False
    if os.name == "nt":  # where asking would be a signal
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def give_usual_mode(path: Path) -> None:
    """Gives a file the mode of new files here (0666 less the umask): safetensors makes its own readable by nobody else.

    Raises: OSError if the folder cannot be written to.
    """
    # Asking for the umask means setting it, for all threads.
    usual = path.with_name(f".{path.name}.{os.getpid()}.mode.part")
    try:
        usual.touch()
        shutil.copymode(usual, path)
    finally:
        usual.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes were writing aside in a folder. For its only writer."""
    for path in [*folder.glob(".*.part"), *folder.glob("*/.*.part")]:
        remove(path)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Inside, no other process writes to `folder`; the lock of a process that has ended does not count.

    Raises: DataError if another process is at it.
    """
    held = FileLock(folder / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise DataError(
            f"{folder}: another process is writing to it; wait until it has ended, or choose another folder"
        ) from None
    try:
        yield
    finally:
        held.release()


def write_text(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: a NaN is a bug in what is written, and raises ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises: DataError if it is absent or damaged; see `parse_json`.
    """
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict):
        raise DataError(f"{path}: damaged (expected a JSON object)")
    return value


def parse_json(text: str, source: str) -> Any:
    """The value of a JSON text as `write_json` writes it, which says one thing only.

    Raises: DataError if it is no JSON, is nested too deeply, has a key twice, or holds a number that is not finite or
    of thousands of digits, or half a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_keys_once, parse_constant=_not_finite, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(f"{source}: damaged (half a surrogate pair is no character)") from None
    except ValueError as error:
        raise DataError(f"{source}: damaged ({error})") from None
    except RecursionError:
        raise DataError(f"{source}: damaged (nested too deeply)") from None
    return value


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {json.dumps(next(name for name in names if names.count(name) > 1))} appears twice")
    return found


def _not_finite(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is out of range")
    return number


def read_text(
    path: Path, *, encoding: str = "utf-8", error: type[DmoeError] = DataError, not_utf8: str = "damaged"
) -> str:
    """A text file of at most 256 MiB.

    Args:
        not_utf8: what is said of a file that is not UTF-8, beside the place.
    Raises: `error` naming the file if it is absent, too large or cannot be read.
    """
    try:
        if path.stat().st_size > _MOST_TEXT_BYTES:
            raise error(f"{path}: larger than {_MOST_TEXT_BYTES >> 20} MiB, which no file of its kind is")
        return path.read_text(encoding=encoding)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except IsADirectoryError:
        raise error(f"{path}: is a folder; expected a file") from None
    except UnicodeDecodeError as found:
        raise error(f"{path}: {not_utf8}: byte {found.start} is not UTF-8") from None
    except OSError as found:
        raise error(f"{path}: cannot be read: {found.strerror or found}") from None


def check_links(folder: Path) -> None:
    """Nothing in a folder leads out of it: what is written there, or removed, is in it.

    Raises: DataError naming a link that leaves the folder, or what is neither a file nor a folder.
    """
    root = folder.resolve()
    for where, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(where) / name
            if path.is_symlink():
                if not path.resolve().is_relative_to(root):
                    shown = folder / path.relative_to(root)
                    raise DataError(f"{shown}: is a link that leads out of {folder}; put the file itself there")
            elif not path.is_file() and not path.is_dir():
                raise DataError(f"{folder / path.relative_to(root)}: is neither a file nor a folder; remove it")


def append_json_line(path: Path, value: Any, *, durable: bool = False) -> None:
    """Adds a line; one that a kill or a full disk cut short before is dropped first.

    With `durable` it is on the disk when the call ends. Raises: OSError if the disk is full; the file then ends as
    before.
    """
    line = json.dumps(value, allow_nan=False).encode() + b"\n"
    with path.open("a+b", buffering=0) as stream:
        end = _end_of_last_line(stream)
        stream.truncate(end)
        try:
            if stream.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if durable:
                os.fsync(stream.fileno())
        except OSError:
            stream.truncate(end)
            raise


def _end_of_last_line(stream: Any) -> int:
    end = int(stream.seek(0, os.SEEK_END))
    while end:
        start = max(end - 4096, 0)
        stream.seek(start)
        held: bytes = stream.read(end - start)
        if (at := held.rfind(b"\n")) >= 0:
            return start + at + 1
        end = start
    return 0


def write_json_lines(path: Path, values: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(value, allow_nan=False) + "\n" for value in values))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, none if it is absent; a last line cut short by a kill is left out.

    Raises: DataError if it is not UTF-8, or a line before the last is damaged, or one is no object.
    """
    if not path.is_file():
        return []
    texts = read_text(path).splitlines()
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = parse_json(text, f"{path}:{number}")
        except DataError as error:
            if number < len(texts):
                raise DataError(f"{error}; the lines after it may be whole") from None
            break
        if not isinstance(line, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {type(line).__name__}")
        lines.append(line)
    return lines
