"""Rows of many requests scored together: what waits while every thread works goes as one batch.

R rows of one piece of work.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from dmoe.export.fields import Features
from dmoe.export.onnx_model import OnnxModel

Outputs = dict[str, npt.NDArray[np.float32]]


class QueueFull(Exception):
    """Taking these rows would exceed the queue's bound."""


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    model: OnnxModel
    features: Features
    rows: int
    outputs: tuple[str, ...]
    done: asyncio.Future[Outputs]
    since: float


class Batcher:
    """Scores rows on `threads` threads, `batch_rows` at a time and one model a batch.

    A batch goes as soon as a thread is free; with `delay_s` an unfilled one waits until its oldest row has
    waited that long. A request of more rows than a batch is cut, so that it can use all threads.

    At most `max_queue_rows` rows wait or are being scored. Runs on one event loop.
    """

    def __init__(
        self, *, threads: int, batch_rows: int, max_queue_rows: int, delay_s: float, observe: Callable[[int], None]
    ) -> None:
        self._batch_rows, self._max_queue_rows, self._delay_s = batch_rows, max_queue_rows, delay_s
        self._observe = observe
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="dmoe-score")
        self._idle = threads
        self._waiting: deque[_Piece] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.queued_rows = 0

    async def score(self, model: OnnxModel, features: Features, outputs: Sequence[str]) -> Outputs:
        """The named outputs of each row, (R, width), in order.

        Raises: QueueFull at once, if there is no room.
        """
        rows = len(next(iter(features.values())))
        if self.queued_rows + rows > self._max_queue_rows:
            raise QueueFull
        loop = asyncio.get_running_loop()
        now = loop.time()
        step = self._batch_rows
        if rows <= step:
            pieces = [_Piece(model, features, rows, tuple(outputs), loop.create_future(), now)]
        else:
            pieces = [
                _Piece(
                    model,
                    {name: column[start : start + step] for name, column in features.items()},
                    min(step, rows - start),
                    tuple(outputs),
                    loop.create_future(),
                    now,
                )
                for start in range(0, rows, step)
            ]
        self.queued_rows += rows
        self._waiting.extend(pieces)
        self._dispatch()
        try:
            parts = [await piece.done for piece in pieces]
        finally:
            # Cancelled by a timeout or a client that left: what has not begun will not be scored.
            for piece in pieces:
                piece.done.cancel()
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while self._idle and self._waiting:
            left = self._waiting[0].since + self._delay_s - loop.time()
            if self._delay_s and left > 0 and self._unfilled():
                if self._timer is None:
                    self._timer = loop.call_later(left, self._timed_out)
                return
            batch = self._take()
            if batch:
                self._idle -= 1
                self._observe(sum(piece.rows for piece in batch))
                running = loop.run_in_executor(self._pool, _run, batch)
                running.add_done_callback(partial(self._finish, batch))

    def _timed_out(self) -> None:
        self._timer = None
        self._dispatch()

    def _unfilled(self) -> bool:
        rows = 0
        for piece in self._waiting:
            rows += piece.rows
            if rows >= self._batch_rows:
                return False
        return True

    def _take(self) -> list[_Piece]:
        """The pieces at the head of the queue that make one batch of one model, those given up left out."""
        batch: list[_Piece] = []
        rows = 0
        while self._waiting:
            piece = self._waiting[0]
            if piece.done.cancelled():
                self._waiting.popleft()
                self.queued_rows -= piece.rows
                continue
            if batch and (piece.model is not batch[0].model or rows + piece.rows > self._batch_rows):
                break
            batch.append(self._waiting.popleft())
            rows += piece.rows
        return batch

    def _finish(self, batch: list[_Piece], future: "asyncio.Future[Outputs]") -> None:
        self._idle += 1
        self.queued_rows -= sum(piece.rows for piece in batch)
        error = future.exception()
        start = 0
        for piece in batch:
            stop = start + piece.rows
            if not piece.done.done():
                if error is not None:
                    piece.done.set_exception(error)
                else:
                    found = future.result()
                    piece.done.set_result({name: found[name][start:stop] for name in piece.outputs})
            start = stop
        self._dispatch()


def _run(batch: list[_Piece]) -> Outputs:
    features = batch[0].features
    outputs = batch[0].outputs
    if len(batch) > 1:
        features = {name: np.concatenate([piece.features[name] for piece in batch]) for name in features}
        outputs = tuple(dict.fromkeys(name for piece in batch for name in piece.outputs))
    return batch[0].model.graph.run(features, outputs)
