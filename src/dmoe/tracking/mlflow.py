"""`--track mlflow:URI`: a run of MLflow for each training."""

import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dmoe.disk.files import read_json, write_json
from dmoe.errors import Interrupted, MissingExtraError
from dmoe.report import write_report
from dmoe.tracking.figures import flat, last_evaluation, name_of_run, of_end, of_evaluation, of_steps
from dmoe.training.callbacks import Callback, TrainingStart

# In the run folder: which run of MLflow goes on when training does.
KEPT = "mlflow.json"
_EXPERIMENT = "dmoe"
# MLflow's own waits are minutes; a training does not stand still for a server that is gone.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
_LONGEST_VALUE = 500
_BATCH = 100
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]", re.ASCII)


def tracker(argument: str) -> Callback:
    """`argument`: the tracking URI; by default MLFLOW_TRACKING_URI, or what MLflow takes without it.

    Raises: MissingExtraError if MLflow is absent.
    """
    for key, value in _PATIENCE.items():
        os.environ.setdefault(key, value)
    try:
        import mlflow  # noqa: F401
    except ImportError:
        raise MissingExtraError("--track mlflow needs MLflow: pip install 'dmoe[mlflow]'") from None
    return MLflow(argument or None)


class MLflow(Callback):
    """Logs to a run of the experiment MLFLOW_EXPERIMENT_NAME, or `dmoe`."""

    name = "tracker mlflow"

    def __init__(self, uri: str | None) -> None:
        self._uri = uri
        self._client: Any = None
        self._id: str | None = None

    def on_start(self, start: TrainingStart) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(self._uri)
        self._run, self._step, self._logged = start.run, last_evaluation(start.run), 0
        if start.step and (earlier := self._earlier()) is not None:
            self._id = earlier
            self._client.update_run(self._id, status="RUNNING")
            self._logged = max((one.step for one in self._client.get_metric_history(self._id, "epoch")), default=0)
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        tags = {"dmoe.run": str(start.run.resolve()), "dmoe.data": str(start.data.resolve())}
        made = self._client.create_run(number, run_name=name_of_run(start.run), tags=tags)
        self._id = made.info.run_id
        write_json(start.run / KEPT, {"run_id": self._id})
        self._params({**flat(start.config), "trained numbers": str(start.parameters)})

    def on_evaluation(self, metrics: dict[str, Any]) -> None:
        step, before = metrics["step"], self._step
        self._step = step
        if step <= self._logged:  # before the interruption
            return
        points = [*of_steps(self._run, before, step), (step, of_evaluation(metrics))]
        self._metrics((name, value, at) for at, found in points for name, value in found.items())

    def on_end(self, metrics: dict[str, Any], run: Path) -> None:
        self._metrics((name, value, metrics["steps"]) for name, value in of_end(metrics).items())
        with tempfile.TemporaryDirectory(prefix="dmoe-") as scratch:
            page = Path(scratch) / "report.html"
            write_report([run], page)
            self._client.log_artifact(self._id, str(page))
        for path in (run / "config.yaml", run / "metrics.json"):
            self._client.log_artifact(self._id, str(path))
        self._end("FINISHED")

    def on_stop(self, error: BaseException) -> None:
        if self._id is not None:
            self._end("KILLED" if isinstance(error, Interrupted) else "FAILED")

    def _end(self, status: str) -> None:
        self._client.set_terminated(self._id, status)
        self._client = self._id = None  # a connection cannot be copied, and an estimator's callbacks are

    def _earlier(self) -> str | None:
        """The run of MLflow that this training began, if it is there."""
        from mlflow.exceptions import MlflowException

        path = self._run / KEPT
        if not path.is_file():
            return None
        try:
            return str(self._client.get_run(read_json(path)["run_id"]).info.run_id)
        except MlflowException:
            return None

    def _params(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(_name(key), value[:_LONGEST_VALUE]) for key, value in values.items()]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(self._id, params=params[start : start + _BATCH])

    def _metrics(self, values: Iterable[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_name(name), value, now, step) for name, value, step in values]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._id, metrics=metrics[start : start + _BATCH])


def _name(text: str) -> str:
    """A name that MLflow takes: names of labels and fields may hold anything."""
    return _NOT_IN_NAMES.sub("_", text)
