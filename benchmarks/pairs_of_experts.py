"""Time of the losses and measures of all pairs of experts, and of their gradient in both ways it can be computed.

$ python -m benchmarks.pairs_of_experts

Milliseconds of forward and backward, the best of some rounds, in one process. `pairs` takes each pair's gradient by
itself, `at once` all of them as one product; the last column says which of the two the loss chooses.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from dmoe.decorrelation import (
    BarlowTwinsLoss,
    CorrLoss,
    CovLoss,
    CrossExpertCorrelation,
    LinearCKA,
    VICRegLoss,
    moments,
)

CASES = [(2, 500), (4, 16), (4, 500), (16, 16), (16, 64), (16, 200), (16, 500)]


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    """The best of some rounds after one to warm up."""
    best = float("inf")
    for _ in range(rounds + 1):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return 1e3 * best


def time_loss(loss: torch.nn.Module, outputs: Sequence[torch.Tensor], rounds: int) -> float:
    def step() -> None:
        leaves = [output.detach().requires_grad_() for output in outputs]
        torch.autograd.grad(loss(leaves), leaves)

    return milliseconds(step, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096, help="of a batch (4096)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    choose = moments.one_product_is_cheaper
    print("| experts | width | corr, pairs | corr, at once | chosen | cov l1 | barlow-twins | vicreg | CEC | CKA |")
    print("|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|")
    for experts, width in CASES:
        outputs = [torch.randn(arguments.rows, width) for _ in range(experts)]
        both = []
        for at_once in (False, True):
            moments.one_product_is_cheaper = lambda _, at_once=at_once: at_once
            both.append(time_loss(CorrLoss(), outputs, arguments.rounds))
        moments.one_product_is_cheaper = choose
        kin = (CovLoss("l1"), BarlowTwinsLoss(), VICRegLoss())
        figures = [time_loss(loss, outputs, arguments.rounds) for loss in kin]
        measures = (CrossExpertCorrelation(experts), LinearCKA(experts))
        figures += [milliseconds(partial(measure.update, outputs), arguments.rounds) for measure in measures]
        chosen = "at once" if choose([width] * experts) else "pairs"
        cells = [f"{figure:,.1f}" for figure in figures]
        print(f"| {experts} | {width} | {both[0]:,.1f} | {both[1]:,.1f} | {chosen} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
