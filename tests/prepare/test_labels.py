"""Several labels, domains and weights from raw logs to shards, against a reading row by row."""

import csv
import json
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.cli.main import main
from dmoe.config.data import DataConfig
from dmoe.errors import DataError
from dmoe.prepare.prepare import prepare
from dmoe.prepare.stage import Spill
from dmoe.prepare.update import update
from dmoe.schema import Schema, Task
from dmoe.shards.latest import write_latest
from dmoe.shards.reader import SplitReader
from dmoe.sources import lines
from dmoe.tokens.encoder import RawEncoder
from dmoe.tokens.labels import given_of, masked
from tests.prepare.logs import SPLITS, read_split
from tests.prepare.test_engines import spark
from tests.prepare.test_prepare import data_files
from tests.prepare.test_restart import Stop

LABELS = ("click", "watch", "like", "buy")
PARENTS = {"watch": "click", "buy": "watch"}
COLUMNS = ("is_click", "long_view", "like", "buy", "tab", "site", "price", "w")


def plan(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "labels": {
            "click": {"column": "is_click"},
            "watch": {"column": "long_view", "given": "click"},
            "like": None,
            "buy": {"given": "watch"},
        },
        "domain": {"column": "tab", "min_count": 20},
        "weight": "w",
        "split": {"kind": "random", "train": 0.6, "valid": 0.2, "test": 0.2},
        "fields": {"categorical": ["site", "tab"], "numeric": ["price"]},
    }
    return DataConfig.model_validate({**values, **changes})


def drawn(count: int, seed: int = 0, *, odd: bool = False) -> list[list[str]]:
    """With `odd`, labels have texts that are no label, most of them where they mean nothing."""
    draw = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        labels = [str(draw.choice(["0", "1", "1.0", ""], p=[0.4, 0.4, 0.1, 0.1])) for _ in LABELS]
        if odd and labels[0] != "1" and index % 4 == 0:  # before a click nobody knows of what comes after
            labels[1] = "-"
        if odd and labels[1] == "1" and index % 7 == 0:
            labels[3] = "?"
        tab = draw.choice(["feed", "home", "other", "rare1", "rare2", ""], p=[0.5, 0.3, 0.15, 0.02, 0.02, 0.01])
        weight = draw.choice(["1", "0", "2.5", "1e-3"])
        rows.append([*labels, str(tab), f"s{draw.integers(5)}", str(index), str(weight)])
    return rows


def write(path: Path, rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS) -> str:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return str(path)


def said(text: str) -> int | None:
    return int(float(text)) if text[:1].isdigit() else None


def read_row(row: Sequence[str], rule: str) -> tuple[dict[str, int | None], list[str]] | None:
    """Labels of a row, and which of them contradict; None if the row is rejected."""
    column = {name: said(row[place]) for place, name in enumerate(LABELS)}
    contradictions = [one for one in LABELS if one in PARENTS and column[one] == 1 and column[PARENTS[one]] == 0]
    if contradictions and rule == "reject":
        return None
    if rule == "raise-parent":
        for _ in LABELS:
            for child, parent in PARENTS.items():
                if column[child] == 1 and column[parent] == 0:
                    column[parent] = 1

    def label(name: str) -> int | None:
        return column[name] if name not in PARENTS or label(PARENTS[name]) == 1 else None

    labels = {name: label(name) for name in LABELS}
    meant = [name for name in LABELS if name not in PARENTS or labels[PARENTS[name]] == 1]
    wrong = any(row[LABELS.index(name)] in ("-", "?") for name in meant)
    return None if wrong or all(one is None for one in labels.values()) else (labels, contradictions)


