"""Checks and process groups that losses and measures share.

Shape suffixes: B rows, M experts, P and Q the widths of the two experts of a pair, D the width of one expert,
W the widths of all experts side by side.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

ProcessGroup = dist.ProcessGroup | Literal["world"] | None


def resolve(group: ProcessGroup) -> dist.ProcessGroup | None:
    if group != "world":
        return group
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("process_group='world' needs torch.distributed.init_process_group to be called first")
    return dist.group.WORLD


def global_rows(rows: int, group: dist.ProcessGroup, device: torch.device) -> int:
    """The rows of all ranks. Hosts tell each other, if the group can: on `device` the sum would be waited for."""
    hosts = "cpu:" in dist.get_backend_config(group)
    count = torch.tensor(rows, device="cpu" if hosts else device)
    dist.all_reduce(count, group=group)
    return int(count)


def check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be {' or '.join(get_args(choices))}, got {value!r}")


def check_outputs(outputs: Sequence[Tensor]) -> int:
    """The number of rows that all outputs share."""
    for index, output in enumerate(outputs):
        if output.ndim != 2 or output.shape[1] == 0 or not output.is_floating_point():
            raise ValueError(
                f"outputs[{index}] must be a floating (rows, width) tensor of width at least 1, "
                f"got {output.dtype} {tuple(output.shape)}"
            )
        if output.shape[0] != outputs[0].shape[0]:
            raise ValueError(
                f"outputs[{index}] has {output.shape[0]} rows and outputs[0] has {outputs[0].shape[0]}: "
                "all must be of the same batch"
            )
    return outputs[0].shape[0] if outputs else 0
