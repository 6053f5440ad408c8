"""Whatever ends a training, what it reached is there afterwards, and going on gives the bits of an undisturbed run."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from dmoe.config.run import load_config
from dmoe.disk import durable, files, replaced
from dmoe.disk.exchange import exchange
from dmoe.disk.files import read_json, read_json_lines
from dmoe.disk.replaced import replaced_path
from dmoe.distributed.world import World
from dmoe.errors import ConfigError, DataError, Interrupted, NonFiniteLossError
from dmoe.evaluation import evaluate
from dmoe.evaluation.evaluate import correlate_run, evaluate_run
from dmoe.shards.files import HeldData
from dmoe.shards.reader import SplitReader
from dmoe.training import finish, loop
from dmoe.training.loop import train
from dmoe.training.progress import Silent
from dmoe.training.step_values import StepLoss
from dmoe.weights.run import Run, choose_device
from tests.small_runs import small_config, write_data
from tests.training.test_loop import StopAt, assert_same_bits


class Steps(Silent):
    """Counts the steps taken."""

    taken = 0

    def step(self, epoch: int, rows: int, loss: StepLoss) -> None:  # noqa: ARG002
        self.taken += 1


def fail(error: BaseException) -> Callable[..., Any]:
    def failing(*_: Any, **__: Any) -> Any:
        raise error

    return failing


@pytest.fixture(scope="module")
def whole(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(small_config(), small_data, tmp_path_factory.mktemp("runs") / "whole")


def assert_equal_runs(one: Run, other: Run) -> None:
    assert_same_bits(one, other)
    for split in ("valid", "test"):
        assert read_json(one.path / "evaluation" / f"{split}.json") == read_json(
            other.path / "evaluation" / f"{split}.json"
        )
    assert not list(other.path.glob("**/*.part"))
    assert not (other.path / "checkpoint").exists()


@pytest.mark.parametrize(
    "error", [MemoryError("none left"), OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_only_the_final_evaluation_is_done_again_after_it_failed(small_data, tmp_path, monkeypatch, whole, error):
    monkeypatch.setattr(finish, "evaluate_split", fail(error))
    with pytest.raises(type(error)):
        train(small_config(), small_data, tmp_path / "run")
    monkeypatch.undo()
    steps = Steps()
    assert_equal_runs(whole, train(small_config(), small_data, tmp_path / "run", resume=True, watcher=steps))
    assert steps.taken == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_request_in_the_final_evaluation_is_heard_within_a_batch(small_data, tmp_path, monkeypatch, number):
    batches: list[Any] = []

    def scored(model, *arguments):
        for found in original(model, *arguments):
            if not batches:
                os.kill(os.getpid(), number)
            batches.append(found)
            yield found

    original = evaluate.scored_batches
    monkeypatch.setattr(evaluate, "scored_batches", scored)
    monkeypatch.setattr(loop, "quick_metrics", lambda *_: {"auc": 0.5, "logloss": 0.7})
    with pytest.raises(Interrupted, match=r"interrupted in the final evaluation; .*--resume` does only that") as caught:
        train(small_config("training.epochs=1"), small_data, tmp_path / "run")
    assert (len(batches), caught.value.exit_code) == (1, 130)
    monkeypatch.undo()
    steps = Steps()
    run = train(small_config("training.epochs=1"), small_data, tmp_path / "run", resume=True, watcher=steps)
    assert steps.taken == 0
    assert (run.path / "metrics.json").is_file()


@pytest.mark.parametrize("lr", [1e-9, 1e-6])
def test_a_floor_above_the_learning_rate_does_not_raise_it(small_data, tmp_path, lr):
    overrides = [f"optimiser.lr={lr}", "training.patience=3", "training.monitor=auc", "decorrelation=[]"]
    run = train(small_config(*overrides), small_data, tmp_path / "run")
    rates = [line["lr"] for line in read_json_lines(run.path / "metrics.jsonl")]
    assert rates == [lr] * len(rates)
    assert len(rates) > 1


def test_an_overwritten_run_stays_until_the_new_one_has_weights(small_data, tmp_path, whole, monkeypatch):
    run = train(small_config("training.epochs=1"), small_data, tmp_path / "run")
    before = run.weights.read_bytes()
    diverging = small_config("optimiser.lr=1e6", "training.clip_norm=null", "decorrelation=[]")
    with pytest.raises(NonFiniteLossError):
        train(diverging, small_data, run.path, overwrite=True)
    assert run.weights.read_bytes() == before
    monkeypatch.setattr(loop.Run, "create", fail(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        train(small_config(), small_data, run.path, overwrite=True)
    monkeypatch.undo()
    assert run.weights.read_bytes() == before
    # Interrupted before the first evaluation: the earlier run waits beside it, also through a second attempt.
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(small_config(), small_data, run.path, overwrite=True, watcher=StopAt(2))
        assert (replaced_path(run.path) / "model.safetensors").read_bytes() == before
    assert_equal_runs(whole, train(small_config(), small_data, run.path, resume=True))
    assert not replaced_path(run.path).exists()
    # As a kill between the two renames leaves it, where the file system has no exchange.
    run.path.rename(replaced_path(run.path))
    with pytest.raises(DataError, match="this run is complete"):
        train(small_config(), small_data, run.path, resume=True)


STEPS_OF_REPLACING: list[tuple[Any, str]] = [
    (replaced, "exchange"),
    *((module, "sync") for module in (durable, files, replaced)),
    (Path, "rename"),
    (Path, "replace"),
]


@pytest.mark.parametrize("one_step", [True, False])
@pytest.mark.parametrize("ended", [KeyboardInterrupt, None])
def test_whatever_ends_an_overwriting_at_any_step_the_earlier_run_is_there(
    small_data, tmp_path, whole, monkeypatch, one_step, ended
):
    """At each renaming and sync: as an interruption, and as a kill, after which nothing is cleaned up."""
    output, config = tmp_path / "run", small_config("training.epochs=1")
    if not one_step:
        monkeypatch.setattr(replaced, "exchange", lambda *_: False)
    weights = whole.weights.read_bytes()
    for at in range(1, 100):
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(replaced_path(output), ignore_errors=True)
        shutil.copytree(whole.path, output)
        left = at

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    if ended is None:
                        os._exit(9)
                    raise ended
                return original(*arguments)

            return call

        with monkeypatch.context() as patch:
            for owner, name in STEPS_OF_REPLACING:
                patch.setattr(owner, name, counted(getattr(owner, name)))
            patch.setattr(loop, "_Trainer", fail(Stopped()))
            if ended is None:
                code = in_a_child(lambda: train(config, small_data, output, overwrite=True))
            else:
                with pytest.raises((ended, Stopped)) as caught:
                    train(config, small_data, output, overwrite=True)
                code = 9 if caught.type is ended else 0
        if code != 9:
            break
        # The earlier run is in its place, or beside the new one, which has no weights yet.
        if not (output / "model.safetensors").is_file():
            assert (replaced_path(output) / "model.safetensors").read_bytes() == weights, at
            if output.exists():
                with pytest.raises(DataError, match=r"the run that it is to replace is still .*\.run\.replaced"):
                    Run.open(output).load_weights()
            monkeypatch.setattr(loop, "_Trainer", fail(Stopped()))
            with pytest.raises(Stopped):  # the same command again
                train(config, small_data, output, overwrite=True)
        assert (output / "model.safetensors").read_bytes() == weights, at
    assert at > 8
    assert (output / "model.safetensors").read_bytes() == weights
    assert not [one for one in tmp_path.iterdir() if one.name.endswith(".part")]


class Stopped(Exception):
    """Stands for whatever ends a training before it has weights."""


def in_a_child(work: Callable[[], Any]) -> int:
    """The exit code of a forked process: 1 if the work raised something."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(("memory", "moment"), [("4", "step"), ("0.000001", "step"), ("4", "end")])