@settings(max_examples=200)
@given(data=st.data(), rule=st.sampled_from(["keep", "reject", "raise-parent"]))
def test_masks_equal_a_reading_row_by_row(data: st.DataObject, rule: Any) -> None:
    parents = [None if not task else data.draw(st.sampled_from([None, *range(task)])) for task in range(5)]
    order = data.draw(st.permutations(range(5)))  # a child may stand before its parent
    given_T: list[int | None] = [None] * 5
    for task, parent in enumerate(parents):
        given_T[order[task]] = None if parent is None else order[parent]
    row = st.lists(st.sampled_from([0, 1, 2]), min_size=5, max_size=5)
    said_NT = np.array(data.draw(st.lists(row, min_size=1, max_size=8)), dtype=np.uint8)
    labels_NT, contradicts_NT = masked(said_NT, given_T, rule)
    for said_T, labels_T, contradicts_T in zip(said_NT.tolist(), labels_NT, contradicts_NT, strict=True):
        want = list(said_T)
        wrong = [parent is not None and said_T[t] == 1 and said_T[parent] == 0 for t, parent in enumerate(given_T)]
        for _ in range(5 if rule == "raise-parent" else 0):
            for task, parent in enumerate(given_T):
                if parent is not None and want[task] == 1 and want[parent] == 0:
                    want[parent] = 1
        for _ in range(5):
            want = [2 if (p := given_T[t]) is not None and want[p] != 1 else one for t, one in enumerate(want)]
        assert labels_T.tolist() == want
        assert contradicts_T.tolist() == wrong


@pytest.mark.parametrize(("rule", "odd"), [("keep", True), ("reject", False), ("raise-parent", True)])
def test_shards_and_counts_are_those_of_a_reading_row_by_row(tmp_path: Path, rule: str, odd: bool) -> None:
    rows = drawn(900, odd=odd)
    log = write(tmp_path / "log.csv", rows)
    summary = prepare(plan(contradictions=rule), [log], tmp_path / "data", max_rejects=900)
    kept = [(row, found) for row in rows if (found := read_row(row, rule)) is not None]
    assert summary["rows"]["encoded"] == len(kept)
    assert summary["rows"]["rejected"] == len(rows) - len(kept)
    none_known = sum(all(said(row[place]) is None for place in (0, 2)) for row in rows)
    if rule == "keep":
        wrong = len(rows) - len(kept) - none_known
        assert wrong > 10
        assert summary["rejects"] == {"label is not 0 or 1": wrong, "no label is known": none_known}
    schema = Schema.read(tmp_path / "data")
    assert schema.label == "click"
    assert schema.tasks == tuple(Task(name=name, given=PARENTS.get(name)) for name in LABELS)
    assert schema.weight == "w"
    told = {split: read_split(tmp_path / "data", split).to_pylist() for split in SPLITS}
    by_price = {float(row[6]): (row, found) for row, found in kept}
    counts: Counter[tuple[str, ...]] = Counter()
    weights = dict.fromkeys(SPLITS, 0.0)
    assert schema.domain is not None
    names = schema.domain.names
    for split, encoded in told.items():
        for one in encoded:
            row, (labels, contradictions) = by_price[one["price"]]
            assert {name: one[name] for name in LABELS} == labels
            assert one["w"] == np.float32(row[7])
            domain = names[schema.domain.of_id[one["tab"]]]
            assert domain == (row[4] if row[4] in names[:-1] else names[-1])
            weights[split] += float(np.float32(row[7]))
            for name in LABELS:
                kinds = ["unknown" if labels[name] is None else "known"]
                kinds += ["positives"] if labels[name] == 1 else []
                kinds += ["contradictions"] if name in contradictions else []
                counts.update((name, kind, split, domain) for kind in kinds)
    assert sum(map(len, told.values())) == len(kept)
    for name in LABELS:
        whole = summary["labels"][name]
        for split in SPLITS:
            for kind in ("known", "positives", "unknown", "contradictions"):
                by_domain = [whole["domains"][domain][split][kind] for domain in names]
                assert by_domain == [counts[name, kind, split, domain] for domain in names]
                assert whole["splits"][split][kind] == sum(by_domain)
    for split in SPLITS:
        main = summary["labels"]["click"]["splits"][split]
        assert summary["splits"][split]["positives"] == main["positives"]
        assert summary["splits"][split]["click_rate"] == pytest.approx(main["positives"] / main["known"])
        assert summary["splits"][split]["weight"] == pytest.approx(weights[split])
    assert names == ("feed", "home", "other", "(other)")
    assert summary["domain"] == {"field": "tab", "names": names, "unseen_as": "(other)"}


