"""`dmoe train --dry-run`: what a training takes, measured on its first batches; nothing is written or kept."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dmoe.config.data import HELD_OUT, SPLITS
from dmoe.config.run import RunConfig
from dmoe.distributed.world import World
from dmoe.errors import DmoeError
from dmoe.evaluation.evaluate import evaluate_split, scored_rows
from dmoe.machine.device import on_device
from dmoe.machine.limits import memory_bytes, peak_memory_bytes
from dmoe.nn.aligned import AlignedExpert
from dmoe.nn.build import small_model
from dmoe.nn.model import DMoE
from dmoe.nn.tables.table import MultiTableEmbedding
from dmoe.schema import Schema
from dmoe.shards.batch import SCORING_ROWS
from dmoe.shards.files import HeldData
from dmoe.shards.reader import read_once
from dmoe.training.assembly import Assembly, assemble, training_batches
from dmoe.training.deterministic import repeatable
from dmoe.training.device import training_device, with_following
from dmoe.training.log_facts import measure_log
from dmoe.training.opening import check_asked, first_weights, memory_suffices
from dmoe.training.recipe import needs_facts, resolved
from dmoe.training.together import check_together
from dmoe.weights.run import Run

# Steps that are timed, in at most so many seconds; the first ones compile kernels and fill caches.
_STEPS, _WARM_STEPS, _SECONDS = 40, 5, 20.0
# Batches of a held-out split that are scored.
_SCORED = 4
# Copies of a table that training holds: weights and moments of Adam, and of dense training a gradient.
_COPIES = {"deferred": 3.0, "lazy": 3.0, "dense": 4.0, "rowwise-adagrad": 1.1}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `data`, `tables` (with their optimisers' state) and `network` (with gradients and moments) are counted;
    `process` is the highest that was measured, of all processes together, or what is to be expected if no step was
    taken, None where the system does not say. `device`: the same of a CUDA device."""

    data: int
    tables: int
    network: int
    process: int | None
    limit: int | None
    device: int | None = None
    device_limit: int | None = None

    @property
    def fits(self) -> bool:
        """Whether no limit is passed."""
        on_device = self.device is None or self.device_limit is None or self.device <= self.device_limit
        return on_device and (self.limit is None or self.process is None or self.process <= self.limit)


