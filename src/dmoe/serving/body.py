"""Request bodies within bounds of size, time and total memory."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from starlette.requests import Request

from dmoe.serving.rows import RequestError


@dataclass(slots=True)
class Reserved:
    """The bytes that one request holds of a budget."""

    budget: "Budget"
    bytes: int = 0
    works: list["Future[Any]"] = field(default_factory=list)

    def grow_to(self, size: int) -> None:
        """Raises: RequestError (429) if the budget is spent."""
        with self.budget.lock:
            more = size - self.bytes
            if self.budget.used + more > self.budget.limit:
                raise RequestError(429, "too many bytes of requests are being answered; try again")
            self.budget.used += more
            self.bytes = size

    def until(self, work: "Future[Any]") -> None:
        """Holds the bytes until `work` has ended too: a thread goes on when its request is given up."""
        self.works.append(work)

    def give_back(self) -> None:
        """Gives the bytes back, once all work on them has ended."""
        running = next((work for work in self.works if not work.done()), None)
        if running is not None:
            self.works.remove(running)
            running.add_done_callback(lambda _: self.give_back())
            return
        with self.budget.lock:
            self.budget.used -= self.bytes
            self.bytes = 0

    def grow_by(self, size: int) -> None:
        """Raises: RequestError (429) if the budget is spent."""
        self.grow_to(self.bytes + size)


@dataclass(slots=True)
class Budget:
    """The bytes of bodies, and of what they unfold to, that may be in memory at once. Used by several threads."""

    limit: int
    used: int = field(default=0)
    lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    @contextmanager
    def reserve(self) -> Iterator[Reserved]:
        """A share that is given back when the block, and what works on it, has ended."""
        reserved = Reserved(self)
        try:
            yield reserved
        finally:
            reserved.give_back()


async def read_body(request: Request, reserved: Reserved, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body.

    Raises: RequestError: 413 beyond `max_bytes`, 408 if it takes longer than `timeout_s`, 415 for an encoded body,
    429 if the budget is spent.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "encoded bodies are not accepted; send the body as it is")
    declared = request.headers.get("content-length", "")
    too_large = RequestError(413, f"the body is larger than {max_bytes} bytes; send fewer rows at a time")
    if declared.isdigit():
        if int(declared) > max_bytes:
            raise too_large
        reserved.grow_to(int(declared))
    chunks, size = [], 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise too_large
                reserved.grow_to(max(size, reserved.bytes))
                chunks.append(chunk)
    except TimeoutError:
        raise RequestError(408, f"the body did not arrive within {timeout_s:g} s") from None
    return b"".join(chunks)
