"""The read-out of planted structures on experts whose knowledge is known."""

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from dmoe.errors import DataError
from dmoe.experiments import planted
from dmoe.experiments.planted import Truth, assigned, recovered, separation
from dmoe.synthetic.generate import generate
from dmoe.synthetic.logit import sum_parts
from dmoe.synthetic.truth import split_bounds


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    generate(folder / "log.csv", rows=70_000, preset="toy", seed=5)
    return folder / "log.truth.json"


def test_parts_are_those_that_the_labels_were_drawn_with(truth: Path) -> None:
    """Refitting the logit of truth.parquet on all parts gives coefficients of 1 on the rows of the split."""
    known = Truth.read(truth)
    parts = known.parts("test")
    first, last = split_bounds(70_000)["test"]
    probability = parquet.read_table(truth.with_suffix(".parquet"))["probability"].to_numpy()[first:last].astype(float)
    logit = np.log(probability / (1 - probability))
    assert len(parts["inner"]) == last - first
    # The other two parts are left over; they are independent of these.
    design = np.column_stack([np.ones(len(logit)), parts["inner"], parts["triple"]])
    coefficients = np.linalg.lstsq(design, logit, rcond=None)[0]
    assert coefficients[1:] == pytest.approx([1.0, 1.0], abs=0.05)


def test_parts_across_blocks_are_in_order(truth: Path) -> None:
    """The last 7,000 rows lie in the second block; the first 56,000 in the first."""
    known = Truth.read(truth)
    from dmoe.synthetic.draw import blocks

    whole = np.concatenate(
        [
            known.planted.parts(columns)[0]["triple"]
            for columns in blocks(known.planted.preset, known.planted.seed, 70_000)
        ]
    )
    first, last = split_bounds(70_000)["valid"]
    np.testing.assert_array_equal(known.parts("valid")["triple"], whole[first:last])
    assert sum_parts(known.planted.parts(next(iter(blocks(known.planted.preset, 5, 70_000))))[0]).std() > 0


def test_the_domains_of_the_log_are_those_of_its_truth(tmp_path: Path) -> None:
    """A similarity other than the preset's is read from the file: the probabilities come out as written."""
    files, _ = generate(tmp_path / "log.csv", rows=500, preset="domains", seed=5, similarity=0.2)
    from dmoe.synthetic.draw import blocks

    known = Truth.read(files.truth).planted
    drawn = known.draw(next(iter(blocks(known.preset, known.seed, 500))))
    written = parquet.read_table(files.probabilities)
    for name in ("click", "conversion"):
        assert np.array_equal(drawn.probabilities[name], written[f"probability.{name}"].to_numpy())


def test_specialists_separate_and_twins_do_not() -> None:
    random = np.random.default_rng(0)
    parts = {split: {"inner": random.normal(size=2000), "triple": random.normal(size=2000)} for split in "ab"}

    def units(split: str, inner: float, triple: float) -> np.ndarray:
        signal = inner * parts[split]["inner"] + triple * parts[split]["triple"]
        return np.column_stack([signal, -2 * signal, random.normal(size=2000)])

    specialists = recovered(
        [units("a", 0, 1), units("a", 1, 0)], parts["a"], [units("b", 0, 1), units("b", 1, 0)], parts["b"]
    )
    assert specialists["separation"] == pytest.approx(1.0, abs=0.02)
    assert np.array(specialists["r_squared"]) == pytest.approx(np.array([[0, 1], [1, 0]]), abs=0.02)
    twins = recovered(
        [units("a", 1, 1), units("a", 1, 1)], parts["a"], [units("b", 1, 1), units("b", 1, 1)], parts["b"]
    )
    assert twins["separation"] == pytest.approx(0.0, abs=0.02)


def test_separation_takes_the_best_way_of_giving_each_structure_an_expert() -> None:
    assert separation([[0.9, 0.1], [0.2, 0.8]]) == pytest.approx((0.7 + 0.7) / 2)
    assert separation([[0.2, 0.8], [0.9, 0.1]]) == pytest.approx((0.7 + 0.7) / 2)
    assert separation([[0.9, 0.8], [0.1, 0.1]]) == pytest.approx((0.8 - 0.7) / 2)
    assert assigned([[0.2, 0.8], [0.9, 0.1]]) == (1, 0)
    assert assigned([[0.9, 0.1], [0.2, 0.8], [0.0, 0.0]]) == (0, 1)
    assert separation([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]) == pytest.approx(0.0)


def test_rows_are_bounded(truth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Truth.read(truth).parts("train")["inner"]
    monkeypatch.setattr(planted, "MAX_ROWS", 100)
    np.testing.assert_array_equal(Truth.read(truth).parts("train")["inner"], whole[:100])


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "expected keys preset, seed, rows"), ('{"preset": "old", "seed": 1, "rows": 9}', "preset 'old'")],
)
def test_a_file_that_is_no_truth_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.truth.json"
    path.write_text(json.dumps(json.loads(content)))
    with pytest.raises(DataError, match=message):
        Truth.read(path)
