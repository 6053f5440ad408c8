"""The model card: front matter that Hugging Face reads, figures of the run, texts of a log that stay texts."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from dmoe.cli.main import main
from dmoe.errors import DataError
from dmoe.evaluation.evaluate import evaluate_run
from dmoe.export.card import _plain, auc_interval, model_card
from dmoe.export.manifest import Manifest
from dmoe.weights.run import Run


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


def parts(card: str) -> tuple[dict[str, Any], str]:
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1]), found[2]


def test_a_card_has_the_figures_of_the_run(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", run.path, "-o", tmp_path / "clicks", "--card", "--license", "cc-by-4.0") == 0
    front, body = parts((tmp_path / "clicks" / "README.md").read_text())
    assert (front["license"], front["library_name"]) == ("cc-by-4.0", "dmoe")
    (model,) = front["model-index"]
    assert model["name"] == "clicks"
    found = json.loads((run.path / "evaluation" / "test.json").read_text())
    (test,) = [one for one in model["results"] if one["dataset"]["split"] == "test"]
    # What huggingface_hub's ModelCard asks of a result.
    assert {*test} == {"task", "dataset", "metrics"}
    assert all(test[key]["type"] and test[key]["name"] for key in ("task", "dataset"))
    assert {one["type"]: one["value"] for one in test["metrics"]} == {
        "roc_auc": pytest.approx(found["auc"], abs=1e-6),
        "log_loss": pytest.approx(found["logloss"], abs=1e-6),
    }
    low, high = auc_interval(found["auc"], found["positives"], found["rows"] - found["positives"]) or (0, 0)
    assert f"| {found['auc']:.4f} | {low:.4f} to {high:.4f} |" in body
    assert body.count("\n| 0.") >= len(found["calibration"]["bins"])
    assert str(tmp_path) not in body + json.dumps(front)
    # It may be edited.
    (tmp_path / "clicks" / "README.md").write_text("mine")
    Manifest.read(tmp_path / "clicks")
    assert call("export", run.path, "-o", tmp_path / "x", "--license", "mit") == 2
    assert "--license is of the model card; give --card too" in capsys.readouterr().err
    assert call("export", run.path, "-o", tmp_path / "x", "--card", "--license", "My Own!") == 2
    assert "'My Own!' is no identifier" in capsys.readouterr().err


def test_several_labels_each_have_theirs(several: Run, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(several.path, tmp_path / "run"))
    with pytest.raises(DataError, match="has no evaluation; `dmoe evaluate"):
        model_card(copy, several.data_folder(), "tasks")
    evaluate_run(copy, splits=["test"], data=several.data_folder())
    figures = {"parameters": 1000, "steps": 3, "seconds": 2.0, "best_epoch": 1}
    (copy.path / "metrics.json").write_text(json.dumps(figures))
    front, body = parts(model_card(copy, several.data_folder(), "tasks"))
    names = [one["task"]["name"] for one in front["model-index"][0]["results"]]
    assert {"click", "conversion", "like"} <= {*names}
    assert front["license"] == "unknown"
    assert all(f"| {name} | test |" in body for name in names)


def test_an_interval_is_as_wide_as_the_aucs_of_samples() -> None:
    draw = np.random.default_rng(0)
    aucs = [roc_auc_score([1] * 60 + [0] * 140, [*draw.normal(1, size=60), *draw.normal(size=140)]) for _ in range(400)]
    low, high = auc_interval(float(np.mean(aucs)), 60, 140) or (0, 0)
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(aucs), rel=0.12)
    assert auc_interval(0.7, 0, 10) is None
    assert auc_interval(1.0, 5, 5) == (1.0, 1.0)


def test_texts_of_a_log_make_no_markup() -> None:
    for sign, more in itertools.product("|`[]*_<&", ["", "a"]):
        text = _plain(f"{more}{sign}{more}\n")
        assert "\n" not in text
        assert f"\\{sign}" in text or sign not in text.replace("&lt;", "").replace("&amp;", "")
