"""A folder takes the place of another one in one step.

Where the file system has no such step, the earlier one is moved to `.NAME.replaced` first; whatever fails in between,
it is put back, or stays there.
"""

import time
from contextlib import suppress
from pathlib import Path

from dmoe.disk.durable import remove, sync
from dmoe.disk.exchange import exchange
from dmoe.errors import DataError, DmoeError

# Two renames take far less.
_REPLACED_WITHIN_S = 2.0


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
    _in_two_steps(new, path)
    drop_replaced(path)


def _in_two_steps(new: Path, path: Path) -> None:
    """Sets what is at `path` aside and puts `new` there."""
    try:
        set_aside(path)
        new.rename(path)
        sync(path.parent)
    except BaseException:
        if not new.exists():
            path.rename(new)
        put_back(path)
        raise


def keep_beside(new: Path, path: Path) -> None:
    """Puts the whole folder `new` in the place of what is at `path`, which is at `replaced_path` afterwards.

    One step where the file system has it, else two, as `take_place`.

    Raises: OSError, DmoeError as `take_place`.
    """
    replaced, number = replaced_path(path), new.stat().st_ino
    remove(replaced)  # an older one, which a kill kept from being removed
    new.rename(replaced)
    try:
        if exchange(replaced, path):
            sync(path.parent)
            return
    except BaseException:
        if replaced.stat().st_ino == number:  # not exchanged
            replaced.rename(new)
        raise
    replaced.rename(new)
    _in_two_steps(new, path)


def bring_back(path: Path) -> None:
    """What `keep_beside` kept, if anything, takes its place again; what is there now is removed.

    Raises: OSError, DmoeError as `put_back`.
    """
    replaced = replaced_path(path)
    if not replaced.exists():
        return
    if path.exists() and exchange(replaced, path):
        sync(path.parent)
        drop_replaced(path)
    else:
        remove(path)
        put_back(path)


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
