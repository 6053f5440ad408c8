"""Training from a data set folder to a run folder: the recipe of the benchmark lineage, resumable to the bit."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmoe.config.data import HELD_OUT
from dmoe.config.run import RunConfig, TrainingConfig
from dmoe.disk.files import (
    append_json_line,
    only_writer,
    read_json,
    remove_leftovers,
    write_json_lines,
)
from dmoe.disk.replaced import drop_replaced, put_back
from dmoe.distributed.world import World
from dmoe.errors import DataError, Interrupted, NonFiniteLossError
from dmoe.evaluation.evaluate import quick_metrics
from dmoe.machine.device import on_device
from dmoe.machine.stopping import StopRequest, stop_requests
from dmoe.nn.model import DMoE
from dmoe.runs.records import EpochLine, Line, StepLine, read_lines
from dmoe.schema import Schema
from dmoe.shards.files import HeldData
from dmoe.training.assembly import assemble, training_batches
from dmoe.training.callbacks import Callback, Callbacks, TrainingStart
from dmoe.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dmoe.training.deterministic import repeatable
from dmoe.training.device import training_device, with_following
from dmoe.training.finish import finish
from dmoe.training.log_facts import LogFacts, measure_log
from dmoe.training.objective import monitored_value
from dmoe.training.opening import earlier_run_back, memory_suffices, open_run
from dmoe.training.position import Position
from dmoe.training.progress import Silent, Watcher
from dmoe.training.recipe import needs_facts, resolved
from dmoe.training.served import with_rows_of_all
from dmoe.training.step_values import Asked, StepLoss
from dmoe.training.together import check_together
from dmoe.weights.run import Run, table_layouts
from dmoe.weights.stream import save_together

# An evaluation counts as better only by more than this, as in the benchmark lineage's early stopping.
_MINIMAL_GAIN = 1e-6
# Steps between two readings of the losses, where a reading waits for the device.
_STEPS_UNREAD = 32
# About this many points make the training curve of one epoch.
_CURVE_POINTS = 100


def train(
    config: RunConfig,
    data: Path,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    start: Run | None = None,
    watcher: Watcher | None = None,
    on_evaluation: Callable[[DMoE], dict[str, Any]] | None = None,
    callbacks: Sequence[Callback] = (),
    splits: Sequence[str] = HELD_OUT,
    world: World | None = None,
) -> Run:
    """Trains `config` on the data set folder `data` and leaves a run folder at `output`.

    With `start` the first weights are those of that run, its tokens matched by value; see `warm_start`. What
    `on_evaluation` says of the model at each evaluation becomes further keys of that line of metrics.jsonl.
    `callbacks` are told how it goes and change nothing of it. Without test among the held-out `splits` no row of it
    is scored: `dmoe.training.finish.measure` adds its figures.

    With a `world` of several processes all of them call this alike, and train one model together: the tables' rows
    are dealt out to them, `batch_size` is that of all, and the first one writes the run folder.

    Raises:
        ConfigError, DataError: what was asked for or read is wrong, or another process is at the run; nothing of an
            earlier run is touched.
        NonFiniteLossError: the loss diverged; the message names the batch.
        Interrupted: SIGINT or SIGTERM came; `resume=True` continues to the same bits.
    """
    world = world or World()
    held = HeldData.of(data)
    schema = Schema.read(data)
    put_back(output)  # where a kill came between setting an earlier run aside and making the new one
    facts = measure_log(data, schema, world) if needs_facts(config) else None
    if facts is not None:
        config = resolved(config, facts)
    device = training_device(config.training, world)
    if world.several:
        check_together(device)
    run = world.first(lambda: open_run(config, schema, data, output, resume, overwrite, start, splits))
    run = run or Run.open(output)
    told = Callbacks(callbacks if world.is_first else (), None if watcher is None else watcher.warn)
    watcher = watcher or Silent()
    with only_writer(output) if world.is_first else nullcontext(), earlier_run_back(run, world), held.in_use():
        if world.is_first:
            watcher.resolved(run.config)
            remove_leftovers(output)
        world.barrier()
        try:
            with on_device(device), repeatable(run.config.training.deterministic):
                _Trainer(run, held, watcher, on_evaluation, facts, world, device, told, splits).run_to_end()
        except BaseException as error:
            told.stop(error)
            raise
        finally:
            watcher.stop()
    if world.is_first:
        told.end(read_json(run.path / "metrics.json"), run.path)
    return run


class _Trainer:
    def __init__(
        self,
        run: Run,
        held: HeldData,
        watcher: Watcher,
        on_evaluation: Callable[[DMoE], dict[str, Any]] | None,
        facts: LogFacts | None,
        world: World,
        device: torch.device,
        told: Callbacks | None = None,
        splits: Sequence[str] = HELD_OUT,
    ) -> None:
        self.world, self.device = world, device
        self.told, self.splits = told or Callbacks((), watcher.warn), splits
        self.run, self.held, self.watcher, self.on_evaluation = run, held, watcher, on_evaluation
        config = run.config
        self.recipe: TrainingConfig = config.training
        self.optimiser = config.optimiser
        with memory_suffices():
            made = assemble(config, run.schema, held.data, facts, world, device, run.first_weights)
        self.model, self.engine = made.model, made.engine
        self.reader, self.valid, self.replacement = made.train, made.valid, made.replacement
        self.unread: list[tuple[int, Tensor]] = []  # rows and losses of steps that nobody has looked at
        self.at = Position(lr=config.optimiser.lr)
        # Dropout draws from torch's global stream, each process for its own rows.
        torch.manual_seed(world.seed_of(self.recipe.seed))

    def run_to_end(self) -> None:
        self._resume()
        per_epoch = self.reader.num_batches
        every = max(1, -(-per_epoch // self.recipe.evaluations_per_epoch))
        steps = per_epoch * self.recipe.epochs
        if self.world.is_first:
            self.watcher.start(steps, self.at.step)
            values = self.run.config.model_dump(mode="json")
            numbers = self.model.num_parameters
            self.told.start(TrainingStart(self.run.path, self.held.data, values, steps, self.at.step, numbers))
        with stop_requests() as requests:
            while not self.at.finished:
                self._epoch(every, requests)
                if self.at.epoch == self.recipe.epochs:
                    self.at.finished = True
                if self.at.finished:
                    # The best weights are saved: nothing else is needed from here on.
                    save_checkpoint(self.run.path, Checkpoint({}, asdict(self.at)), self.world)
            self.watcher.stop()
            self._finish(requests)

    def _resume(self) -> None:
        rows, sums = self.engine.row_layouts(), self.engine.part_sums()
        checkpoint = load_checkpoint(self.run.path, self.world, rows, sums)
        if checkpoint is not None:
            try:
                lr = self.optimiser.lr
                self.at = Position.read(checkpoint.position, self.recipe.epochs, self.reader.num_batches, lr)
                if not self.at.finished:
                    self.engine.load_state(checkpoint.tensors)
            except (RuntimeError, LookupError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise DataError(
                    f"{self.run.path / 'checkpoint'}: is not the state of this configuration ({reason}); "
                    "train again with --overwrite"
                ) from None
            self.engine.set_lr(self.at.lr)
        if not self.world.is_first:
            return
        # Lines after the checkpoint will be written again.
        records: list[tuple[str, type[Line]]] = [("metrics.jsonl", EpochLine), ("steps.jsonl", StepLine)]
        for name, record in records:
            path = self.run.path / name
            if path.is_file():
                kept = [line for line, said in read_lines(record, path) if said.step <= self.at.step]
                write_json_lines(path, kept[: self.at.evaluations] if name == "metrics.jsonl" else kept)

    def _epoch(self, every: int, requests: StopRequest) -> None:
        per_epoch = self.reader.num_batches
        curve_every = max(1, per_epoch // _CURVE_POINTS)
        saved = time.monotonic()
        began = time.monotonic()
        batches = training_batches(self.reader, self.replacement, self.engine, self.at.epoch, self.at.batch)
        for batch, following in with_following(batches):
            self.engine.asks = Asked(requests.made or self.world.orphaned, self._is_time_to_save(saved))
            try:
                losses = self.engine.step(batch, self.at.step, following)
            except NonFiniteLossError as error:
                raise self._stopped(self.at.step, error) from None
            except DataError as error:
                raise self._bad_batch(self.at.step, error) from None
            self.unread.append((self.reader.rows_of(self.at.batch), losses))
            self.at.step += 1
            self.at.batch += 1
            ends = self.at.batch % every == 0 or self.at.batch == per_epoch
            stops = self.engine.asked.stop if self.world.several else requests.made
            if self.engine.at_once or ends or stops or len(self.unread) == _STEPS_UNREAD:
                self._read_losses(curve_every)
            now = time.monotonic()
            self.at.add_seconds(now - began)
            began = now
            if ends:
                self._evaluate()
                now = time.monotonic()
                self.at.seconds += now - began
                began = now
                if self.at.finished:
                    return
            stops = stops if self.world.several else requests.made
            if stops or (self.engine.asked.save if self.world.several else self._is_time_to_save(saved)):
                self._read_losses(curve_every)
                self._save_checkpoint()
                saved = time.monotonic()
                if stops:
                    raise Interrupted(
                        f"interrupted at step {self.at.step}; `dmoe train … --output {self.run.path} --resume` "
                        "continues exactly here"
                    )
        self.at.epoch += 1
        self.at.batch = 0

    def _is_time_to_save(self, saved: float) -> bool:
        return self.world.is_first and time.monotonic() - saved > self.recipe.checkpoint_minutes * 60

    def _read_losses(self, curve_every: int) -> None:
        """Takes in the losses of the steps since the last time."""
        first = self.at.step - len(self.unread)
        losses = StepLoss.read([values for _, values in self.unread])
        for step, ((rows, _), loss) in enumerate(zip(self.unread, losses, strict=True), start=first):
            try:
                loss.check(self.model.embedding)
            except NonFiniteLossError as error:
                raise self._stopped(step, error) from None
            except DataError as error:
                raise self._bad_batch(step, error) from None
            self.at.add(loss, rows)
            if not self.world.is_first:
                continue
            self.watcher.step(self.at.epoch, rows, loss)
            if (step + 1) % curve_every == 0:
                append_json_line(self.run.path / "steps.jsonl", {"step": step + 1, **_curve_point(loss)})
        self.unread.clear()

    def _stopped(self, step: int, error: NonFiniteLossError) -> NonFiniteLossError:
        """`error` with the batch, of step `step` counted from 0, and what to do."""
        kept = (
            f"The best weights so far are kept in {self.run.path}"
            if self.run.weights.is_file()
            else "No weights were kept, for this was before the first evaluation"
        )
        return NonFiniteLossError(
            f"{self._at(step)}: {error}. {kept}. "
            "Lower optimiser.lr or decorrelation.alpha, set training.clip_norm or a warmup_steps"
        )

    def _bad_batch(self, step: int, error: DataError) -> DataError:
        return DataError(f"{self._at(step)}: {error}")

    def _at(self, step: int) -> str:
        epoch, batch = divmod(step, self.reader.num_batches)
        return f"stopped at step {step + 1}, batch {batch + 1} of {self.reader.num_batches} in epoch {epoch + 1}"

    def _evaluate(self) -> None:
        self.engine.flush()
        found = quick_metrics(self.model, self.valid, self.device, self.world)
        self.held.check()
        monitored = monitored_value(found, self.recipe.monitor, self.recipe.monitor_tasks)
        better = self.at.best is None or monitored > self.at.best + _MINIMAL_GAIN
        rows = max(self.at.rows, 1)
        line = {
            "epoch": self.at.epoch + 1,
            "step": self.at.step,
            "rows": self.at.all_rows,
            "seconds": self.at.seconds,
            "rows_per_second": self.at.rows / max(self.at.training_seconds, 1e-9),
            "lr": self.at.lr,
            "train_loss": self.at.total / rows,
            "train_logloss": self.at.logloss / rows,
            "decorrelation_loss": self.at.decorrelation / rows,
            "valid": found,
            "best": better,
        }
        if self.on_evaluation is not None:
            line |= self.on_evaluation(self.model)
        if self.world.is_first:
            append_json_line(self.run.path / "metrics.jsonl", line, durable=True)
            self.watcher.evaluated(line)
            self.told.evaluation(line)
        self.at.evaluations += 1
        self.at.restart_sums()
        if better:
            self.at.best, self.at.best_step, self.at.best_epoch = monitored, self.at.step, self.at.epoch + 1
            self.at.failures = 0
            weights = self.model.embedding.folded(self.model.state_dict(), "embedding.")
            save_together(self.run, weights, table_layouts(self.model), self.world)
            if self.world.is_first:
                drop_replaced(self.run.path)
        else:
            self.at.failures += 1
            # A floor above the learning rate is none: it never rises.
            self.at.lr = min(self.at.lr, max(self.at.lr * self.optimiser.lr_decay, self.optimiser.min_lr))
            self.engine.set_lr(self.at.lr)
            self.at.finished = self.at.failures >= self.recipe.patience

    def _save_checkpoint(self) -> None:
        self.held.check()
        state = Checkpoint(self.engine.state(), asdict(self.at), self.engine.row_layouts(), self.engine.part_sums())
        save_checkpoint(self.run.path, state, self.world)

    def _finish(self, requests: StopRequest) -> None:
        """Reloads the best weights, evaluates them on every held-out split and writes the final figures.

        The optimisers and the rows in memory go first, so that this takes no more memory than training did.
        """
        self.engine.release()
        del self.engine, self.reader, self.valid
        self.model.embedding.end_shrinkage()  # the weights are saved folded
        self.run.load_weights_into(self.model)
        model = self.model.eval()

        def work(save: Callable[[], None]) -> None:
            finish(self.run, model, self.held, self.splits, self.device, self.at, requests, save)

        with_rows_of_all(self.world, self.run, model, work)


def _curve_point(loss: StepLoss) -> dict[str, float]:
    return {"loss": loss.total, "logloss": loss.logloss, "decorrelation": loss.decorrelation}
