"""Runs an iterator in a thread, a bounded number of items ahead of its consumer."""

from collections.abc import Generator
from queue import Empty, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


class _End:
    """The last item in the queue: the source is exhausted, or raised `error`."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(source: Generator[T, None, None], *, depth: int, name: str) -> Generator[T, None, None]:
    """The items of `source`, computed in a thread up to `depth` (at least 1) ahead.

    What the source raises is raised here. The thread starts with the first item asked for. It ends, and the
    source is closed, when the source does or when this generator is closed or dropped.
    """
    queue: Queue[T | _End] = Queue(maxsize=depth)
    stop = Event()
    thread = Thread(target=_produce, args=(source, queue, stop), name=name, daemon=True)
    thread.start()
    try:
        while True:
            item = queue.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            # Not to keep an item alive while waiting for the next: items may be large.
            del item
    finally:
        stop.set()
        # After this the producer can put once more without blocking, and then it sees `stop`.
        _drain(queue)
        thread.join()


def _produce(source: Generator[T, None, None], queue: "Queue[T | _End]", stop: Event) -> None:
    error: BaseException | None = None
    try:
        for item in source:
            queue.put(item)
            del item
            if stop.is_set():
                break
    except BaseException as raised:
        error = raised
    try:
        source.close()
    except BaseException as raised:
        error = error or raised
    if not stop.is_set():
        queue.put(_End(error))


def _drain(queue: "Queue[T | _End]") -> None:
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return