def test_a_data_set_replaced_while_a_run_trains_on_it_is_noticed(tmp_path, memory, moment):
    rows = {"train": 300, "valid": 100, "test": 100}
    data, other = write_data(tmp_path / "data", rows), write_data(tmp_path / "other", rows, seed=5)
    config = small_config(f"training.memory_gb={memory}", "training.epochs=1")

    class Replace(Silent):
        replaced = False

        def step(self, epoch: int, rows: int, loss: StepLoss) -> None:  # noqa: ARG002
            self.replace("step")

        def stop(self) -> None:
            self.replace("end")

        def replace(self, now: str) -> None:
            if now == moment and not self.replaced:
                self.replaced = exchange(data, other)

    output = tmp_path / "run"
    with pytest.raises(DataError, match=r"data: was replaced or changed while it was being read; put the data set"):
        train(config, data, output, watcher=Replace())
    assert not list(output.glob("evaluation/*"))
    with pytest.raises(DataError, match="data: holds other rows than those that"):
        train(config, data, output, resume=True)
    assert exchange(data, other)
    expected = train(config, data, tmp_path / "undisturbed")
    assert_equal_runs(expected, train(config, data, output, resume=True))


def test_one_process_at_a_time_writes_a_run(small_data, tmp_path):
    run = train(small_config("training.epochs=1"), small_data, tmp_path / "run")
    with FileLock(run.path / ".lock"):
        for call in (
            lambda: train(small_config("training.epochs=1"), small_data, run.path, overwrite=True),
            lambda: evaluate_run(run),
        ):
            with pytest.raises(DataError, match="run: another process is writing to it"):
                call()
    with pytest.raises(Interrupted):
        train(small_config(), small_data, tmp_path / "cut", watcher=StopAt(3))
    with FileLock(tmp_path / "cut" / ".lock"), pytest.raises(DataError, match="another process is writing to it"):
        train(small_config(), small_data, tmp_path / "cut", resume=True)
    train(small_config(), small_data, tmp_path / "cut", resume=True)