def test_batches_have_what_the_log_says(tmp_path: Path) -> None:
    rows = drawn(500, seed=3)
    split = {"kind": "ordered", "train": 0.6, "valid": 0.2, "test": 0.2}
    prepare(plan(split=split), [write(tmp_path / "log.csv", rows)], tmp_path / "data", max_rejects=900)
    kept = [(row, found[0]) for row in rows if (found := read_row(row, "keep")) is not None]
    batches = list(SplitReader(tmp_path / "data", "train", batch_size=50).batches())
    assert all(batch.known_BT is not None and batch.weights_B is not None for batch in batches)
    known = np.concatenate([batch.known_BT.numpy() for batch in batches if batch.known_BT is not None])
    labels = np.concatenate([batch.labels_BT.numpy() for batch in batches])
    weights = np.concatenate([batch.weights_B.numpy() for batch in batches if batch.weights_B is not None])
    for place, (row, want) in enumerate(kept[: len(known)]):
        assert known[place].tolist() == [want[name] is not None for name in LABELS]
        assert labels[place].tolist() == [want[name] or 0 for name in LABELS]
        assert weights[place] == np.float32(row[7])


KEPT = ("rows", "splits", "labels", "domain", "rejects", "fields")


@pytest.mark.parametrize("engine", ["polars", spark])
def test_engines_give_the_same_bytes(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (4000,))
    log = write(tmp_path / "log.csv", drawn(800, seed=1, odd=True))
    what = plan(split={"kind": "stratified", "label": "like"}, contradictions="raise-parent")
    found = {
        name: prepare(what, [log], tmp_path / name, engine=name, threads=threads, max_rejects=900, shard_rows=70)
        for name, threads in (("duckdb", 2), (engine, 1))
    }
    assert data_files(tmp_path / engine) == data_files(tmp_path / "duckdb")
    for key in KEPT:
        assert json.dumps(found[engine][key]) == json.dumps(found["duckdb"][key])


@pytest.mark.parametrize("kind", ["stratified", "ordered"])
def test_interruptions_change_no_byte(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.read_line_chunks, "__defaults__", (4000,))
    log = write(tmp_path / "log.csv", drawn(800, seed=1))
    what = plan(split={"kind": kind, **({"label": "like"} if kind == "stratified" else {})})
    options: dict[str, Any] = {"max_rejects": 900, "shard_rows": 70}
    counting = Stop(-1)
    want = prepare(what, [log], tmp_path / "whole", progress=counting, **options)
    stops = range(2, counting.seen, 4)
    assert len(stops) >= 3
    for at in stops:
        with pytest.raises(KeyboardInterrupt):
            prepare(what, [log], tmp_path / f"at-{at}", progress=Stop(at), **options)
        got = prepare(what, [log], tmp_path / f"at-{at}", **options)
        assert data_files(tmp_path / f"at-{at}") == data_files(tmp_path / "whole")
        for key in KEPT:
            assert json.dumps(got[key]) == json.dumps(want[key])


def test_stratified_by_another_label(tmp_path: Path) -> None:
    split = {"kind": "stratified", "label": "like", "train": 0.5, "valid": 0.25, "test": 0.25}
    log = write(tmp_path / "log.csv", drawn(801, seed=5))
    like = prepare(plan(split=split), [log], tmp_path / "data", max_rejects=900)["labels"]["like"]["splits"]
    for kind in ("positives", "unknown"):
        total = sum(like[name][kind] for name in SPLITS)
        assert abs(like["valid"][kind] - total / 4) <= 0.5
        assert abs(like["test"][kind] - total / 4) <= 0.5


