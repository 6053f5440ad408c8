"""Brings what was written to the disk, and removes what is not wanted."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

# What file systems say that cannot bring a folder to the disk, or need not.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


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
