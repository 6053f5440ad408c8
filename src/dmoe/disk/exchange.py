"""Two names of a file system exchanged in one step, which Linux and macOS have for most file systems."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

# What a system or file system answers that has no such step.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_HERE = -100  # AT_FDCWD of linux/fcntl.h
_RENAME_EXCHANGE = 2  # of linux/fs.h, for renameat2
_RENAME_SWAP = 2  # of sys/stdio.h of macOS, for renamex_np


def exchange(one: Path, other: Path) -> bool:
    """Exchanges what is at two paths; nobody ever sees one of them empty. False, and nothing done, where it cannot be.

    Raises: OSError if nothing is at one of them, or the file system fails.
    """
    call = _call()
    if call is None:
        return False
    sys.audit("os.rename", os.fspath(one), os.fspath(other), -1, -1)
    if call(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _call() -> Callable[[bytes, bytes], int] | None:
    if os.name == "nt":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return lambda one, other: int(library.renameat2(_HERE, one, _HERE, other, _RENAME_EXCHANGE))
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda one, other: int(library.renamex_np(one, other, _RENAME_SWAP))
    return None
