"""The drift page: groups and figures against slow counts, and a shift that was planted."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dmoe.cli.main import main
from dmoe.config.data import DataConfig
from dmoe.errors import ConfigError, DataError
from dmoe.inspection.contents import drift, groups_of, read_contents
from dmoe.prepare.prepare import prepare
from dmoe.prepare.update import update
from dmoe.report.drift import write_drift_report
from dmoe.shards.folder import DataFolder

PLAN = DataConfig.model_validate(
    {
        "label": "y",
        "split": {"kind": "given"},
        "fields": {"categorical": ["steady", "moved", "fresh"], "numeric": ["price"]},
    }
)


def write_log(path: Path, rows: int, *, seed: int, moved: float = 0.0) -> Path:
    """A share `moved` of the column moved is another value, and of fresh an unseen one; prices are as much higher."""
    draw = np.random.default_rng(seed)
    lines = ["y,steady,moved,fresh,price"]
    for index in range(rows):
        other = "z" if draw.random() < moved else f"m{draw.integers(4)}"
        fresh = f"new{index}" if draw.random() < moved else f"f{draw.integers(4)}"
        click = int(draw.random() < 0.3 + moved / 2)
        lines.append(f"{click},s{draw.integers(9)},{other},{fresh},{draw.normal() + 3 * moved:.3f}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift")
    train, test = write_log(folder / "train.csv", 3000, seed=1), write_log(folder / "test.csv", 1500, seed=2)
    prepare(PLAN, [f"train={train}", f"test={test}"], folder / "data", shard_rows=700)
    update(folder / "data", [f"test={write_log(folder / 'day.csv', 1200, seed=3, moved=0.4)}"], shard_rows=700)
    return folder / "data"


def test_contents_are_those_of_slow_counts(data: Path) -> None:
    base = DataFolder.read(data)
    groups = groups_of(base)
    assert [(group.name, len(group.parts)) for group in groups] == [("train", 5), ("test", 3), ("test, update 1", 2)]
    for one in read_contents(base, groups):
        rows = [row for part in one.group.parts for row in pq.read_table(part).to_pylist()]
        (label,) = one.labels.values()
        assert (one.rows, label.known, label.positives) == (len(rows), len(rows), sum(row["y"] for row in rows))
        for name in ("steady", "moved", "fresh"):
            counts = Counter(row[name] for row in rows)
            clicked = Counter(row[name] for row in rows if row["y"])
            assert {code: count for code, count in enumerate(one.counts[name].tolist()) if count} == counts
            assert {code: count for code, count in enumerate(label.positive_counts[name].tolist()) if count} == clicked
        assert one.counts["price"].sum() == len(rows)
        assert sum(count for count, _ in label.blocks) == len(rows)
        assert sum(positives for _, positives in label.blocks) == label.positives


def test_a_planted_shift_stands_out_and_the_rest_is_chance(data: Path) -> None:
    base = DataFolder.read(data)
    first, same, shifted = read_contents(base, groups_of(base))
    for field in drift(base, first, same):
        assert 0.2 * field.chance < field.shift < 3 * field.chance, field
    by_name = {field.name: field for field in drift(base, first, shifted)}
    for name in ("moved", "fresh", "price"):
        assert by_name[name].shift > 20 * by_name[name].chance
    assert by_name["steady"].shift < 3 * by_name["steady"].chance
    assert drift(base, first, shifted)[-1].name == "steady"
    # 40% of the rows have a value that train does not.
    assert by_name["fresh"].unseen == pytest.approx(0.4, abs=0.05)
    assert by_name["steady"].unseen == 0
    assert by_name["price"].unseen is None


def test_the_page_holds_every_group_and_its_figures(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["drift", str(data), "-o", str(tmp_path / "drift.html")])
    assert not done.value.code
    assert "test, update 1: label rate" in capsys.readouterr().out
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert "http://" not in page
    assert "https://" not in page
    for words in ("test, update 1", "Shift of test", "Label rate", "moved", "price"):
        assert words in page
    found = write_drift_report(data, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page
    assert [group["name"] for group in found["groups"]] == ["test", "test, update 1"]


def test_far_above_is_the_rule_of_update_and_unseen_values(tmp_path: Path) -> None:
    """Of the first rows as slow counts say, of an update's as the update warned, one sentence each."""
    train, valid = write_log(tmp_path / "train.csv", 2000, seed=1), write_log(tmp_path / "valid.csv", 500, seed=2)
    test, day = (
        write_log(tmp_path / "t.csv", 800, seed=3, moved=0.3),
        write_log(tmp_path / "d.csv", 600, seed=4, moved=1),
    )
    folder = tmp_path / "data"
    prepare(PLAN, [f"train={train}", f"valid={valid}", f"test={test}"], folder)
    assert update(folder, [f"train={day}"])["updates"][-1]["far_above"]
    found = write_drift_report(folder, tmp_path / "drift.html")["far_above"]
    base = DataFolder.read(folder)
    assert [(one["group"], one["field"], one["kind"]) for one in found] == [
        ("test", "moved", "unseen"),
        ("test", "fresh", "unseen"),
        *(("update 1", one["field"], one["kind"]) for one in base.summary["updates"][-1]["far_above"]),
    ]
    rows = [row["fresh"] for part in groups_of(base)[-1].parts for row in pq.read_table(part).to_pylist()]
    assert (found[1]["count"], found[1]["of"], found[1]["expected"]) == (rows.count(1), 800, 0.0)
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert f"{rows.count(1)} of 800 values were never seen in training" in page
    assert "values of the new rows were not in the data set before" in page