def test_a_torn_last_line_of_the_metrics_is_repaired(small_data, tmp_path, whole):
    with pytest.raises(Interrupted):
        train(small_config(), small_data, tmp_path / "run", watcher=StopAt(20))
    for name in ("metrics.jsonl", "steps.jsonl"):
        with (tmp_path / "run" / name).open("a") as stream:
            stream.write('{"step": 1')
    run = train(small_config(), small_data, tmp_path / "run", resume=True)
    assert_equal_runs(whole, run)
    assert len(read_json_lines(run.path / "metrics.jsonl")) == 3


@pytest.mark.parametrize(
    ("rows", "experts", "message"),
    [
        ({"train": 100, "valid": 2}, 2, "valid: has 2 rows, too few to be evaluated; at least 4"),
        ({"train": 100, "valid": 3, "test": 100}, 2, "valid: has 3 rows"),
        ({"train": 100, "valid": 50, "test": 3}, 2, "test: has 3 rows"),
        ({"train": 100, "valid": 50, "test": 1}, 1, "test: has 1 rows, .*at least 2"),
    ],
)
def test_splits_too_small_to_be_evaluated_are_refused_before_training(tmp_path, rows, experts, message):
    data = write_data(tmp_path / "data", rows)
    one = ["model.experts=[{kind: fm}]", "decorrelation=[]"] if experts == 1 else []
    with pytest.raises(DataError, match=message):
        train(small_config(*one), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_four_rows_are_enough_and_three_are_named(tmp_path):
    data = write_data(tmp_path / "data", {"train": 100, "valid": 4}, seed=3)
    run = train(small_config("training.epochs=1"), data, tmp_path / "run")
    assert (run.path / "metrics.json").is_file()
    few = write_data(tmp_path / "few", {"train": 100, "valid": 3}, seed=3)
    for call in (lambda: evaluate_run(run, data=few), lambda: correlate_run(run, split="valid", data=few)):
        with pytest.raises(DataError, match="valid: has 3 rows"):
            call()


def test_one_class_in_the_test_split_is_refused_before_training(tmp_path):
    data = write_data(tmp_path / "data", {"train": 100, "valid": 50})
    other = write_data(tmp_path / "other", {"test": 20}, label=0)
    (other / "test").rename(data / "test")
    with pytest.raises(DataError, match="test: every row has click 0"):
        train(small_config(), data, tmp_path / "run")


def test_memory_is_shared_by_the_splits_and_changes_no_bit(small_data, tmp_path, whole):
    per_row = 4 * 4 + 1 + 4
    readers = []

    class Watch(Silent):
        def start(self, steps: int, done: int) -> None:  # noqa: ARG002
            readers.append(steps)

    memory = 1000 * per_row / 2**30  # the train split and nothing else
    config = small_config(f"training.memory_gb={memory!r}")
    trainer = loop._Trainer(
        Run.create(tmp_path / "tight", config, Run.open(whole.path).schema, small_data),
        HeldData.of(small_data),
        Watch(),
        None,
        None,
        World(),
        torch.device("cpu"),
    )
    assert (trainer.reader.in_memory, trainer.valid.in_memory) == (True, False)
    roomy = SplitReader(small_data, "valid", batch_size=64, memory_bytes=300 * per_row)
    assert (roomy.in_memory, roomy.used_bytes) == (True, 300 * per_row)
    assert_equal_runs(whole, train(config, small_data, tmp_path / "run"))


def test_the_final_evaluation_builds_no_second_model(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "load_model", fail(AssertionError("a second model")))
    run = train(small_config("training.epochs=1"), small_data, tmp_path / "run")
    monkeypatch.undo()
    before = read_json(run.path / "evaluation" / "test.json")
    evaluate_run(run, splits=["test"])
    assert read_json(run.path / "evaluation" / "test.json") == before


@pytest.mark.parametrize("chunk", [1, 7, 1 << 24])
def test_weights_are_loaded_piece_by_piece(whole, monkeypatch, chunk):
    monkeypatch.setattr("dmoe.weights.run._LOADED_AT_ONCE", chunk)
    model = whole.load_model()
    saved = whole.load_weights()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_weights_of_another_model_are_refused_and_change_nothing(whole, small_data, tmp_path):
    other = train(small_config("training.epochs=1", "model.expert_units=8"), small_data, tmp_path / "other")
    model = whole.load_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DataError, match=r"model\.safetensors: does not fit config\.yaml: .* has shape"):
        other.load_weights_into(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_devices_that_dmoe_does_not_train_on_are_refused_in_a_line(monkeypatch):
    with pytest.raises(ConfigError, match="device mps is not supported"):
        choose_device("mps")
    with pytest.raises(ConfigError, match="device mps is not supported"):
        load_config("d-moe", ["training.device=mps"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="cuda:2, but torch sees 2 CUDA devices"):
        choose_device("cuda:2")
    assert choose_device("cuda:1") == torch.device("cuda:1")


CHILD = """
import os, sys, threading
from pathlib import Path
from dmoe.training.loop import train
from dmoe.training.progress import Silent
from tests.small_runs import small_config

data, output, event, times, seconds, number = sys.argv[1:]

class Ended(Silent):
    left = int(times)

    def heard(self, now):
        self.left -= now == event
        if self.left == 0:
            self.left = -1
            threading.Timer(float(seconds), os.kill, (os.getpid(), int(number))).start()

    def step(self, epoch, rows, loss):
        self.heard("step")

    def stop(self):
        self.heard("stop")

train(
    small_config("training.checkpoint_minutes=0.00001"), Path(data), Path(output), resume=True, watcher=Ended()
)
"""


def kill_at_moments(small_data: Path, whole: Run, folder: Path, moments: int, seed: int) -> int:
    """Ends a training over and over, a third of the times in its final evaluation; what ended well in the meantime is
    compared. Gives how often that hit."""
    draw, hits = random.Random(seed), 0

    def ended(event: str, times: int, seconds: float, number: int) -> int:
        command = [sys.executable, "-c", CHILD, small_data, folder, event, times, seconds, number]
        return subprocess.run([str(one) for one in command], stderr=subprocess.DEVNULL, check=False).returncode

    for number in range(moments):
        if (folder / "metrics.json").exists():
            folder.rename(folder.with_name(f"done-{number}"))
        event, times = ("step", draw.randint(1, 6)) if number % 3 else ("stop", 1)
        hits += ended(event, times, draw.uniform(0, 0.05), draw.choice([signal.SIGKILL, signal.SIGINT])) != 0
    if not (folder / "metrics.json").exists():
        assert ended("never", 1, 0, signal.SIGKILL) == 0
    for done in [folder, *folder.parent.glob("done-*")]:
        assert_equal_runs(whole, Run.open(done))
    return hits


def test_killed_at_a_few_moments_the_bits_are_the_same(small_data, tmp_path, whole, monkeypatch):
    """In this process, at seeded moments: a failing rename, a full disk, and an end without any cleaning up."""
    for number, (name, error) in enumerate(
        [("replace", OSError(errno.EIO, "rename")), ("fsync", OSError(errno.ENOSPC, "full")), ("replace", SystemExit())]
        * 2
    ):
        draw, output = random.Random(number), tmp_path / f"run{number}"
        left = draw.randrange(4, 24)
        original = getattr(os, name)

        def failing(*arguments: Any, original: Any = original, error: BaseException = error, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise error
            return original(*arguments, **keywords)

        monkeypatch.setattr(os, name, failing)
        config = small_config("training.checkpoint_minutes=0.00001")
        try:
            train(config, small_data, output)
        except (OSError, SystemExit):
            assert left == 0
        monkeypatch.undo()
        if not (output / "metrics.json").exists():
            train(config, small_data, output, resume=True)
        assert_equal_runs(whole, Run.open(output))


@pytest.mark.slow
def test_killed_at_thirty_moments_the_bits_are_the_same(small_data, tmp_path, whole):
    assert kill_at_moments(small_data, whole, tmp_path / "run", 30, seed=1) >= 15
