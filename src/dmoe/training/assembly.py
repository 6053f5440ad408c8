"""What a training consists of before its first step: data, model, optimisers, made from a configuration alone."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dmoe.config.run import RunConfig
from dmoe.distributed.world import World
from dmoe.nn.build import build_model
from dmoe.nn.model import DMoE
from dmoe.schema import Schema
from dmoe.shards.batch import SCORING_ROWS, Batch
from dmoe.shards.prefetch import prefetch
from dmoe.shards.reader import SplitReader
from dmoe.training.device import moved_ahead, pinned_ahead
from dmoe.training.engine import Engine
from dmoe.training.log_facts import LogFacts
from dmoe.training.objective import make_objective
from dmoe.training.recipe import l2_scales, shrink
from dmoe.training.replacement import Replacement
from dmoe.training.warm_start import set_given_vectors
from dmoe.weights.run import load_tensors_into


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of a training."""

    train: SplitReader
    valid: SplitReader
    model: DMoE
    replacement: Replacement | None
    engine: Engine


def assemble(
    config: RunConfig,
    schema: Schema,
    data: Path,
    facts: LogFacts | None,
    world: World,
    device: torch.device,
    first_weights: Path,
) -> Assembly:
    """The parts of a training of `config`, which leaves nothing open, on the data set folder `data`.

    `first_weights`: where the weights are to start from, if they are there.
    """
    recipe = config.training
    memory = int(recipe.memory_gb * 2**30)
    share = world.rank, world.size
    train = SplitReader(
        data,
        "train",
        batch_size=recipe.batch_size,
        shuffle=True,
        seed=recipe.seed,
        memory_bytes=memory,
        share=share,
    )
    # The train split comes first; what it leaves is for the other, whose order is the same either way.
    left = max(1, memory - train.used_bytes)
    valid = SplitReader(data, "valid", batch_size=SCORING_ROWS, memory_bytes=left, share=share)
    model = build_model(config.model, schema, seed=recipe.seed, world=world)
    set_given_vectors(model, schema, data)
    if facts is not None and recipe.base_rate:
        model.start_at(*facts.rates)
    rates = recipe.unseen_rates
    replacement = Replacement(schema, rates, facts, recipe.seed) if facts and rates else None
    if first_weights.is_file():
        load_tensors_into(model, first_weights)
    if facts is not None and config.model.shrinkage:
        shrink(model, facts, config.model.shrinkage)
    if recipe.tables == "host":
        for table in model.embedding.row_tables():
            table.keep_rows_on_host()
    model.to(device)
    engine = Engine(
        model,
        make_objective(config, model, schema, facts, world.group),
        config.optimiser,
        clip_norm=recipe.clip_norm,
        device=device,
        autocast=torch.bfloat16 if recipe.precision == "bfloat16" else None,
        tf32=recipe.precision == "tf32",
        l2_scales=l2_scales(model, facts, config.optimiser.embedding_l2_rarity) if facts else None,
        host_tables=recipe.tables == "host",
        world=world,
    )
    return Assembly(train, valid, model, replacement, engine)


def training_batches(
    train: SplitReader, replacement: Replacement | None, engine: Engine, epoch: int, start_batch: int
) -> Iterator[Batch]:
    """The batches of an epoch from `start_batch` on, some tokens replaced, where the engine wants them."""
    made = _replaced(train, replacement, epoch, start_batch)
    if engine.device.type == "cpu":
        return made
    ahead = pinned_ahead(made) if engine.takes_host_batches else moved_ahead(made, engine.device)
    return prefetch(ahead, depth=2, name="dmoe-moves")


def _replaced(
    train: SplitReader, replacement: Replacement | None, epoch: int, first: int
) -> Generator[Batch, None, None]:
    for number, batch in enumerate(train.batches(epoch, start_batch=first), start=first):
        yield batch if replacement is None else replacement(batch, epoch, number, train.rows_of(number))
