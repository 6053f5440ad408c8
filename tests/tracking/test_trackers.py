"""Trackers get configuration, curves, CEC, final figures and the report; a resumed run goes on in the same one."""

import os
import signal
from pathlib import Path

import pytest

from dmoe import Callback
from dmoe.cli.main import main
from dmoe.disk.files import read_json, read_json_lines
from dmoe.errors import ConfigError, Interrupted
from dmoe.evaluation.watch import CorrelationWatch
from dmoe.tracking import registry
from dmoe.tracking.figures import flat, name_of_run, of_end, of_evaluation, of_steps
from dmoe.training.loop import train
from dmoe.training.progress import Silent
from tests.small_runs import SMALL, small_config, with_tasks


class StopAt(Silent):
    """Interrupts the training at a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, epoch, rows, loss):  # noqa: ARG002
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def tracked(tracker, data, output, **options):
    return train(
        small_config(), data, output, callbacks=[tracker], on_evaluation=CorrelationWatch(data), **options
    )  # fmt: skip


def scalars(folder):
    """Of every event file below, for each name its points, by step."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {name: {one.step: one.value for one in found.Scalars(name)} for name in found.Tags()["scalars"]}


def test_tensorboard_has_it_all_and_a_resumed_run_goes_on(small_data, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (the extra `tensorboard`)")
    output = tmp_path / "run"
    with pytest.raises(Interrupted):
        tracked(registry.make_trackers(["tensorboard"])[0], small_data, output, watcher=StopAt(20))
    run = tracked(registry.make_trackers(["tensorboard"])[0], small_data, output, resume=True)
    lines = read_json_lines(run.path / "metrics.jsonl")
    found = scalars(output / "tensorboard")
    for name, of_line in (
        ("valid/auc", lambda line: line["valid"]["auc"]),
        ("valid/logloss", lambda line: line["valid"]["logloss"]),
        ("train/logloss", lambda line: line["train_logloss"]),
        ("correlation/cec", lambda line: line["cec"]),
    ):
        assert found[name] == pytest.approx({line["step"]: of_line(line) for line in lines}), name
    steps = read_json_lines(run.path / "steps.jsonl")
    assert found["step/logloss"] == pytest.approx({line["step"]: line["logloss"] for line in steps})
    final = read_json(run.path / "metrics.json")
    assert found["final/test/auc"] == pytest.approx({final["steps"]: final["test"]["auc"]})
    assert "<title>" in (output / "tensorboard" / "report.html").read_text()


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of the packages that it uses
def test_mlflow_has_it_all_and_a_resumed_run_goes_on(small_data, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow is not installed (the extra `mlflow`)")
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    output = tmp_path / "run"
    with pytest.raises(Interrupted):
        tracked(registry.make_trackers([f"mlflow:{uri}"])[0], small_data, output, watcher=StopAt(20))
    client = MlflowClient(uri)
    identity = read_json(output / "mlflow.json")["run_id"]
    assert client.get_run(identity).info.status == "KILLED"
    run = tracked(registry.make_trackers([f"mlflow:{uri}"])[0], small_data, output, resume=True)
    (experiment,) = [one for one in client.search_experiments() if one.name == "dmoe"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.run_name, found.info.status) == (identity, "run", "FINISHED")
    lines = read_json_lines(run.path / "metrics.jsonl")
    history = client.get_metric_history(identity, "correlation/cec")
    assert {one.step: one.value for one in history} == {line["step"]: line["cec"] for line in lines}
    assert len(history) == len(lines)
    final = read_json(run.path / "metrics.json")
    assert found.data.metrics["final/test/auc"] == final["test"]["auc"]
    assert found.data.params["optimiser.lr"] == "0.01"
    assert {one.path for one in client.list_artifacts(identity)} == {"config.yaml", "metrics.json", "report.html"}


def test_names_and_figures_of_several_labels(small_data, tmp_path):
    data = with_tasks(small_data, tmp_path / "data")
    run = train(small_config("training.epochs=1", "model.tasks={'*': {}}"), data, tmp_path / "run")
    (line,) = read_json_lines(run.path / "metrics.jsonl")
    found = of_evaluation(line)
    assert found["valid/buy/auc"] == line["valid"]["tasks"]["buy"]["auc"]
    final = read_json(run.path / "metrics.json")
    assert of_end(final)["final/test/like/logloss"] == final["test"]["tasks"]["like"]["logloss"]
    assert [step for step, _ in of_steps(run.path, 3, 6)] == [4, 5, 6]
    values = flat(run.config.model_dump(mode="json"))
    assert values["model.experts.1.layers"] == "2"
    assert values["model.tower_units"] == "[16]"
    assert values["training.clip_norm"] == "10.0"
    assert name_of_run(Path("studies/criteo/trials/0007/run")) == "criteo trial 7"
    assert name_of_run(Path("runs/first")) == "first"


class Plugin(Callback):
    told: list[str] = []  # noqa: RUF012

    def __init__(self, argument):
        self.argument = argument

    def on_end(self, metrics, run):
        self.told.append(f"{self.argument} {run.name} {metrics['valid']['auc']:.4f}")


class Entry:
    def __init__(self, name, factory):
        self.name, self.factory = name, factory

    def load(self):
        return self.factory


@pytest.fixture
def plugins(monkeypatch):
    def broken(argument):
        raise ValueError(f"no account\nfor '{argument}'")

    entries = [Entry("mine", Plugin), Entry("broken", broken)]

    def entry_points(*, group, name=None):
        assert group == "dmoe.trackers"
        return [one for one in entries if name in (None, one.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(Plugin, "told", [])


@pytest.mark.usefixtures("plugins")
def test_a_plug_in_of_an_entry_point_is_a_tracker(small_data, tmp_path, capsys):
    words = [*SMALL, "training.epochs=1", "--data", str(small_data), "--output", str(tmp_path / "run")]
    main_words = ["train", *words, "--no-baseline", "--track", "mine:a:b"]
    with pytest.raises(SystemExit) as ended:
        main(main_words)
    assert not ended.value.code
    valid = read_json(tmp_path / "run" / "metrics.json")["valid"]["auc"]
    assert Plugin.told == [f"a:b run {valid:.4f}"]
    assert read_json_lines(tmp_path / "run" / "metrics.jsonl")[0]["cec"] > 0
    capsys.readouterr()


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tensorbord"], "no tracker 'tensorbord'; did you mean 'tensorboard'?"),
        (["mine", "mine:x"], "--track mine:x: mine is named twice"),
        (["broken:me"], r"--track broken: cannot be made \(ValueError: no account for 'me'\)"),
        ([""], "no tracker ''; known: broken, mine, mlflow, tensorboard"),
    ],
)
def test_a_bad_tracker_is_one_sentence(words, message):
    with pytest.raises(ConfigError, match=message):
        registry.make_trackers(words)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_an_absent_package_is_named_with_its_extra(name, monkeypatch):
    import sys

    from dmoe.errors import MissingExtraError

    for module in ("tensorboard", "torch.utils.tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'dmoe\[{name}\]'"):
        registry.make_trackers([name])
