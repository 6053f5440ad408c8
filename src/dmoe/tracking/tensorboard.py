"""`--track tensorboard`: event files in the run folder, or below a folder that is named."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dmoe.errors import MissingExtraError
from dmoe.report import write_report
from dmoe.tracking.figures import flat, last_evaluation, name_of_run, of_end, of_evaluation, of_steps
from dmoe.training.callbacks import Callback, TrainingStart

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def tracker(argument: str) -> Callback:
    """Raises: MissingExtraError if TensorBoard is absent."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise MissingExtraError("--track tensorboard needs TensorBoard: pip install 'dmoe[tensorboard]'") from None
    return TensorBoard(Path(argument) if argument else None)


class TensorBoard(Callback):
    """Writes event files to `folder`/<name of the run>, by default to tensorboard/ in the run folder."""

    name = "tracker tensorboard"

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._step = 0
        self._config: dict[str, str] = {}

    def on_start(self, start: TrainingStart) -> None:
        from torch.utils.tensorboard import SummaryWriter

        name = name_of_run(start.run).replace(" ", "-")
        self._place = start.run / "tensorboard" if self._folder is None else self._folder / name
        # What comes after the checkpoint comes again.
        purge = start.step + 1 if start.step else None
        self._writer = SummaryWriter(str(self._place), purge_step=purge)
        self._run, self._step, self._config = start.run, last_evaluation(start.run), flat(start.config)
        self._text("configuration", yaml.safe_dump(dict(start.config), sort_keys=False, allow_unicode=True))
        self._text("run", f"{start.run.resolve()}\ndata {start.data.resolve()}\n{start.parameters:,} trained numbers")

    def on_evaluation(self, metrics: dict[str, Any]) -> None:
        for step, found in of_steps(self._run, self._step, metrics["step"]):
            self._scalars(found, step)
        self._step = metrics["step"]
        self._scalars(of_evaluation(metrics), self._step)
        self._open().flush()

    def on_end(self, metrics: dict[str, Any], run: Path) -> None:
        from torch.utils.tensorboard.summary import hparams

        final = of_end(metrics)
        self._scalars(final, metrics["steps"])
        writer = self._open()
        summaries = hparams(dict(self._config), final)  # type: ignore[no-untyped-call]
        for one in summaries:  # in this run: add_hparams would make another
            writer._get_file_writer().add_summary(one)  # type: ignore[no-untyped-call]
        page = self._place / "report.html"
        write_report([run], page)
        self._text("report", f"{page.resolve()}")
        self._close()

    def on_stop(self, error: BaseException) -> None:  # noqa: ARG002
        if self._writer is not None:
            self._close()

    def _close(self) -> None:
        self._open().close()
        self._writer = None  # its threads and locks cannot be copied, and an estimator's callbacks are

    def _open(self) -> "SummaryWriter":
        assert self._writer is not None
        return self._writer

    def _scalars(self, found: dict[str, float], step: int) -> None:
        for name, value in found.items():
            self._open().add_scalar(name, value, step)

    def _text(self, name: str, text: str) -> None:
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        self._open().add_text(name, indented, self._step)