@pytest.mark.parametrize("missing", ["unknown", "reject", "negative"])
def test_one_entry_under_labels_is_the_label_to_the_byte(tmp_path: Path, missing: str) -> None:
    rows = drawn(200, seed=2)
    log = write(tmp_path / "log.csv", rows)
    rest: dict[str, Any] = {"domain": None, "weight": None}
    one = plan(labels={"is_click": {"missing": missing}}, **rest)
    plain = {"column": "is_click", **({"missing": "negative"} if missing == "negative" else {})}
    other = DataConfig.model_validate(
        {key: value for key, value in plan(**rest) if key not in ("label", "labels")} | {"label": plain}
    )
    first = prepare(one, [log], tmp_path / "one", max_rejects=200)
    second = prepare(other, [log], tmp_path / "other", max_rejects=200)
    assert data_files(tmp_path / "one") == data_files(tmp_path / "other")
    assert b"labels" not in (tmp_path / "one" / "schema.json").read_bytes()
    assert first["rejects"] == second["rejects"]
    assert first["splits"] == second["splits"]
    assert "labels" not in first
    named = prepare(plan(labels={"click": "is_click"}, **rest), [log], tmp_path / "named", max_rejects=200)
    if missing != "negative":
        assert named["splits"] == first["splits"]
    assert Schema.read(tmp_path / "named").label == "click"
    table = read_split(tmp_path / "named", "train")
    assert table.column_names == ["price", "site", "tab", "click"]


def test_weights_with_one_label(tmp_path: Path) -> None:
    rows = drawn(300, seed=4)
    log = write(tmp_path / "log.csv", rows)
    prepare(plan(labels={"like": {}}, domain=None), [log], tmp_path / "data", max_rejects=200)
    table = read_split(tmp_path / "data", "train")
    assert table.column_names[-2:] == ["like", "w"]
    assert set(table["w"].to_pylist()) <= {1.0, 0.0, 2.5, float(np.float32(1e-3))}
    assert Schema.read(tmp_path / "data").weight == "w"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("-1", "weight is below 0: '-1'"),
        ("-0.5e-3", "weight is below 0: '-0.0005'"),
        ("nan", "not a number: 'nan'"),
        ("", "weight is missing or NaN: ''"),
        ("much", "not a number: 'much'"),
        ("1e400", "number out of range: '1e400'"),
    ],
)
def test_a_weight_that_is_none_is_named_with_its_row(tmp_path: Path, text: str, reason: str) -> None:
    rows = drawn(100)
    rows[41][7] = text
    log = write(tmp_path / "log.csv", rows)
    with pytest.raises(DataError) as caught:
        prepare(plan(labels={"like": {"missing": "negative"}}), [log], tmp_path / "data", max_rejects=0)
    assert f"{log}:43: column 'w': {reason}" in str(caught.value)


def test_typed_weights_that_are_no_number_are_rejected(tmp_path: Path) -> None:
    import pyarrow as pa

    weights = [1.0, float("nan"), None, -2.0, float("inf")] * 20
    table = pa.table({"y": [0, 1] * 50, "site": ["a"] * 100, "w": pa.array(weights, pa.float64())})
    pq.write_table(table, tmp_path / "log.parquet")
    config = DataConfig.model_validate({"label": "y", "weight": "w", "fields": {"categorical": ["site"]}})
    summary = prepare(config, [str(tmp_path / "log.parquet")], tmp_path / "data", max_rejects=100)
    assert summary["rejects"] == {
        "number out of range": 20,
        "weight is below 0": 20,
        "weight is missing or NaN": 40,
    }


def test_a_split_without_weight_is_named(tmp_path: Path) -> None:
    rows = [[*row[:7], "0"] for row in drawn(100)]
    with pytest.raises(DataError, match="every row of split 'train' has weight 0 in column 'w'"):
        prepare(plan(labels={"like": {"missing": "negative"}}), [write(tmp_path / "log.csv", rows)], tmp_path / "data")


