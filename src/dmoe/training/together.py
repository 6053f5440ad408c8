"""What a run on several processes cannot be configured with."""

from dmoe.config.run import RunConfig
from dmoe.errors import ConfigError
from dmoe.weights.run import choose_device


def check_together(config: RunConfig) -> None:
    """Raises: ConfigError for what several processes cannot train."""
    if choose_device(config.training.device).type != "cpu":
        raise ConfigError(
            "training.device: several processes train on the CPU; set training.device=cpu, or train on the device with "
            "one process"
        )
    if config.training.tables == "host":
        raise ConfigError(
            "training.tables: host is for a device beside the host; several processes train on the CPU, leave it out"
        )
    if config.model.shrinkage:
        raise ConfigError("model.shrinkage: several processes cannot train it; set it to 0, or train with one process")
