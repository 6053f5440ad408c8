"""A server's exchange of its model, stopped or disturbed at each file that it opens.

One process imports everything and forks for each attempt. Run as `python -m tests.serving.swaps FOLDER ROWS MOMENTS`,
where FOLDER holds the model folders `old`, `new` and `other`, it prints one JSON line an attempt.
"""

import asyncio
import errno
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from dmoe.disk.exchange import exchange
from dmoe.errors import DmoeError
from dmoe.serving.served import Slot

HOWS = ("kill", "full", "broken", "replaced")
_ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO}


class Disturbance:
    """Does `how` when the file number `at` below `new` is opened, once."""

    def __init__(self, folder: Path, how: str, at: int) -> None:
        self.folder, self.how, self.at, self.seen, self.on = folder, how, at, 0, True
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or event != "open" or not isinstance(arguments[0], str | os.PathLike):
            return
        if "new" not in Path(arguments[0]).resolve().parts:
            return
        self.seen += 1
        if self.seen != self.at:
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "replaced":
            assert exchange(self.folder / "new", self.folder / "other")
        elif self.how in _ERRORS:
            number = _ERRORS[self.how]
            raise OSError(number, os.strerror(number), arguments[0])


def scores(slot: Slot, rows: pa.Table) -> list[float]:
    model = slot.current.model
    found: list[float] = model.score(model.featuriser(model.raw_rows(rows, "rows")), ["logit"])["logit"][:, 0].tolist()
    return found


def attempt(folder: Path, rows: pa.Table, how: str, at: int) -> dict[str, Any]:
    """A server of `old` exchanges its model for `new`; what it then serves, and after a second, undisturbed call."""
    link = folder / "current"
    link.symlink_to("old")
    slot = Slot(link)
    link.unlink()
    link.symlink_to("new")
    disturbance, error = Disturbance(folder, how, at), None
    try:
        asyncio.run(slot.reload())
    except DmoeError as refused:
        error = str(refused)
    disturbance.on = False
    found = {"seen": disturbance.seen, "error": error, "version": slot.current.version, "scores": scores(slot, rows)}
    asyncio.run(slot.reload())
    return {**found, "then": slot.current.version, "then_scores": scores(slot, rows)}


def forked(folder: Path, rows: pa.Table, how: str, at: int) -> dict[str, Any]:
    """An attempt in a process of its own; of one that was killed, `code`."""
    (folder / "current").unlink(missing_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with open(writing, "w", encoding="utf-8") as answer:  # noqa: PTH123
            try:
                answer.write(json.dumps(attempt(folder, rows, how, at)))
            except BaseException as error:
                answer.write(json.dumps({"failure": f"{type(error).__name__}: {error}"}))
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as stream:  # noqa: PTH123
        text = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"how": how, "at": at, "code": code, **(json.loads(text) if text else {})}


def main(folder: Path, rows: pa.Table, moments: int) -> None:
    first = forked(folder, rows, "nothing", 0)
    sys.stdout.write(json.dumps(first) + "\n")
    draw = random.Random(1)
    for how in HOWS:
        for at in sorted(draw.sample(range(1, first["seen"] + 1), min(moments // len(HOWS) + 1, first["seen"]))):
            found = forked(folder, rows, how, at)
            sys.stdout.write(json.dumps(found) + "\n")
            if how == "replaced":
                assert exchange(folder / "new", folder / "other")


if __name__ == "__main__":
    main(Path(sys.argv[1]), pa.ipc.open_file(sys.argv[2]).read_all(), int(sys.argv[3]))