def test_rows_without_a_known_label_are_rejected(tmp_path: Path) -> None:
    rows = drawn(200)
    bare = [["", "1", "", "1", *row[4:]] for row in rows]
    with pytest.raises(DataError, match=r"every row was rejected, the first:\n.*no label is known") as caught:
        prepare(plan(), [write(tmp_path / "log.csv", bare)], tmp_path / "data")
    assert "--allow-rejects 'no label is known'" in str(caught.value)
    some = [[row[0], "", row[2], "", *row[4:]] for row in rows]
    with pytest.raises(DataError, match="label 'watch' is unknown in every row of split 'train'"):
        prepare(plan(), [write(tmp_path / "log.csv", some)], tmp_path / "data", max_rejects=200)


def test_domains_that_cannot_be_are_named(tmp_path: Path) -> None:
    rows = drawn(400)
    log = write(tmp_path / "log.csv", rows)
    options: dict[str, Any] = {"max_rejects": 400}
    with pytest.raises(DataError, match="domain 'tab': no value has 5,000 training rows, so there is no domain"):
        prepare(plan(domain={"column": "tab", "min_count": 5000}), [log], tmp_path / "data", **options)
    bare = write(tmp_path / "bare.csv", [[*row[:4], "", *row[5:]] for row in rows])
    with pytest.raises(DataError, match="domain 'tab': no value has 1 training row, so there is no domain"):
        prepare(plan(domain="tab"), [bare], tmp_path / "data", **options)
    many = write(tmp_path / "many.csv", [[*row[:4], f"t{index}", *row[5:]] for index, row in enumerate(rows * 5)])
    with pytest.raises(DataError, match=r"domain 'tab': 1,1\d\d values have 1 training row or more, and at most 1,000"):
        prepare(plan(domain="tab"), [many], tmp_path / "data", max_rejects=2000)


def test_without_rare_rows_unseen_values_are_of_the_most_frequent_domain(tmp_path: Path) -> None:
    rows = [[*row[:4], "ab"[index % 3 == 0], *row[5:]] for index, row in enumerate(drawn(300))]
    log = write(tmp_path / "log.csv", rows)
    summary = prepare(plan(domain="tab"), [log], tmp_path / "data", max_rejects=300)
    domain = Schema.read(tmp_path / "data").domain
    assert domain is not None
    assert (domain.names, domain.of_id) == (("a", "b"), (0, 0, 0, 1))
    assert summary["domain"]["unseen_as"] == "a"


def test_an_update_keeps_the_domains_and_adds_the_counts(tmp_path: Path) -> None:
    old, new = drawn(600, seed=1), drawn(300, seed=2)
    for index, row in enumerate(new):
        row[4] = "fresh" if index % 2 else row[4]
    options: dict[str, Any] = {"max_rejects": 600}
    before = prepare(plan(), [write(tmp_path / "old.csv", old)], tmp_path / "old", **options)
    after = update(tmp_path / "old", [write(tmp_path / "new.csv", new)], tmp_path / "grown", **options)
    was, now = (Schema.read(tmp_path / name).domain for name in ("old", "grown"))
    assert was is not None
    assert now is not None
    assert now.names == was.names
    assert now.of_id[: len(was.of_id)] == was.of_id
    assert set(now.of_id[len(was.of_id) :]) == {was.of_id[1]}
    assert len(now.of_id) == len(was.of_id) + 1
    alone = after["updates"][0]["labels"]
    for name in LABELS:
        for split in SPLITS:
            for kind, count in after["labels"][name]["splits"][split].items():
                parts = [one[name]["splits"][split][kind] for one in (before["labels"], alone)]
                assert count == sum(parts)
                assert count == sum(one[split][kind] for one in after["labels"][name]["domains"].values())
            table = read_split(tmp_path / "grown", split)
            assert after["labels"][name]["splits"][split]["unknown"] == table[name].null_count
    for split in SPLITS:
        weight = float(np.sum(read_split(tmp_path / "grown", split)["w"].to_numpy(), dtype=np.float64))
        assert after["splits"][split]["weight"] == pytest.approx(weight)
        main = after["labels"]["click"]["splits"][split]
        assert after["splits"][split]["click_rate"] == main["positives"] / main["known"]


