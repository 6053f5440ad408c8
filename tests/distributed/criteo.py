"""A training on real rows, in a given precision: a program of one rank or more.

`python -m tests.distributed.criteo DTYPE DATA OUTPUT [SEED]` under RANK and WORLD_SIZE.
"""

import sys
from pathlib import Path

from dmoe.config.run import load_config
from dmoe.distributed.launch import ends_at_once
from dmoe.distributed.world import world_from_environment
from dmoe.training.loop import train
from tests.distributed.runs import in_float64

CONFIG = (
    "model.embedding_dim=8",
    "model.experts=[{kind: crossnet, layers: 2}, {kind: dnn, hidden_units: [64]}]",
    "model.expert_units=64",
    "model.tower_units=[64]",
    "decorrelation=[{alpha: 1.0}]",
    "optimiser.embedding_l2=1e-6",
    "training.batch_size=2000",
    "training.epochs=1",
    "training.device=cpu",
)


def main(dtype: str, data: str, output: str, seed: str = "2025") -> None:
    if dtype == "float64":
        in_float64()
    world = world_from_environment(300.0)
    train(load_config(None, [*CONFIG, f"training.seed={seed}"]), Path(data), Path(output), world=world)
    world.end()


if __name__ == "__main__":
    ends_at_once(lambda: main(*sys.argv[1:]))