def test_what_cannot_be_reported_is_one_line(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        write_drift_report(data, tmp_path / "drift.txt")
    with pytest.raises(ConfigError, match="does not exist; make it first"):
        write_drift_report(data, tmp_path / "none" / "drift.html")
    log = write_log(tmp_path / "log.csv", 60, seed=1)
    prepare(PLAN, [f"train={log}"], tmp_path / "data")
    with pytest.raises(DataError, match="nothing to compare it with"):
        write_drift_report(tmp_path / "data", tmp_path / "drift.html")


def naive_divergence(first: Counter[object], second: Counter[object]) -> float:
    """Jensen–Shannon divergence in bits, value by value."""
    n, m = sum(first.values()), sum(second.values())
    total = 0.0
    for value in first | second:
        p, q = first[value] / n, second[value] / m
        total += sum(share / 2 * np.log2(2 * share / (p + q)) for share in (p, q) if share)
    return total


def test_chance_of_lists_is_what_dealing_rows_out_gives(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    lines = ["y,free,tied,wide"]
    for index in range(1500):
        one = draw.integers(12)
        lists = draw.integers(30, size=8), np.repeat(one, draw.integers(9)), draw.integers(2, size=3)
        lines.append(f"{index % 3 == 0:d}," + ",".join("|".join(f"v{value}" for value in some) for some in lists))
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    fields = {"multi_valued": {"free": {}, "tied": {}, "wide": {}}}
    plan = {"label": "y", "split": {"kind": "random", "train": 0.6, "valid": 0, "test": 0.4}, "fields": fields}
    prepare(DataConfig.model_validate(plan), [str(tmp_path / "log.csv")], tmp_path / "data")
    base = DataFolder.read(tmp_path / "data")
    groups = groups_of(base)
    found = {field.name: field for field in drift(base, *read_contents(base, groups))}
    rows = [[row for part in group.parts for row in pq.read_table(part).to_pylist()] for group in groups]
    for name in fields["multi_valued"]:
        first, second = (Counter(value for row in some for value in row[name] or [0]) for some in rows)
        assert found[name].shift == pytest.approx(naive_divergence(first, second))
        assert found[name].missing == sum(not row[name] for row in rows[1]) / len(rows[1])
        lists = [np.bincount(row[name] or [0], minlength=40) for some in rows for row in some]
        dealt = []
        for _ in range(150):
            order = draw.permutation(len(lists))
            first, second = (np.sum([lists[i] for i in part], axis=0) for part in np.split(order, [len(rows[0])]))
            dealt.append(naive_divergence(Counter(dict(enumerate(first))), Counter(dict(enumerate(second)))))
        assert found[name].chance == pytest.approx(np.mean(dealt), rel=0.15), name
    # Rows with one value many times say it once.
    assert found["tied"].chance > 3 * found["free"].chance / 30 * 12


@pytest.mark.parametrize("later", ["3", "6", "5.5", "-1"])
def test_a_constant_that_moves_is_a_shift(tmp_path: Path, later: str) -> None:
    logs = []
    for split, value in (("train", "5"), ("test", later)):
        path = tmp_path / f"{split}.csv"
        path.write_text("y,x\n" + "".join(f"{index % 2},{value}\n" for index in range(40)))
        logs.append(f"{split}={path}")
    plan = DataConfig.model_validate({"label": "y", "split": {"kind": "given"}, "fields": {"numeric": ["x"]}})
    prepare(plan, logs, tmp_path / "data")
    base = DataFolder.read(tmp_path / "data")
    assert drift(base, *read_contents(base, groups_of(base)))[0].shift == pytest.approx(1.0)
