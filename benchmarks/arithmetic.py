"""The arithmetic that a training step cannot avoid: matrix products of the dense part.

CIN and inner products are counted in their Gram form, the cheapest that is known; elementwise work is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.cases import Case

Shape = tuple[int, int, int]  # rows, inputs, outputs of a linear layer

# Forward, gradient of the input, gradient of the weight.
PRODUCTS_A_LAYER = 3


@dataclass(frozen=True, slots=True)
class DenseWork:
    """Linear layers, and floating-point operations of batched Gram matrices, of one training step."""

    layers: tuple[Shape, ...]
    gram_flop: int

    @property
    def flop(self) -> int:
        """Operations of forward and backward; a multiplication and an addition count as two."""
        products = sum(2 * rows * inputs * outputs for rows, inputs, outputs in self.layers)
        return PRODUCTS_A_LAYER * products + self.gram_flop

    @property
    def forward_flop(self) -> int:
        products = sum(2 * rows * inputs * outputs for rows, inputs, outputs in self.layers)
        return products + self.gram_flop // 2


def dense_work(case: Case) -> DenseWork:
    """What one batch of `case` costs at least."""
    sizes, rows = case.sizes, case.batch_size
    flat = case.num_fields * sizes.embedding_dim
    layers: list[Shape] = []
    gram = 0

    def chain(*widths: int) -> None:
        layers.extend((rows, inputs, outputs) for inputs, outputs in pairwise(widths))

    if case.head == "ple":
        _ple(case, flat, chain)
        return DenseWork(tuple(layers), gram)
    for name in case.experts:
        width = 0
        if name in ("crossnet", "dcnv2"):
            for _ in range(sizes.cross_layers):
                chain(flat, flat)
            width += flat
        if name in ("dnn", "dcnv2", "deepfm", "xdeepfm"):
            chain(flat, *sizes.hidden_units)
            width += sizes.hidden_units[-1]
        if name in ("cin", "xdeepfm"):
            chain(case.num_fields * (case.num_fields + 1) // 2, sizes.cin_units)
            # One Gram matrix forward; backward, one product of a symmetric matrix with the embeddings.
            gram += 2 * 2 * rows * case.num_fields**2 * sizes.embedding_dim
            width += sizes.cin_units
        chain(width, 1 if case.head == "linear" else sizes.expert_units)
    if case.head == "d-moe":
        for _ in range(case.tasks):
            if len(case.experts) > 1:
                chain(flat, sizes.gate_units, len(case.experts))
            chain(sizes.expert_units, sizes.expert_units, 1)
    return DenseWork(tuple(layers), gram)


def _ple(case: Case, flat: int, chain: Callable[..., None]) -> None:
    """Two levels of experts with a linear gate for each stream, and the tasks' towers."""
    units, owned = case.sizes.hidden_units, len(case.experts) - case.tasks
    for width, streams in ((flat, case.tasks + 1), (units[-1], case.tasks)):
        for _ in case.experts:
            chain(width, *units)
        for stream in range(streams):
            chain(width, owned + 1 if stream < case.tasks else len(case.experts))
    for _ in range(case.tasks):
        chain(units[-1], case.sizes.expert_units, 1)
