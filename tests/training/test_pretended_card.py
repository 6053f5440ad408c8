"""Whole runs with `device: cuda` on a pretended card: every part of them works on what is there, and learns what the
CPU learns. What streams and memory do, a card alone shows: `make test-gpu`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton runs on Linux only")

import dmoe
from dmoe.disk.files import read_json, read_json_lines
from dmoe.errors import DataError, Interrupted
from dmoe.evaluation.evaluate import correlate_run, evaluate_run
from dmoe.evaluation.watch import CorrelationWatch
from dmoe.nn.tables.bank import TokenField
from dmoe.nn.tables.fields import FieldEmbedding
from dmoe.prepare.prepare import prepare
from dmoe.training.callbacks import Callback
from dmoe.training.dry_run import dry_run
from dmoe.training.engine import Engine
from dmoe.training.loop import train
from tests.prepare.logs import config as log_config
from tests.prepare.logs import random_rows, write_csv
from tests.pretended_card import CARD_BYTES, CUDA, PEAK_BYTES, Card, OnCard, card
from tests.small_runs import small_config, with_tasks, write_data
from tests.training.test_loop import StopAt, assert_same_bits, weights

BASE = ["training.epochs=1", "training.batch_size=40"]
ADAGRAD = ["optimiser.embedding=rowwise-adagrad", "optimiser.embedding_l2=0"]
HOST = "training.tables=host"
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "set", {"train": 160, "valid": 150, "test": 100})


@pytest.fixture(scope="module")
def tasks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tasks(data, tmp_path_factory.mktemp("tasks") / "set", domain=True, weight=True)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that waits for the device is an error; with tables on the host it waits for their gradients alone."""
    real = Engine.step

    def step(self: Engine, *given: Any) -> torch.Tensor:
        if self.device.type == "cpu":
            return real(self, *given)
        before = len(Card.waited)
        with Card.asks_nothing(not self.host_tables):
            found = real(self, *given)
        # Of each table, and the factor of clipping.
        assert len(Card.waited) - before <= len(self.tables) + 1
        assert set(Card.waited[before:]) <= {"_to_copy"}
        assert isinstance(found, OnCard)
        return found

    monkeypatch.setattr(Engine, "step", step)


def on_both(
    overrides: Sequence[str], data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[Any, Any]:
    """The run on the CPU and the one on the card."""
    here = train(small_config("training.device=cpu", *BASE, *overrides), data, folder / "cpu")
    with card(monkeypatch, triton=True):
        there = train(small_config("training.device=cuda", *BASE, *overrides), data, folder / "card", **options)
    return here, there


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "overrides",
    [
        ["decorrelation=[{alpha: 2, norm: spectral}]"],
        ["model.shrinkage=5", "training.unseen=auto", "optimiser.embedding_l2_rarity=0.5"],
        pytest.param(["model.embedding_storage=bfloat16", "training.clip_norm=null"], marks=SLOW),
        [HOST, "optimiser.embedding=dense"],
        [HOST, *ADAGRAD, "training.clip_norm=0.01"],
        [HOST, "model.shrinkage=5", "model.linear=true", "training.calibration=auto"],
        pytest.param([HOST, "optimiser.embedding_clip={r: 0.1}", "optimiser.embedding_l2=1e-3"], marks=SLOW),
    ],
    ids=lambda one: " ".join(one),
)
def test_a_run_on_a_card_is_near_that_of_the_cpu(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    here, there = on_both(overrides, data, tmp_path, monkeypatch)
    for name, value in weights(here).items():
        tolerance = 2e-2 if "bfloat16" in overrides[0] else 1e-3
        torch.testing.assert_close(weights(there)[name], value, rtol=tolerance, atol=tolerance, msg=name)
    ours, theirs = (read_json(run.path / "metrics.json") for run in (there, here))
    assert ours["test"]["logloss"] == pytest.approx(theirs["test"]["logloss"], abs=1e-3)
    assert ours.keys() == theirs.keys()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("tables", ["device", "host"])
def test_all_that_belongs_to_a_run_of_several_labels_works_there(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: str
) -> None:
    """Domains, weights, a label given another, several banks; evaluations, what looks on, callbacks, resuming."""
    overrides = [
        *("model.heads=task-and-domain", "training.balance=uncertainty", "training.domain_weights=equal"),
        *(
            "model.tasks={buy: {loss: entire-space}}",
            "model.tower_scale={fields: [device]}",
            f"training.tables={tables}",
        ),
        "model.experts=[{kind: cin, units: [6], fields: [site, hour]}, {kind: crossnet, layers: 2}]",
    ]
    told: list[dict[str, Any]] = []

    class Tells(Callback):
        def on_evaluation(self, metrics: dict[str, Any]) -> None:
            told.append(metrics)

    here, there = on_both(
        overrides, tasks, tmp_path, monkeypatch, on_evaluation=CorrelationWatch(tasks), callbacks=[Tells()]
    )
    for name, value in weights(here).items():
        torch.testing.assert_close(weights(there)[name], value, rtol=1e-3, atol=1e-3, msg=name)
    assert len(told) == len(read_json_lines(there.path / "metrics.jsonl"))
    assert "cec" in told[0]
    config = small_config("training.device=cuda", *BASE, *overrides)
    with card(monkeypatch, triton=True):
        with pytest.raises(Interrupted):
            train(config, tasks, tmp_path / "cut", watcher=StopAt(2))
        assert_same_bits(there, train(config, tasks, tmp_path / "cut", resume=True))
        found = evaluate_run(there, splits=["test"], device="cuda", group="hour")["test"]
        correlate_run(there, split="test", device="cuda")
    assert found["logloss"] == pytest.approx(evaluate_run(there, splits=["test"])["test"]["logloss"], abs=1e-6)


@pytest.mark.parametrize("tables", ["device", "host"])
def test_a_dry_run_measures_there(data: Path, monkeypatch: pytest.MonkeyPatch, tables: str) -> None:
    with card(monkeypatch, triton=True):
        found = dry_run(small_config("training.device=cuda", *BASE, f"training.tables={tables}"), data)
    assert (found.memory.device, found.memory.device_limit) == (PEAK_BYTES, CARD_BYTES)
    assert found.seconds is not None
    assert found.seconds.step > 0


def test_a_run_from_a_card_scores_rows_there_and_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_csv(tmp_path / "log.csv", random_rows(250, 1))
    prepare(log_config(), [str(log)], tmp_path / "data")
    with card(monkeypatch, triton=True):
        run = train(small_config("training.device=cuda", *BASE), tmp_path / "data", tmp_path / "run")
        there = dmoe.load(run.path, device="cuda").predict_proba(str(log))
    here = dmoe.load(run.path, device="cpu").predict_proba(str(log))
    assert len(here) > 200
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-6)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_an_id_of_given_vectors_that_is_out_of_range_is_named_where_rows_are_scored(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Beyond them a card would end the process, and an index below would read another field's."""
    fields = [TokenField(4), TokenField(5, width=3, frozen=True), TokenField(6, width=3, frozen=True)]
    embedding = FieldEmbedding(fields, 0, [2])
    embedding.name_columns(["site", "picture", "text"])
    with card(monkeypatch):
        device = torch.device("cpu") if where == "cpu" else CUDA
        embedding = embedding.to(device)
        embedding(torch.tensor([[3, 4, 5]]).to(device))
        with pytest.raises(DataError, match=r"row 1 of the batch: categorical field 1 'picture' has id 7.* ids 0 to 4"):
            embedding(torch.tensor([[3, 4, 5], [0, 7, 0]]).to(device))
