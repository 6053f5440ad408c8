"""Work on a stream of its own beside the one that computes, on a device that has streams."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Lane:
    """A stream of `device` for what may run beside its computations: rows on their way to other processes.

    On the CPU work is done where it is started.

    Args:
        streams: where streams come from, as `torch.cuda`; by default that if `device` is a CUDA device, else none.
    """

    def __init__(self, device: torch.device, streams: Any = None) -> None:
        self.device = device
        self._streams = torch.cuda if streams is None and device.type == "cuda" else streams
        self._own: Any = None if self._streams is None else self._streams.Stream(device)

    def start(self, given: Sequence[Tensor], work: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
        """Does `work`, which reads `given`, after what was asked of the device so far, beside what is asked next.

        Returns: what gives the result, and has what is asked after it wait for it; the host waits for nothing.
        """
        if self._streams is None:
            found = work()
            return lambda: found
        own, streams = self._own, self._streams
        own.wait_stream(streams.current_stream(self.device))
        for tensor in given:  # not to be given to others before it was read
            tensor.record_stream(own)
        with streams.stream(own):
            made = work()

        def joined() -> list[Tensor]:
            computes = streams.current_stream(self.device)
            computes.wait_stream(own)
            for tensor in made:
                tensor.record_stream(computes)
            return made

        return joined