def test_a_part_of_the_log_keeps_domains_labels_and_weights(tmp_path: Path) -> None:
    prepare(plan(), [write(tmp_path / "log.csv", drawn(900))], tmp_path / "data", max_rejects=900)
    write_latest(tmp_path / "data", 60, tmp_path / "part")
    whole, part = Schema.read(tmp_path / "data"), Schema.read(tmp_path / "part")
    assert whole.domain is not None
    assert part.domain is not None
    assert part.domain.names == whole.domain.names
    tail = read_split(tmp_path / "data", "train").to_pylist()[-60:]
    for one, other in zip(read_split(tmp_path / "part", "train").to_pylist(), tail, strict=True):
        assert {name: one[name] for name in (*LABELS, "w")} == {name: other[name] for name in (*LABELS, "w")}
        if one["tab"] > 1:
            assert part.domain.of_id[one["tab"]] == whole.domain.of_id[other["tab"]]


def test_scored_rows_bring_the_labels_that_they_have(tmp_path: Path) -> None:
    rows = drawn(300)
    prepare(plan(), [write(tmp_path / "log.csv", rows)], tmp_path / "data", max_rejects=300)
    encoder = RawEncoder(tmp_path / "data")
    (whole,) = encoder.encode_files([tmp_path / "log.csv"], batch_size=1000, labels=True)
    assert len(whole) == len(rows)
    assert whole.labels_BT is not None
    assert whole.known_BT is not None
    want = [read_row(row, "keep") or (dict.fromkeys(LABELS), []) for row in rows]
    assert whole.known_BT.tolist() == [[found[name] is not None for name in LABELS] for found, _ in want]
    assert whole.labels_BT.tolist() == [[float(found[name] or 0) for name in LABELS] for found, _ in want]
    # Without some label columns; without any, and without the weight.
    write(tmp_path / "some.csv", [[row[0], *row[4:7]] for row in rows], ("is_click", "tab", "site", "price"))
    (some,) = encoder.encode_files([tmp_path / "some.csv"], batch_size=1000, labels=True)
    assert some.known_BT is not None
    assert some.known_BT[:, 0].tolist() == whole.known_BT[:, 0].tolist()
    assert not some.known_BT[:, 1:].any()
    write(tmp_path / "none.csv", [row[4:7] for row in rows], ("tab", "site", "price"))
    (none,) = encoder.encode_files([tmp_path / "none.csv"], batch_size=1000, labels=True)
    assert none.labels_BT is None
    assert none.labels_B is None


def test_rows_without_header_may_lack_labels_and_weight(tmp_path: Path) -> None:
    rows = drawn(300)
    form = {"header": False, "columns": COLUMNS, "delimiter": ","}
    write(tmp_path / "log.csv", rows[1:], rows[0])
    prepare(plan(format=form), [str(tmp_path / "log.csv")], tmp_path / "data", max_rejects=300)
    encoder = RawEncoder(tmp_path / "data")
    (whole,) = encoder.encode_files([tmp_path / "log.csv"], batch_size=1000)
    for start, stop in ((4, 8), (4, 7)):
        write(tmp_path / "bare.csv", [row[start:stop] for row in rows[1:]], rows[0][start:stop])
        (bare,) = encoder.encode_files([tmp_path / "bare.csv"], batch_size=1000)
        assert bare.ids_BC.equal(whole.ids_BC)
        assert bare.numeric_BN.equal(whole.numeric_BN)


def test_an_encoding_that_is_not_said_names_the_label(tmp_path: Path) -> None:
    rows = [[*row[:3], "yes" if row[3] == "1" else "no", *row[4:]] for row in drawn(200)]
    with pytest.raises(DataError, match=r"label 'buy' holds no and yes.* `labels: \{buy: \{column: buy, positive: \["):
        prepare(plan(), [write(tmp_path / "log.csv", rows)], tmp_path / "data")


