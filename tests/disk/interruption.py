"""Commands of dmoe stopped at each of their operations on files: killed, interrupted, refused by a full or broken disk.

One process imports everything and forks for each attempt, so that an attempt costs little more than the command itself.
Run as `python -m tests.disk.interruption FOLDER` it reads attempts as JSON lines and answers each with what came of it;
operations on files outside FOLDER do not count.
"""

import errno
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

How = Literal["nothing", "kill", "interrupt", "full", "broken"]
HOWS: tuple[How, ...] = ("kill", "interrupt", "full", "broken")

# What Python announces before it does it; `os.replace` is a rename too. fsync is not announced.
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.copyfile"}
_ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO}
# A full disk as writes of every library meet it: a limit on the size of a file.
LIMIT = "limit"


@dataclass
class Injection:
    """Stops this process at its operation number `at` on a file below `folder`, once."""

    folder: str
    how: str
    at: int
    seen: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._main = os.getpid()

    def install(self) -> None:
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            self.count(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            fsync(descriptor)

        os.fsync = counted
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and _writes(arguments)):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike):
                self.count(os.fsdecode(path))

    def count(self, path: str) -> None:
        if not Path(path).absolute().is_relative_to(self.folder) or os.getpid() != self._main:
            return
        with self._lock:
            self.seen += 1
            now = self.seen == self.at
        if not now:
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            number = _ERRORS[self.how]
            raise OSError(number, os.strerror(number), path)


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _attempt(folder: str, how: str, at: int, arguments: list[str], answer: int) -> None:
    """In the forked process: runs the command, and ends the process."""
    from dmoe.cli.main import main

    with open(os.devnull, "w") as nothing, open(answer, "w") as errors:  # noqa: PTH123
        os.dup2(nothing.fileno(), 1)
        sys.stdout, sys.stderr = nothing, errors
        signal.signal(signal.SIGINT, signal.default_int_handler)
        injection = Injection(folder, how, at)
        if how == LIMIT:
            resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
        else:
            injection.install()
        code = 0
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except KeyboardInterrupt:
            code = 130
        except BaseException as error:
            code = 99
            errors.write(f"traceback: {type(error).__name__}: {error}")
        errors.write(f"\0{injection.seen}")
        errors.flush()
        os._exit(code)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`code` below 0 is a signal; `operations` on files until the end, None if it was killed."""

    code: int
    stderr: str
    operations: int | None


def _serve(folder: str) -> None:
    for name in sys.argv[2:]:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _attempt(folder, request["how"], request["at"], request["arguments"], writing)
        os.close(writing)
        with open(reading, encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
            text, _, seen = stream.read().partition("\0")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answer = {"code": code, "stderr": text, "operations": int(seen) if seen else None}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class Interrupter:
    """The process that attempts commands."""

    process: "subprocess.Popen[str]"

    def run(self, arguments: Sequence[str | Path], how: str = "nothing", at: int = 0) -> Outcome:
        """Runs `dmoe` with these arguments; of `how` LIMIT, `at` is the largest size of a file in bytes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"arguments": [str(one) for one in arguments], "how": how, "at": at}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Outcome(**json.loads(self.process.stdout.readline()))


@contextmanager
def interrupter(folder: Path, *modules: str) -> Iterator[Interrupter]:
    """`modules` are imported once, before the attempts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.disk.interruption", str(folder.resolve()), "dmoe.cli.main", *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        try:
            yield Interrupter(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def contents(path: Path) -> dict[str, bytes]:
    """Every file at or below a path, by relative path; hidden ones of the folder itself included."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


if __name__ == "__main__":
    _serve(sys.argv[1])
