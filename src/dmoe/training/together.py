"""What several processes need of the machine."""

import torch
import torch.distributed as dist

from dmoe.errors import ConfigError


def check_together(device: torch.device) -> None:
    """Raises: ConfigError if several processes cannot train there."""
    if device.type == "cuda" and not dist.is_nccl_available():
        raise ConfigError(
            "training.device: several processes need NCCL on CUDA devices, which this torch lacks; set "
            "training.device=cpu, or train with one process"
        )
