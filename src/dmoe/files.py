"""Files and folders that are whole or absent: written aside, brought to the disk, then renamed.

A folder takes the place of another one in one step. Where the file system has none, the earlier one is moved to
`.NAME.replaced` first; whatever fails in between, it is put back, or stays there.
"""

import errno
import glob
import json
import os
import platform
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dmoe.errors import DataError, DmoeError
from dmoe.exchange import exchange

# What file systems say that cannot bring a folder to the disk, or need not.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)
# Process numbers say nothing about the processes of another machine, which may see the same folder.
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
# Two renames take far less.
_REPLACED_WITHIN_S = 2.0


@contextmanager
def written_aside(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A sibling path to write to; it becomes `path` when the block ends well, and vanishes when it does not.

    A file takes the place of an earlier one; a folder does so only with `replace`, and the earlier one is removed when
    the new one stands in its place. What killed writers of `path` left aside is removed first.

    Raises: OSError if the disk is full, or a folder is to be made where one with files is.
    """
    _remove_asides_of_dead(path)
    aside = aside_of(path)
    try:
        yield aside
        sync_tree(aside)
        if replace and aside.is_dir() and os.path.lexists(path):
            take_place(aside, path)
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


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk. Raises: OSError if that fails."""
    if path.is_dir() and os.name == "nt":
        return
    # Windows syncs only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """`sync` of a file, or of a folder and all that is in it."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                sync(Path(folder) / name)
            sync(Path(folder))
    else:
        sync(path)


def sync_files(folder: Path) -> None:
    """`sync_tree` of a folder at work, where files may come and go meanwhile."""
    for path in sorted(folder.rglob("*")):
        with suppress(FileNotFoundError):
            sync(path)
    sync(folder)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes were writing aside in a folder. For its only writer."""
    for path in [*folder.glob(".*.part"), *folder.glob("*/.*.part")]:
        remove(path)


def replaced_path(path: Path) -> Path:
    """Where what was at `path` waits while something else takes its place."""
    return path.with_name(f".{path.name}.replaced")


def take_place(new: Path, path: Path) -> None:
    """Puts the whole folder `new` in the place of what is at `path`, which is removed afterwards.

    One step where the file system has it, else two, between which nothing is at `path`: see `check_in_place`.

    Raises: OSError if a renaming fails or the disk does; what was at `path` is then there again, or, if even that
    fails, DmoeError says where it is.
    """
    if exchange(new, path):
        try:
            sync(path.parent)
        except BaseException:
            exchange(new, path)
            raise
        with suppress(OSError):  # a remainder that cannot be removed loses nothing
            remove(new)
        return
    try:
        set_aside(path)
        new.rename(path)
        sync(path.parent)
    except BaseException:
        if not new.exists():
            path.rename(new)
        put_back(path)
        raise
    drop_replaced(path)


def check_in_place(path: Path) -> None:
    """For readers of a folder: waits while it is being replaced in two steps.

    Raises: DataError if that takes too long, as after a kill between the two; the message says where the folder is.
    """
    until = time.monotonic() + _REPLACED_WITHIN_S
    while not path.exists() and replaced_path(path).exists():
        if time.monotonic() > until:
            raise DataError(
                f"{path}: was being replaced when that was cut off; what was there is {replaced_path(path)}: run the "
                "same command again, or rename it back"
            )
        time.sleep(0.01)


def set_aside(path: Path) -> None:
    """Moves what is at `path`, if anything, out of the way. Raises: OSError."""
    if path.exists() or path.is_symlink():
        remove(replaced_path(path))  # an older one, which a kill kept from being removed
        path.rename(replaced_path(path))


def put_back(path: Path) -> None:
    """Moves what was set aside back to `path`, if nothing is there.

    Raises: DmoeError naming its place if that fails.
    """
    replaced = replaced_path(path)
    if replaced.exists() and not path.exists():
        try:
            replaced.rename(path)
            sync(path.parent)
        except OSError as error:
            raise DmoeError(
                f"{path}: what was there is kept as {replaced}, for it could not be moved back ({error.strerror})"
            ) from None


def drop_replaced(path: Path) -> None:
    """Removes what was set aside; a remainder that cannot be removed loses nothing."""
    with suppress(OSError):
        remove(replaced_path(path))


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

    Raises: DataError if it is absent or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged ({error})") from None
    if not isinstance(value, Mapping):
        raise DataError(f"{path}: damaged (expected a JSON object)")
    return dict(value)


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

    Raises: DataError if it is not UTF-8, or a line before the last is damaged.
    """
    if not path.is_file():
        return []
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: damaged: byte {error.start} is not UTF-8") from None
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            if number < len(texts):
                raise DataError(f"{path}: line {number} is damaged; the lines after it are whole") from None
    return lines
