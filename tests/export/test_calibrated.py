"""A calibrated run: the same probabilities from run, graph and file."""

from pathlib import Path

import numpy as np
import pytest

import dmoe
from dmoe.export.write import export
from dmoe.training import calibrate
from tests.export.conftest import trained


@pytest.mark.parametrize("kind", ["platt", pytest.param("isotonic", marks=pytest.mark.slow)])
def test_a_calibrated_run_of_sampled_negatives_exports(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_STEP_ROWS", 3)  # the log is small
    run = trained(tmp_path, f"training.calibration={kind}", "training.negative_sampling_rate=0.2")
    assert run.load_model().calibration.line[0] != 0
    parity = export(run, tmp_path / "model").parity
    assert parity.max_abs_probability < 1e-6
    log = tmp_path / "log.csv"
    ours, theirs = (dmoe.load(folder).predict_proba(log) for folder in (run.path, tmp_path / "model"))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_linear_part_is_in_the_graph(tmp_path: Path) -> None:
    run = trained(tmp_path, "model.linear=true", "training.calibration=platt", "training.epochs=1")
    model = run.load_model()
    assert model.linear is not None
    if not float(model.linear.share):
        model.linear.share.fill_(0.5)
        run.save_weights(model.state_dict())
    assert bool(model.linear.weights_V.any())
    assert export(run, tmp_path / "model").parity.max_abs_probability < 1e-6
    log = tmp_path / "log.csv"
    ours, theirs = (dmoe.load(folder).predict_proba(log) for folder in (run.path, tmp_path / "model"))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
