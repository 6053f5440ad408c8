"""Warnings before training: every planted leak is named with its figure, and a clean log gives none."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from dmoe.cli.main import main
from dmoe.config.data import DataConfig, read_data_config
from dmoe.inspection import inspect_log
from dmoe.inspection.leak_sample import suspicions
from dmoe.inspection.leaks import copies_suspicion, label_suspicions, unseen_suspicion
from dmoe.prepare.prepare import prepare
from dmoe.prepare.update import update
from dmoe.shards.folder import DataFolder

ROWS = 6000
Table = dict[str, list[Any]]


def clean(seed: int, rows: int = ROWS) -> Table:
    """Sites, users of a long tail, small counts, prices, tags and holes that have nothing to do with the label; a click
    rate that depends on some."""
    draw = np.random.default_rng(seed)
    site, user = draw.integers(30, size=rows), draw.zipf(1.5, size=rows) % 5000
    hits, price = draw.poisson(3, size=rows), draw.lognormal(size=rows)
    tags = [draw.integers(12, size=draw.integers(4)) for _ in range(rows)]
    logit = -1.2 + np.random.default_rng(1).normal(0, 0.8, 30)[site] + 0.2 * hits - 0.3 * price
    click = draw.random(rows) < 1 / (1 + np.exp(-logit))
    hole = draw.random(rows) < 0.1
    return {
        "click": click.astype(int).tolist(),
        "site": [f"s{one}" for one in site],
        "user": [f"u{one}" for one in user],
        "hits": hits.tolist(),
        "price": ["" if none else f"{one:.3f}" for one, none in zip(price, hole, strict=True)],
        "tags": ["|".join(f"t{one}" for one in some) for some in tags],
    }


def write(folder: Path, table: Table) -> Path:
    lines = [",".join(table), *(",".join(map(str, row)) for row in zip(*table.values(), strict=True))]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return folder / "log.csv"


def plan(table: Table, *, numeric: tuple[str, ...] = (), **split: Any) -> DataConfig:
    numbers = [name for name in ("hits", "price", *numeric) if name in table]
    several = [name for name in table if name.startswith("tags")]
    fields = {
        "categorical": [name for name in table if name not in (*numbers, *several, "click")],
        "numeric": {name: {"transform": "log", "standardise": True} for name in numbers},
        "multi_valued": several,
    }
    return DataConfig.model_validate({"label": "click", "split": {"kind": "random", **split}, "fields": fields})


def prepared(folder: Path, table: Table, **keys: Any) -> list[dict[str, Any]]:
    summary = prepare(plan(table, **keys), [str(write(folder, table))], folder / "data", force=True)
    on_disk = json.loads((folder / "data" / "summary.json").read_text())["warnings"]
    assert on_disk == summary["warnings"] == [one.values() for one in suspicions(DataFolder.read(folder / "data"))]
    return list(on_disk)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["random", "ordered"])
def test_a_clean_log_gives_no_warning(tmp_path: Path, seed: int, kind: str) -> None:
    table = clean(seed)
    assert prepared(tmp_path, table, kind=kind) == []
    assert inspect_log([str(tmp_path / "log.csv")], label=None, max_rows=10**6).warnings == []


def _late(table: Table) -> list[Any]:
    draw = np.random.default_rng(7)
    return [f"{0.2 + one + draw.normal() * 0.2:.4f}" for one in table["click"]]


def _gap(table: Table) -> list[Any]:
    """Seconds since the row before; 30.000 where no click follows, in most such rows."""
    draw = np.random.default_rng(7)
    return ["30.000" if not one and draw.random() < 0.7 else f"{draw.exponential(60):.3f}" for one in table["click"]]


def _hole(table: Table) -> list[Any]:
    draw = np.random.default_rng(7)
    return ["" if not one and draw.random() < 0.5 else f"h{draw.integers(9)}" for one in table["click"]]


def _status(table: Table) -> list[Any]:
    draw = np.random.default_rng(7)
    return ["done" if one and draw.random() < 0.6 else f"v{draw.integers(12)}" for one in table["click"]]


PLANTED: list[tuple[str, str, Callable[[Table], list[Any]]]] = [
    ("is the label", "outcome", lambda table: ["won" if one else "lost" for one in table["click"]]),
    ("tells the label", "revenue", _late),
    ("one value tells the label", "gap", _gap),
    ("one value tells the label", "status", _status),
    ("missing tells the label", "hole", _hole),
    ("rises with the row", "row", lambda table: list(range(len(table["click"])))),
    (
        "differs in each row",
        "token",
        lambda table: [f"x{(7919 * one) % 1000003}" for one in range(len(table["click"]))],
    ),
]


@pytest.mark.parametrize(("kind", "name", "make"), PLANTED)
def test_a_planted_field_is_named(
    tmp_path: Path, kind: str, name: str, make: Callable[[Table], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    table = clean(11)
    table[name] = make(table)
    numeric = (name,) if name in ("revenue", "gap") else ()
    for split in ("random", "ordered"):
        found = prepared(tmp_path, table, numeric=numeric, kind=split)
        assert [(one["kind"], one["field"]) for one in found] == [(kind, name)]
    assert f"'{name}'" in found[0]["text"]
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "data")])
    assert f"warning: {found[0]['text']}" in capsys.readouterr().err
    raw = inspect_log([str(tmp_path / "log.csv")], label="click", max_rows=10**6)
    left_out = {one.name for one in raw.columns if one.kind == "row id"}
    expected = [] if name in left_out else [(kind, name)]
    assert [(one.kind, one.field) for one in raw.warnings] == expected
    assert (name in left_out) == (name in ("row", "token"))
    if name == "gap":
        assert "30" in found[0]["text"].split("one value, ")[1].split(":")[0]
    if name == "revenue":
        order = np.array(table[name], float)
        assert found[0]["figure"] == pytest.approx(roc_auc_score(table["click"], order), abs=0.01)


def test_lists_can_tell_the_label_too(tmp_path: Path) -> None:
    table = clean(3)
    table["tags_after"] = [
        f"{tags}|bought" if one else tags or "none" for one, tags in zip(table["click"], table["tags"], strict=True)
    ]
    assert [(one["kind"], one["field"]) for one in prepared(tmp_path, table)] == [("tells the label", "tags_after")]


def test_unique_values_deceive_nobody(tmp_path: Path) -> None:
    table = clean(4)
    table["session"] = [f"n{index // 2}" for index in range(ROWS)]
    assert prepared(tmp_path, table) == []


def test_copied_rows_are_told_from_common_ones(tmp_path: Path) -> None:
    table = clean(5)
    draw = np.random.default_rng(0)
    again = draw.permutation(np.concatenate([np.arange(ROWS), draw.choice(ROWS, 1500, replace=False)]))
    copied = {name: [column[index] for index in again] for name, column in table.items()}
    (found,) = prepared(tmp_path, copied)
    rows = {split: _encoded(tmp_path / "data", split) for split in ("train", "valid", "test")}
    seen = Counter(row[:-1] for row in rows["train"])
    held = rows["valid"] + rows["test"]
    assert found["kind"] == "copies across splits"
    assert found["figure"] == pytest.approx(sum(row[:-1] in seen for row in held) / len(held), abs=1e-4)
    # Few fields: most held-out rows are like a training row, and none is a copy.
    few = {name: table[name] for name in ("click", "site", "hits")}
    assert prepared(tmp_path, few) == []


def _encoded(folder: Path, split: str) -> list[tuple[Any, ...]]:
    import pyarrow.parquet as pq

    rows = [row for part in sorted((folder / split).glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    return [tuple(tuple(one) if isinstance(one, list) else one for one in row.values()) for row in rows]


@pytest.mark.parametrize("seed", range(5))
def test_rows_drawn_one_by_one_are_no_copies(seed: int) -> None:
    draw = np.random.default_rng(seed)
    for rates in (np.ones(20_000), draw.pareto(1.1, 50_000) + 1, draw.lognormal(0, 3, 8000)):
        hashes = draw.choice(len(rates), 30_000, p=rates / rates.sum()).astype(np.uint64)
        assert copies_suspicion(hashes, draw.integers(2, size=30_000), draw.random(30_000) < 0.2) is None


def test_a_label_that_drifts_is_named_with_its_size(tmp_path: Path) -> None:
    table = clean(6)
    draw = np.random.default_rng(0)
    later = np.arange(ROWS) > 0.85 * ROWS
    table["click"] = [
        int(one or (late and draw.random() < 0.5)) for one, late in zip(table["click"], later, strict=True)
    ]
    found = prepared(tmp_path, table, kind="ordered")
    rates = {name: split["click_rate"] for name, split in DataFolder.read(tmp_path / "data").summary["splits"].items()}
    drift = [one for one in found if one["kind"] == "label drifts"]
    assert drift[-1]["figure"] == pytest.approx(rates["test"] / rates["train"] - 1, abs=1e-4)
    waves = (draw.random(20_000) < 0.3 + 0.2 * np.sin(np.arange(20_000) / 2000)).astype(int)
    (wave,) = label_suspicions([("train", waves)])
    assert wave.figure == pytest.approx(0.2 / 2**0.5 / waves.mean(), rel=0.15)
    assert not list(label_suspicions([("train", draw.permutation(waves))]))


def test_fields_mostly_unseen_are_named_also_after_an_update(tmp_path: Path) -> None:
    table = clean(8)
    table["day"] = [f"d{index // 600}" for index in range(ROWS)]
    found = prepared(tmp_path, table, kind="ordered")
    assert [(one["kind"], one["field"], one["figure"]) for one in found] == [("mostly unseen", "day", 1.0)]
    assert "hash_buckets" in found[0]["text"]
    summary = update(tmp_path / "data", [str(write(tmp_path, clean(9) | {"day": ["d1"] * ROWS}))])
    # Half of the held-out rows have a known day now.
    assert [one["field"] for one in summary["warnings"]] in ([], ["day"])


def test_rare_values_are_not_called_new() -> None:
    """Where most of train's values have no token either, it is the least count that took it."""
    rare = unseen_suspicion("x", "test", 0.62, 1000, 0.6, in_order=False)
    new = unseen_suspicion("x", "test", 0.62, 1000, 0.05, in_order=False)
    later = unseen_suspicion("x", "test", 0.62, 1000, 0.05, in_order=True)
    assert rare is not None
    assert new is not None
    assert "not far above the 60.0% of train; they are rare rather than new" in rare.text
    assert ", far above the 5.0% of train; split by time" in new.text
    assert later is not None
    assert ", far above the 5.0% of train; give it hash_buckets" in later.text
    assert unseen_suspicion("x", "test", 0.49, 1000, 0.0, in_order=False) is None


def test_the_command_says_them_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = clean(11, 2000)
    table["outcome"] = ["won" if one else "lost" for one in table["click"]]
    log = write(tmp_path, table)
    with pytest.raises(SystemExit):
        main(["inspect", str(log)])
    captured = capsys.readouterr()
    assert captured.err.count("warning: 'outcome' is the label under another name") == 1
    values = yaml.safe_load(captured.out)
    assert "outcome" not in values["fields"]["categorical"]
    assert "#   outcome: 'outcome' is the label under another name" in captured.out
    values["fields"]["categorical"].append("outcome")  # as one may who does not believe it
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(values))
    assert read_data_config(tmp_path / "data.yaml").label_columns() == ["click"]
    words = ["prepare", "--config", tmp_path / "data.yaml", "--input", log, "--output", tmp_path / "data"]
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    assert not done.value.code
    assert capsys.readouterr().err.count("warning: 'outcome' is the label under another name") == 1
