"""A run that is calibrated at its end: what it says, resumes, exports and predicts."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dmoe.evaluation.evaluate import scored_rows
from dmoe.shards.reader import SplitReader
from dmoe.training import finish
from dmoe.training.loop import train
from dmoe.weights.run import Run
from tests.small_runs import small_config


def logits_of(run: Run, data: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    reader = SplitReader(data, split, batch_size=8192)
    rows = scored_rows(run.load_model(), reader, torch.device("cpu")).of_task()
    return rows.labels_R, rows.logits_R


@pytest.fixture(scope="module")
def plain(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(small_config(), small_data, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("kind", ["temperature", "platt", "isotonic"])
def test_a_map_changes_logits_and_not_their_order(kind: str, plain: Run, small_data: Path, tmp_path: Path) -> None:
    run = train(small_config(f"training.calibration={kind}"), small_data, tmp_path / "run")
    found = json.loads((run.path / "calibration.json").read_text())
    assert found["kind"] == kind
    model = run.load_model()
    bent = {"temperature": [0, 1, 0], "platt": [1, 1, 0], "isotonic": [1, 0, 1]}[kind]
    line = model.calibration.line
    assert [line[0] != 0, line[1] != 1, bool(model.calibration.bends_K.any())] == [bool(one) for one in bent]
    _, before_R = logits_of(plain, small_data, "test")
    _, after_R = logits_of(run, small_data, "test")
    want_R = model.calibration(torch.from_numpy(before_R)).numpy()
    np.testing.assert_allclose(after_R, want_R, atol=2e-6)  # logits are float32
    np.testing.assert_array_equal(np.argsort(before_R, kind="stable"), np.argsort(after_R, kind="stable"))
    metrics = json.loads((run.path / "evaluation" / "test.json").read_text())
    assert metrics["logloss"] == pytest.approx(found["splits"]["test"]["after"]["logloss"], abs=1e-6)
    valid = found["splits"]["valid"]
    assert valid["after"]["logloss"] <= valid["before"]["logloss"] + 1e-9 or kind == "isotonic"


def test_an_interrupted_calibration_is_done_again_from_the_start(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config("training.calibration=platt")
    whole = train(config, small_data, tmp_path / "whole")

    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(finish, "evaluate_split", fails)
    with pytest.raises(MemoryError):
        train(config, small_data, tmp_path / "cut")
    monkeypatch.undo()
    again = train(config, small_data, tmp_path / "cut", resume=True)
    for name in ("model.safetensors", "calibration.json", "evaluation/test.json"):
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_sampled_negatives_are_undone_in_predictions_only(plain: Run, small_data: Path, tmp_path: Path) -> None:
    run = train(small_config("training.negative_sampling_rate=0.1"), small_data, tmp_path / "run")
    _, logits_R = logits_of(run, small_data, "test")
    np.testing.assert_array_equal(logits_R, logits_of(plain, small_data, "test")[1])
    model = run.load_model()
    served = model.calibration.served(torch.from_numpy(logits_R))
    sampled, whole = 1 / (1 + np.exp(-logits_R)), torch.sigmoid(served).numpy()
    np.testing.assert_allclose(whole, sampled / (sampled + (1 - sampled) / 0.1), rtol=1e-12)  # He et al. 2014
    assert float(model.calibration.offset) == pytest.approx(math.log(0.1))


def test_a_continued_run_is_calibrated_anew(small_data: Path, tmp_path: Path) -> None:
    first = train(small_config("training.calibration=platt"), small_data, tmp_path / "first")
    second = train(small_config("training.epochs=1"), small_data, tmp_path / "second", start=first)
    assert second.load_model().calibration.line.tolist() == [0.0, 1.0]
