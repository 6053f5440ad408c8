"""Ctrl-C and SIGTERM as a request that work looks for where it can stop in good order."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopRequest:
    """`made` once a stop was asked for; `abrupt` while that is to end the work where it is."""

    made: bool = False
    abrupt: bool = False

    @contextmanager
    def at_once(self, stop: Callable[[], None]) -> Iterator[None]:
        """For long work without a place to stop: the first request ends it, and `stop` raises what is to be said."""
        if self.made:
            stop()
        self.abrupt = True
        try:
            yield
        except KeyboardInterrupt:
            stop()
            raise
        finally:
            self.abrupt = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM ask for a stop; a second one raises KeyboardInterrupt at once.

    Outside the main thread, where Python hears no signals, the request is never made.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        again, request.made = request.made, True
        if again or request.abrupt:
            raise KeyboardInterrupt

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
