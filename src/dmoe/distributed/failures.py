"""Errors that travel between processes, as text."""

import errno
from typing import Any

from dmoe import errors
from dmoe.errors import DmoeError, Interrupted

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS)


class Told(DmoeError):
    """The failure of another process.

    `quiet`: that process, or another one that was told, says it to the user.
    """

    def __init__(self, message: str, *, quiet: bool, exit_code: int = 1) -> None:
        super().__init__(message)
        self.quiet, self.exit_code = quiet, exit_code


def told_of(rank: int, error: BaseException) -> dict[str, Any]:
    """An error as JSON."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        text = f"{error.strerror} ({error.filename or errno.errorcode.get(error.errno, error.errno)})"
    code = error.exit_code if isinstance(error, DmoeError) else 1
    return {"rank": rank, "kind": type(error).__name__, "text": text, "exit_code": code}


def of_rank(rank: int, error: BaseException) -> BaseException:
    """The error as the process that has it raises it: with its number, where it is one that users meet."""
    if isinstance(error, Interrupted):
        return error
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        text = told_of(rank, error)["text"]
        return DmoeError(f"rank {rank}: cannot write: {text}; free space or choose another place, then --resume")
    if isinstance(error, DmoeError):
        return type(error)(f"rank {rank}: {error}")
    return error


def error_from(said: dict[str, Any]) -> DmoeError:
    """What to raise where another process was told of."""
    kind = getattr(errors, str(said["kind"]), None)
    name = "" if kind is not None else f"{said['kind']}: "
    return Told(f"rank {said['rank']}: {name}{said['text']}", quiet=True, exit_code=int(said["exit_code"]))
