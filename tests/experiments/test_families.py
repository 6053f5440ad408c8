"""Experiments on several labels and domains: what runs, what each table shows of it."""

from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from dmoe.errors import ConfigError
from dmoe.experiments.families import FAMILIES, Slice, family, family_arms, slices
from dmoe.experiments.folder import Folder
from dmoe.experiments.grid import Arm, size
from dmoe.experiments.runner import Limits, Runner
from dmoe.experiments.slices import read_slice
from dmoe.experiments.start import start
from dmoe.experiments.summary import ExperimentSummary
from dmoe.report.experiment import write_experiment_report
from dmoe.schema import Schema
from tests.experiments.test_runner import Quiet
from tests.small_runs import with_tasks


@pytest.fixture(scope="module")
def data(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tasks(small_data, tmp_path_factory.mktemp("families") / "data", domain=True)


def test_a_family_has_a_table_for_each_label_joint_label_and_domain(data: Path) -> None:
    schema = Schema.read(data)
    titles = [of.title(schema) for of in slices("tasks", schema)]
    assert titles == ["click", "buy given click", "click and buy", "like"]
    assert [of.title(schema) for of in slices("domains", schema)][:4] == [
        "click", "click, device device0", "click, device device1", "click, device other",
    ]  # fmt: skip
    for name in FAMILIES:
        for of in slices(name, schema):
            assert Slice.read(of.suffix) == of


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("chosen", ["tiny", "small", "recipe"])
def test_every_model_of_a_family_is_a_run(name: str, chosen: str, data: Path) -> None:
    schema = Schema.read(data)
    for of in slices(name, schema):
        arms = family_arms(name, of, size(chosen), (), schema)
        assert {arm.model for arm in arms} == {
            model for model, member in family(name).models.items() if not (member.alone and of.joint)
        }
        for arm in arms:
            arm.cell(1, 1.0 if arm.loss else None)


def test_a_label_by_itself_learns_nothing_of_the_others_and_the_rest_is_shared(data: Path) -> None:
    schema = Schema.read(data)
    by_label = [family_arms("tasks", Slice(task), size("tiny"), (), schema) for task in range(3)]

    def cell(arms: list[Arm], model: str) -> str:
        return next(arm.cell(1).key for arm in arms if (arm.model, arm.variant) == (model, "plain"))

    assert len({cell(list(arms), "Single task") for arms in by_label}) == 3
    assert len({cell(list(arms), "MMoE") for arms in by_label}) == 1
    config = by_label[1][0].cell(1).config
    weights = {name: one.weight for name, one in config.model.tasks.items()}
    assert weights == {"*": 0.0, "buy": 1.0}
    assert config.training.monitor_tasks == {"buy": 1.0}


def test_data_without_labels_or_domains_are_refused(small_data: Path, tmp_path: Path) -> None:
    for name, message in {"tasks": "needs several labels", "domains": "needs the domain of each row"}.items():
        with pytest.raises(ConfigError, match=message):
            start([name], data=small_data, output=tmp_path / name, seeds=1)


@pytest.mark.slow
def test_tables_show_what_the_runs_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two models and one loss are enough to see every kind of table.
    spec = family("tasks")
    models = {name: spec.models[name] for name in ("Single task", "MMoE")}
    few = spec.model_copy(
        update={
            "models": models,
            "losses": {name: spec.losses[name] for name in ("plain", "Corr")},
            "compare": [one for one in spec.compare if one.better == "Corr"],
            "between_models": [one for one in spec.between_models if one.better == "MMoE"],
        }
    )
    monkeypatch.setattr("dmoe.experiments.families.family", lambda _: few)
    changes = ("training.batch_size=300",)
    folder = start(["tasks"], data=data, output=tmp_path / "out", seeds=1, size="tiny", changes=changes)
    limits = Limits(jobs=1, threads=1, memory=4 << 30, core_seconds=None, keep_weights=False)
    assert not Runner(folder, limits, Quiet()).run().failed
    summary = ExperimentSummary(Folder.open(folder.path))
    schema, tables = Schema.read(data), {table.name: table for table in summary.tables}
    assert list(tables) == ["tasks-0", "tasks-1", "tasks-1j", "tasks-2"]
    assert ("Single task", "plain") not in tables["tasks-1j"].places
    for name, table in tables.items():
        of = Slice.read(name.removeprefix("tasks-"))
        place = table.places["MMoE", "plain"]
        (key,) = place.cells.values()
        scores = parquet.read_table(folder.cell(key.partition("@")[0]) / "scores.parquet")
        scores = scores.filter(np.array(scores["split"].to_pylist()) == "test")
        truth = parquet.read_table(data / "test")
        label = truth["buy" if of.task == 1 else schema.tasks[of.task].name].to_numpy()
        logit = scores[f"logit_{of.task}"].to_numpy().astype(float)
        if of.joint:
            label = truth["click"].to_numpy() * np.nan_to_num(label)
            logit = expit(logit) * expit(scores["logit_0"].to_numpy().astype(float))
        known = ~np.isnan(label)
        expected = roc_auc_score(label[known], logit[known])
        assert place.runs[1]["auc"] == pytest.approx(expected)
        labels_R, logits_R = read_slice(folder.cell(key.partition("@")[0]) / "scores.parquet", of, schema)
        assert roc_auc_score(labels_R, logits_R) == pytest.approx(expected, abs=1e-9)
        assert any(one.better == "Corr" and one.metric == "auc" for one in table.decided)
    write_experiment_report(folder.path, folder.path / "report.html", summary)
    page = (folder.path / "report.html").read_text()
    assert "buy given click" in page
    assert "click and buy" in page
