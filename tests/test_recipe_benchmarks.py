"""The benchmarks of the recipe: which settings they try, and which rows are whose."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.folds import table, written
from benchmarks.real_logs import MEASURES, SETTINGS
from benchmarks.task_folds import tables

from dmoe.config.run import RunConfig, load_config
from dmoe.schema import CategoricalField, Schema, Task
from dmoe.training.log_facts import LogFacts
from dmoe.training.recipe import resolved

SCHEMA = Schema(label="click", fields=(CategoricalField(name="user", vocabulary_size=4),))
FACTS = LogFacts(SCHEMA, 100_000, 10_000, [np.array([0, 10_000, 40_000, 50_000])], {"user": 0.3})


def measures_of(config: RunConfig) -> dict[str, bool]:
    (term,) = config.decorrelation
    return {
        "unseen tokens": bool(config.training.unseen_rates),
        "base rate": config.training.base_rate,
        "calibration": config.training.calibration != "none",
        "linear part": config.model.linear,
        "field vectors": config.model.field_std > 0,
        "late loss": term.start_step > 0,
    }


@pytest.mark.parametrize("name", MEASURES)
def test_a_setting_has_the_measures_that_its_name_says(name: str) -> None:
    def measured(setting: str) -> set[str]:
        preset, own = SETTINGS[setting]
        found = measures_of(resolved(load_config(preset, own), FACTS))
        return {measure for measure, there in found.items() if there}

    assert measured("all") == set(MEASURES)
    assert measured("none") == set()
    assert measured(f"only {name}") == {name}
    assert measured(f"without {name}") == set(MEASURES) - {name}


def test_every_row_of_a_log_is_a_test_row_once(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = [f"{number % 2},{number}" for number in range(103)]
    log.write_text("\r\n".join(["click,user", *rows]))
    tested: list[str] = []
    for inputs in written(log, tmp_path / "rows", 5):
        parts = {}
        for one in inputs:
            split, path = one.split("=", 1)
            header, *parts[split] = Path(path).read_text().splitlines()
            assert header == "click,user"
        assert sorted(row for part in parts.values() for row in part) == sorted(rows)
        assert len(parts["valid"]) == 10
        tested += parts["test"]
    assert sorted(tested) == sorted(rows)


def test_folds_are_compared_in_pairs() -> None:
    scores = {
        "d-moe": [(0.8, 0.3), (0.7, 0.5), (0.9, 0.4)],
        "logistic": [(0.79, 0.3), (0.69, 0.5), (0.89, 0.4)],
        "lightgbm": [(0.8, 0.3), (0.7, 0.5), (0.9, 0.4)],
    }
    found = table(scores, [1.0, 1.02])
    assert "| `dmoe train d-moe`, AUC | 0.8000 | 0.7000 | 0.9000 | 0.8000 ± 0.1000 |  |" in found
    assert "0.7900 ± 0.1000 | +0.0100 [+0.0100, +0.0100] |" in found
    assert "predicted/observed: 1.010 ± 0.014" in found


def test_models_of_several_labels_are_compared_by_fold_and_label() -> None:
    schema = Schema(
        label="click",
        fields=SCHEMA.fields,
        labels=(Task(name="click"), Task(name="sale", given="click")),
    )
    auc = {
        ("0", "Single task", "plain"): [0.7, 0.72, 0.71],
        ("1", "Single task", "plain"): [0.6, 0.62, 0.61],
        ("1", "PLE", "plain"): [0.63, 0.65, 0.64],
        ("1", "PLE", "Corr"): [0.62, 0.66, 0.64],
        ("1", "logistic regression", "plain"): [0.6, 0.6, 0.6],
    }
    text = tables(auc, {key: [0.2, 0.2, 0.2] for key in auc}, schema)
    assert "## click\n" in text
    sale = text[text.index("## sale given click") :].splitlines()
    assert [line.split(" | ")[0] for line in sale if line.startswith("| ")][1:] == [
        "| logistic regression",
        "| Single task",
        "| PLE",
        "| PLE, Corr",
    ]
    assert "| PLE | 0.6400 ± 0.0100 | 0.2000 ± 0.0000 | +0.0300 [+0.0300, +0.0300] |  |" in sale
    assert "+0.0000 [" in sale[-1]
