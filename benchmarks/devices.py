"""What is timed on: a CUDA device by its own events, or the CPU, where that the code runs is all that can be tried."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Device:
    """A kind of device, "cuda" or "cpu", and its clock."""

    def __init__(self, kind: str) -> None:
        self.torch = torch.device(kind)
        self.is_cuda = kind == "cuda"

    @property
    def name(self) -> str:
        if self.is_cuda:
            return torch.cuda.get_device_name()
        return "no card: a CPU, whose figures say only that the code runs"

    def wait(self) -> None:
        """Until all that was asked for is done."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def begin_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """Since `begin_peak`; 0 on the CPU."""
        return torch.cuda.max_memory_allocated() if self.is_cuda else 0

    def milliseconds(self, work: Callable[[int], object], rounds: int) -> float:
        """The median time of `work(number)` on the device, for numbers from 0, with all of it queued beforehand."""
        times = []
        for number in range(rounds):
            if not self.is_cuda:
                times.append(_wall(lambda number=number: work(number)))  # type: ignore[misc]
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(4_000_000)  # some 2 ms, in which the host queues the rest
            begin.record()
            work(number)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return statistics.median(times)

    def wall_milliseconds(self, work: Callable[[int], object], rounds: int) -> float:
        """The time of `work(number)`, one after the other, the host's included."""
        self.wait()

        def all_of_them() -> None:
            for number in range(rounds):
                work(number)
            self.wait()

        return _wall(all_of_them) / rounds


def _wall(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Inside, float32 matrix products take TF32 inputs, or do not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
