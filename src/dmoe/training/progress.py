"""What a person sees while a model trains."""

import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dmoe.config.run import RunConfig
from dmoe.decorrelation import scales_of_alpha
from dmoe.training.step_values import StepLoss


class Watcher(Protocol):
    """Told of the configuration with nothing left to choose, then of every step and evaluation."""

    def resolved(self, config: RunConfig) -> None: ...
    def start(self, steps: int, done: int) -> None: ...
    def step(self, epoch: int, rows: int, loss: StepLoss) -> None: ...
    def evaluated(self, line: dict[str, object]) -> None: ...
    def warn(self, text: str) -> None: ...
    def stop(self) -> None: ...


class Silent:
    """Shows nothing."""

    def resolved(self, config: RunConfig) -> None: ...
    def start(self, steps: int, done: int) -> None: ...
    def step(self, epoch: int, rows: int, loss: StepLoss) -> None: ...
    def evaluated(self, line: dict[str, object]) -> None: ...
    def warn(self, text: str) -> None: ...
    def stop(self) -> None: ...


class TerminalWatcher:
    """A progress bar with rows/s, loss, de-correlation loss and time left; a line for each evaluation.

    Without a terminal only the lines are printed. The bar counts steps to the last epoch: early stopping ends it
    sooner.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.since = time.monotonic()
        self.rows = 0
        self.shown = 0.0

    def resolved(self, config: RunConfig) -> None:
        for line in [*recipe_lines(config), *alpha_lines(config)]:
            self.console.print(line)

    def start(self, steps: int, done: int) -> None:
        self.since = time.monotonic()
        if not self.console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("correlation {task.fields[correlation]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.progress.add_task(
            "train", total=steps, completed=done, epoch=1, speed="", loss="-", correlation="-"
        )
        self.progress.start()

    def step(self, epoch: int, rows: int, loss: StepLoss) -> None:
        self.rows += rows
        if self.progress is None or self.task is None:
            return
        now = time.monotonic()
        if now - self.shown < 0.1:
            self.progress.advance(self.task)
            return
        self.shown = now
        self.progress.update(
            self.task,
            advance=1,
            epoch=epoch + 1,
            speed=f"{self.rows / max(now - self.since, 1e-9):,.0f} rows/s",
            loss=f"{loss.logloss:.4f}",
            correlation=f"{loss.decorrelation:.2e}",
        )

    def evaluated(self, line: dict[str, object]) -> None:
        valid = line["valid"]
        assert isinstance(valid, dict)
        self.console.print(
            f"epoch {line['epoch']}  step {line['step']}  "
            f"train logloss {line['train_logloss']:.4f}  correlation {line['decorrelation_loss']:.2e}  "
            f"valid {_scores(valid)}  lr {line['lr']:.0e}  "
            f"{line['rows_per_second']:,.0f} rows/s" + ("  best" if line["best"] else "")
        )

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", markup=False)

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def _scores(valid: dict[str, Any]) -> str:
    """AUC and logloss, of several tasks with their names."""
    if "tasks" not in valid:
        return f"AUC {valid['auc']:.4f}  logloss {valid['logloss']:.4f}"
    return "  ".join(
        f"{name} AUC {one['auc']:.4f}  logloss {one['logloss']:.4f}" for name, one in valid["tasks"].items()
    )


def recipe_lines(config: RunConfig) -> list[str]:
    """What `training.recipe: auto` comes to, in a line or two."""
    model, optimiser, training = config.model, config.optimiser, config.training
    if training.recipe != "auto":
        return []
    rates = training.unseen_rates
    fields = ", ".join(f"{name} {rate:.1%}" for name, rate in sorted(rates.items(), key=lambda pair: -pair[1])[:5])
    return [
        f"recipe: batches of {training.batch_size}, tables {model.embedding_dim} wide, {model.expert_units} units, "
        f"learning rate {optimiser.lr:g}, embedding L2 {optimiser.embedding_l2:g}, "
        f"{'a' if model.linear else 'no'} linear part, {training.evaluations_per_epoch} evaluations an epoch, "
        f"patience {training.patience} (training.recipe: auto; all of it is in config.yaml)",
        f"tokens taken for unseen while training: {fields or 'none'}"
        + (f" and {len(rates) - 5} more fields" if len(rates) > 5 else ""),
    ]


def alpha_lines(config: RunConfig) -> list[str]:
    """Each term's alpha at both scales: the same weight reads differently by a factor d."""
    lines = []
    for term in config.decorrelation:
        scaled = term.loss in ("corr", "cov")
        if scaled and term.location in ("output", "pre-activation") and term.alpha > 0:
            units = config.model.expert_units
            paper, free = scales_of_alpha(term.alpha, term.scale, units, units)
            lines.append(
                f"{term.loss} at {term.location}: alpha {paper:g} at scale paper = {free:g} at scale dimension-free"
            )
    return lines