@dataclass(frozen=True, slots=True)
class Seconds:
    """What was measured: what comes before the first step; a step; bringing all rows of tables up to date before an
    evaluation; scoring a held-out row, and evaluating it in full, None where processes share the tables."""

    start: float
    step: float
    flush: float
    scored_row: float
    evaluated_row: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a training takes. `held_out`: rows of valid and of test; `config`: with nothing left to choose."""

    config: RunConfig
    rows: int
    batches: int
    held_out: dict[str, int]
    parameters: dict[str, int]
    memory: Memory
    seconds: Seconds | None

    @property
    def epoch_seconds(self) -> float | None:
        """An epoch with its evaluations."""
        if self.seconds is None:
            return None
        evaluations = min(self.config.training.evaluations_per_epoch, self.batches)
        scored = self.seconds.flush + self.held_out["valid"] * self.seconds.scored_row
        return self.batches * self.seconds.step + evaluations * scored

    @property
    def end_seconds(self) -> float | None:
        """What follows the last epoch: held-out rows are scored for the calibration and evaluated in full."""
        if self.seconds is None or self.seconds.evaluated_row is None:
            return None
        rows = sum(self.held_out.values())
        return rows * (self.seconds.scored_row + self.seconds.evaluated_row)

    def total_seconds(self, epochs: int) -> float | None:
        """A training of so many epochs."""
        if self.seconds is None or self.epoch_seconds is None:
            return None
        return self.seconds.start + epochs * self.epoch_seconds + (self.end_seconds or 0.0)

    def values(self) -> dict[str, Any]:
        """For JSON."""
        epochs = self.config.training.epochs
        return {
            "rows": self.rows,
            "batch_size": self.config.training.batch_size,
            "batches_per_epoch": self.batches,
            "epochs": epochs,
            "evaluations_per_epoch": self.config.training.evaluations_per_epoch,
            "held_out_rows": self.held_out,
            "parameters": {"total": sum(self.parameters.values()), **self.parameters},
            "memory_bytes": asdict(self.memory),
            "fits": self.memory.fits,
            "seconds": None
            if self.seconds is None
            else {
                **asdict(self.seconds),
                "epoch": self.epoch_seconds,
                "one_epoch_in_all": self.total_seconds(1),
                "all_epochs_in_all": self.total_seconds(epochs),
            },
            "config": self.config.values(),
        }


def dry_run(config: RunConfig, data: Path, *, start: Run | None = None, world: World | None = None) -> Forecast:
    """What training `config` on the data set folder `data` would take, by a few real steps whose weights are dropped.

    No step is taken where tables and their optimisers alone would not fit. With a `world` of several processes all of
    them call this alike.

    Raises: as `train`.
    """
    world, began = world or World(), time.monotonic()
    held, schema = HeldData.of(data), Schema.read(data)
    facts = measure_log(data, schema) if needs_facts(config) else None
    if facts is not None:
        config = resolved(config, facts)
    device = training_device(config.training, world)
    if world.several:
        check_together(device)
    parameters = parameters_of(config, schema)
    rows = {split: read_once(data, split, batch_size=1).num_rows for split in SPLITS if (data / split).is_dir()}
    in_train = rows.pop("train")
    tables, network = _tables(config, parameters), _network(parameters)
    counted = _counted(tables, network, device, config.training.tables == "host")
    batches = -(-in_train // config.training.batch_size)
    found = Forecast(config, in_train, batches, rows, parameters, counted, None)
    if not counted.fits:
        return found
    check_asked(config, schema, data, HELD_OUT)
    with held.in_use(), on_device(device), repeatable(config.training.deterministic):
        if start is not None:
            first_weights(config, schema, data, start)  # its errors
        with memory_suffices():
            made = assemble(config, schema, data, facts, world, device, data / "none")
        started = time.monotonic() - began
        step = _time_of_step(config, made, device, world)
        began = time.monotonic()
        made.engine.flush()
        flushed = time.monotonic() - began
        valid, model = made.valid, made.model
        scored = _seconds_a_row(lambda at: scored_rows(model, valid, device, at), -(-valid.num_rows // world.size))
        evaluated = None
        if not world.several:
            evaluated = _seconds_a_row(
                lambda at: evaluate_split(model, data, data, "valid", device=device, at_batch=at), valid.num_rows
            )
    highest = world.gather(peak_memory_bytes())
    process = None if None in highest else sum(highest)
    memory = replace(counted, data=made.train.used_bytes + valid.used_bytes, process=process)
    if device.type == "cuda":
        memory = replace(memory, device=torch.cuda.max_memory_allocated(device))
    said = zip(*world.gather([started, step, flushed, scored / world.size]), strict=True)
    start_s, step_s, flush_s, scored_s = map(max, said)
    seconds = Seconds(start_s, step_s, flush_s, scored_s, evaluated)
    return replace(found, memory=memory, seconds=seconds)


def parameters_of(config: RunConfig, schema: Schema) -> dict[str, int]:
    """Numbers that are trained, by part of the model; none of them is made for it.

    Raises: ConfigError as `build_model`.
    """
    unspread = config.model.model_copy(update={"field_std": 0.0})  # which would need values
    with torch.device("meta"):
        model = small_model(unspread, schema)
    sizes = {number: field.vocabulary_size for number, field in enumerate(schema.categorical)}
    found: dict[str, int] = {}
    held = set()
    for bank in model.embedding.each_bank():
        if isinstance(bank.tables, MultiTableEmbedding):
            width = bank.tables.weight.shape[1]
            held.add(id(bank.tables.weight))
            rows = sum(sizes[number] for number in bank.vocabularies)
            found["embedding tables"] = found.get("embedding tables", 0) + rows * width
    for name, parameter in model.named_parameters():
        if id(parameter) not in held:
            part = _part(name, model)
            found[part] = found.get(part, 0) + parameter.numel()
    return found


def _part(name: str, model: DMoE) -> str:
    first, _, rest = name.partition(".")
    if first == "experts":
        expert = model.experts[int(rest.partition(".")[0])]
        kind = expert.interaction.kind if isinstance(expert, AlignedExpert) else None
        return f"expert {rest.partition('.')[0]}{f' ({kind})' if kind else ''}"
    names = {"embedding": "numbers and projections", "gate": "gates", "gates": "gates", "levels": "levels"}
    return names.get(first, "towers" if any(word in first for word in ("tower", "head", "output")) else first)


def _tables(config: RunConfig, parameters: dict[str, int]) -> int:
    half = config.model.embedding_storage != "float32"
    copies = _COPIES[config.optimiser.embedding] - (0.5 if half else 0.0)
    return round(4 * copies * parameters.get("embedding tables", 0))


def _network(parameters: dict[str, int]) -> int:
    """Weights, gradients and two moments, in float32."""
    return 4 * 4 * (sum(parameters.values()) - parameters.get("embedding tables", 0))


def _counted(tables: int, network: int, device: torch.device, tables_on_host: bool) -> Memory:
    """Before anything is made."""
    own, limit = peak_memory_bytes() or 0, memory_bytes()
    if device.type != "cuda":
        return Memory(0, tables, network, own + tables + network, limit)
    on_device = network + (0 if tables_on_host else tables)
    of_device = torch.cuda.get_device_properties(device).total_memory
    return Memory(0, tables, network, own + (tables if tables_on_host else 0), limit, on_device, of_device)


def _time_of_step(config: RunConfig, made: Assembly, device: torch.device, world: World) -> float:
    """Seconds of a step with every term of the loss at work, the median of some."""
    late = max((term.start_step + term.warmup_steps for term in config.decorrelation), default=0)
    torch.manual_seed(world.seed_of(config.training.seed))
    times: list[float] = []
    began, last = time.monotonic(), time.monotonic()
    batches = with_following(_endless(made))
    for number, (batch, following) in enumerate(islice(batches, _WARM_STEPS + _STEPS)):
        made.engine.step(batch, late + number, following)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.monotonic()
        times.append(now - last)
        last = now
        # All processes end at the same step.
        if number >= _WARM_STEPS and world.gather(now - began > _SECONDS)[0]:
            break
    return median(times[_WARM_STEPS:])


def _endless(made: Assembly) -> Iterator[Any]:
    """Epoch after epoch, so that a small log gives steps enough."""
    epoch = 0
    while True:
        yield from training_batches(made.train, made.replacement, made.engine, epoch, 0)
        epoch += 1


class _EnoughError(DmoeError):
    """Enough was measured."""


def _seconds_a_row(work: Callable[[Callable[[], None]], object], rows: int) -> float:
    """Of `work` on so many rows, which calls what it is given when a batch is scored, and is ended after a few."""
    times: list[float] = []

    def at_batch() -> None:
        times.append(time.monotonic())
        if len(times) > _SCORED:
            raise _EnoughError

    began = time.monotonic()
    try:
        work(at_batch)
    except _EnoughError:
        return (times[-1] - times[0]) / (_SCORED * SCORING_ROWS)
    return (time.monotonic() - began) / rows
