"""What an expert costs: parameters, and floating-point operations of one row's forward pass, counted as it runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dmoe.nn.experts.base import Expert

# Operations on each element, by the name of torch's operator: of the result, or of what is reduced.
_ELEMENTWISE: Mapping[str, int] = {
    "add": 1, "sub": 1, "mul": 1, "div": 1, "neg": 1, "relu": 1, "square": 1, "sqrt": 1, "rsqrt": 1, "pow": 1,
    "exp": 1, "log": 1, "sigmoid": 1, "tanh": 1, "addcmul": 2, "clamp_min": 1, "rsub": 1, "reciprocal": 1,
}  # fmt: skip
_REDUCING: Mapping[str, int] = {"sum": 1, "mean": 1, "cumsum": 1, "amax": 1, "_softmax": 3, "native_layer_norm": 8}
# Products of which the counter of torch leaves out what is added to them.
_WITH_SUM = ("addmm", "baddbmm")


class Cost(NamedTuple):
    """Parameters of an expert, and operations a row: a multiply-add is two, a move or a look-up none."""

    parameters: int
    flops: int


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").rstrip("_") or "_"
        counted: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if counted is not None:
            self.flops += counted(*args, **(kwargs or {}), out_val=result)
        if name in _ELEMENTWISE or name in _WITH_SUM:
            self.flops += _ELEMENTWISE.get(name, 1) * result.numel()
        elif name in _REDUCING:
            self.flops += _REDUCING[name] * args[0].numel()
        return result


def cost_of(expert: Expert, num_fields: int, embedding_dim: int) -> Cost:
    """The cost of an expert for rows of F fields and width D, in evaluation mode; its alignment layer is not counted.

    Work that does not grow with the rows, such as making a symmetric matrix of weights, is shared by a batch and
    left out: the count is that of the second row.
    """
    was_training = expert.training
    expert.eval()
    counts = []
    with torch.no_grad():
        for rows in (1, 2):
            embeddings_BFD: Tensor = torch.zeros(rows, num_fields, embedding_dim)
            with _Counter() as counter:
                expert(embeddings_BFD)
            counts.append(counter.flops)
    expert.train(was_training)
    return Cost(sum(parameter.numel() for parameter in expert.parameters()), counts[1] - counts[0])
