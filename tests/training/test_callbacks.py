"""The public `Callback` protocol: what it is told, and that nothing in it changes or loses a training."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmoe import Callback
from dmoe.disk.files import read_json, read_json_lines
from dmoe.errors import Interrupted, NonFiniteLossError
from dmoe.training.callbacks import TrainingStart
from dmoe.training.loop import train
from dmoe.training.progress import Silent
from tests.small_runs import small_config

DROPOUT = ("model.tower_dropout=0.3",)


class Notes(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.starts: list[TrainingStart] = []
        self.lines: list[dict[str, Any]] = []
        self.ends: list[tuple[dict[str, Any], Path]] = []
        self.stops: list[BaseException] = []

    def on_start(self, start):
        self.starts.append(start)

    def on_evaluation(self, metrics):
        self.lines.append(metrics)

    def on_end(self, metrics, run):
        self.ends.append((metrics, run))

    def on_stop(self, error):
        self.stops.append(error)


class Warned(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text):
        self.texts.append(text)


@pytest.fixture(scope="module")
def plain(small_data, tmp_path_factory):
    return train(small_config(*DROPOUT), small_data, tmp_path_factory.mktemp("plain") / "run")


def assert_same_training(first, second):
    assert first.weights.read_bytes() == second.weights.read_bytes()
    timed = ("seconds", "rows_per_second")
    one, two = (
        [{key: value for key, value in line.items() if key not in timed} for line in read_json_lines(path)]
        for path in (first.path / "metrics.jsonl", second.path / "metrics.jsonl")
    )
    assert one == two


def test_a_callback_is_told_all_and_changes_nothing(small_data, tmp_path, plain):
    notes = Notes()
    run = train(small_config(*DROPOUT), small_data, tmp_path / "run", callbacks=[notes])
    assert_same_training(plain, run)
    (start,) = notes.starts
    assert (start.run, start.data, start.step, start.steps) == (run.path, small_data, 0, 3 * 16)
    assert start.config == run.config.model_dump(mode="json")
    assert start.parameters == read_json(run.path / "metrics.json")["parameters"]
    assert notes.lines == read_json_lines(run.path / "metrics.jsonl")
    assert notes.ends == [(read_json(run.path / "metrics.json"), run.path)]
    assert not notes.stops


class Meddler(Callback):
    """Does to torch and to what it is given all that might change the steps after it."""

    def on_start(self, start):
        start.config["optimiser"]["lr"] = 1.0
        self._meddle()

    def on_evaluation(self, metrics):
        metrics["valid"]["auc"] = -1.0
        metrics["best"] = False
        self._meddle()

    def _meddle(self):
        torch.manual_seed(1)
        torch.rand(7)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True)


def test_a_callback_cannot_change_what_training_computes(small_data, tmp_path, plain):
    run = train(small_config(*DROPOUT), small_data, tmp_path / "run", callbacks=[Meddler(), Meddler()])
    assert_same_training(plain, run)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("where", ["on_start", "on_evaluation", "on_end"])
def test_one_that_fails_is_named_once_and_loses_nothing(small_data, tmp_path, plain, where):
    calls = []

    class Broken(Notes):
        name = "tracker of mine"

    def fail(*_):
        calls.append(where)
        raise ConnectionError("no\n  route")

    broken, notes, watcher = Broken(), Notes(), Warned()
    setattr(broken, where, fail)
    run = train(small_config(*DROPOUT), small_data, tmp_path / "run", callbacks=[broken, notes], watcher=watcher)
    assert_same_training(plain, run)
    assert calls == [where]
    assert watcher.texts == [
        "tracker of mine failed (ConnectionError: no route); training goes on without telling it anything more"
    ]
    assert len(notes.lines) == 3
    assert len(notes.ends) == 1


def test_a_resumed_run_starts_where_it_stopped(small_data, tmp_path, plain):
    class StopAt(Silent):
        steps = 0

        def step(self, epoch, rows, loss):  # noqa: ARG002
            self.steps += 1
            if self.steps == 20:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGINT)

    first, second = Notes(), Notes()
    with pytest.raises(Interrupted):
        train(small_config(*DROPOUT), small_data, tmp_path / "run", callbacks=[first], watcher=StopAt())
    run = train(small_config(*DROPOUT), small_data, tmp_path / "run", callbacks=[second], resume=True)
    assert_same_training(plain, run)
    assert [type(one) for one in first.stops] == [Interrupted]
    assert not first.ends
    assert 0 < second.starts[0].step <= 20
    assert [line["step"] for line in first.lines + second.lines] == [16, 32, 48]


def test_a_training_that_fails_is_told_why(small_data, tmp_path):
    notes = Notes()
    config = small_config("optimiser.lr=1e5", "training.clip_norm=null", "decorrelation=[]")
    with pytest.raises(NonFiniteLossError):
        train(config, small_data, tmp_path / "run", callbacks=[notes])
    assert [type(one) for one in notes.stops] == [NonFiniteLossError]
    assert not notes.ends