def test_given_by_number() -> None:
    assert given_of(plan().tasks) == (None, 0, None, 1)


def test_the_command_shows_labels_and_splits_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.csv", drawn(400))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(plan().model_dump(exclude_unset=True), sort_keys=False))
    words = ["prepare", "--config", str(tmp_path / "data.yaml"), "--input", log, "--max-rejects", "400"]
    split = ["--split", "stratified,label=like,train=0.6,valid=0.2,test=0.2"]
    with pytest.raises(SystemExit) as done:
        main([*words, *split, "--output", str(tmp_path / "data")])
    assert not done.value.code
    told = capsys.readouterr().err
    labels = json.loads((tmp_path / "data" / "summary.json").read_text())["labels"]["buy"]["splits"].values()
    known, ones, unknown, odd = (
        sum(split[kind] for split in labels) for kind in ("known", "positives", "unknown", "contradictions")
    )
    assert f"buy: {ones} of {known} rows, unknown in {unknown}, {odd} of 1 where the one it is given is 0" in told
    assert "4 domains of 'tab': feed, home, other, (other)" in told
    likes = json.loads((tmp_path / "data" / "summary.json").read_text())["labels"]["like"]["splits"]
    lines = [line.split() for line in told.splitlines()]
    for name, one in likes.items():
        assert [name, str(one["known"]), str(one["positives"])] in [line[:3] for line in lines]
    assert Schema.read(tmp_path / "data").source["split"]["label"] == "like"
    with pytest.raises(SystemExit) as done:
        main([*words, "--split", "stratified,label=likes", "--output", str(tmp_path / "other")])
    assert done.value.code == 2
    assert "--split: split.label: no label 'likes'; did you mean 'like'?" in capsys.readouterr().err


def test_two_labels_of_one_column(tmp_path: Path) -> None:
    rows = [[str(index % 5), f"s{index % 3}"] for index in range(200)]
    labels = {
        "good": {"column": "rating", "positive": [3, 4]},
        "best": {"column": "rating", "positive": [4], "given": "good"},
    }
    config = DataConfig.model_validate({"labels": labels, "fields": {"categorical": ["site"]}})
    summary = prepare(config, [write(tmp_path / "log.csv", rows, ("rating", "site"))], tmp_path / "data")
    counts = {name: one["splits"]["train"] for name, one in summary["labels"].items()}
    assert counts["good"] == {"known": 160, "positives": 64, "unknown": 0, "contradictions": 0}
    assert counts["best"] == {"known": 64, "positives": 32, "unknown": 96, "contradictions": 0}


def test_work_is_sent_to_other_processes() -> None:
    spill = Spill(Path("stage"), ("site", "tab"), ("price",), 4, weighted=True)
    config, sent = pickle.loads(pickle.dumps((plan(), spill)))  # noqa: S301 (our own)
    assert (config, sent) == (plan(), spill)
    assert [sent.place(name) for name in ("c1", "n0", "l3", "weight", "time")] == [1, 2, 6, 7, 8]


def test_where_a_label_means_nothing_its_column_may_hold_anything(tmp_path: Path) -> None:
    rows = drawn(300)
    rows = [[*row[:3], row[3] if said(row[0]) == said(row[1]) == 1 else "unborn", *row[4:]] for row in rows]
    log = write(tmp_path / "log.csv", rows)
    strict = dict(plan().labels) | {"buy": {"given": "watch", "missing": "reject"}}
    summary = prepare(plan(labels=strict), [log], tmp_path / "data", max_rejects=300)
    missing = sum(said(row[0]) == said(row[1]) == 1 and row[3] == "" for row in rows)
    none_known = sum(all(said(row[place]) is None for place in (0, 2)) for row in rows)
    assert summary["rejects"] == {"label is missing": missing, "no label is known": none_known}
