"""Ctrl-C and SIGTERM as a request that work looks for where it can stop in good order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopRequest:
    """`made` once a stop was asked for."""

    made: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM ask for a stop; a second one raises KeyboardInterrupt at once.

    Outside the main thread, where Python hears no signals, the request is never made.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if request.made:
            raise KeyboardInterrupt
        request.made = True

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    except ValueError:
        # Not the main thread: whoever runs us there handles signals.
        pass
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
