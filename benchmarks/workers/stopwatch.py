"""Where the time of one training step goes: timers around the engine's parts, through public hooks."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch

from dmoe.training.engine import Engine


class Stopwatch:
    """Adds up milliseconds by part. Parts nest: a part's time does not include the parts inside it."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def start(self, part: str) -> None:
        self._charge()
        self._open.append(part)

    def stop(self) -> None:
        self._charge()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.milliseconds[self._open[-1]] += (now - self._since) * 1e3
        self._since = now


class EngineProfile(Stopwatch):
    """Times the parts of `engine.step` while entered; leaves the engine as it was."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        model, embedding = self.engine.model, self.engine.model.embedding
        for module, name in ((model, "dense forward"), (embedding, "embedding gather")):
            self._remove_later(module.register_forward_pre_hook(self._starts(name), prepend=True))
            self._remove_later(module.register_forward_hook(self._stops))
        self._remove_later(embedding.register_forward_hook(self._watch_scatter))
        (rows,) = self.engine.embeddings
        self._remove_later(self.engine.adam.register_step_pre_hook(self._starts("dense optimiser")))
        self._remove_later(self.engine.adam.register_step_post_hook(self._stops))
        self._wrap(rows, "read", "embedding read")
        self._wrap(rows, "grad_norm_squared", "embedding norm")
        self._wrap(rows, "write", "embedding update")
        self._wrap(torch.Tensor, "backward", "dense backward")
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def _starts(self, name: str) -> Callable[..., None]:
        return lambda *_arguments: self.start(name)

    def _stops(self, *_arguments: Any) -> None:
        self.stop()

    def _watch_scatter(self, _module: Any, _inputs: Any, outputs: Any) -> None:
        # All tables come from one node: it starts when the last of their gradients is there.
        outputs[0].grad_fn.register_prehook(self._starts("embedding scatter"))
        outputs[0].grad_fn.register_hook(self._stops)

    def _remove_later(self, handle: Any) -> None:
        self._undo.callback(handle.remove)

    def _wrap(self, owner: Any, method: str, name: str) -> None:
        original = getattr(owner, method)

        def measured(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return original(*arguments, **options)

        setattr(owner, method, measured)
        if isinstance(owner, type):
            self._undo.callback(setattr, owner, method, original)
        else:
            self._undo.callback(delattr, owner, method)
