"""What a run on several processes cannot be configured with."""

import torch
import torch.distributed as dist

from dmoe.config.run import RunConfig
from dmoe.errors import ConfigError


def check_together(config: RunConfig, device: torch.device) -> None:
    """Raises: ConfigError for what several processes cannot train."""
    if device.type == "cuda" and not dist.is_nccl_available():
        raise ConfigError(
            "training.device: several processes need NCCL on CUDA devices, which this torch lacks; set "
            "training.device=cpu, or train with one process"
        )
    if config.training.tables == "host":
        raise ConfigError(
            "training.tables: several processes hold a part of each table, where they compute; leave host out, or "
            "train with one process"
        )
    if config.model.shrinkage:
        raise ConfigError("model.shrinkage: several processes cannot train it; set it to 0, or train with one process")
