"""New rows for an old data set: no id moves, nothing old changes, and the counts add up."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.cli.main import main
from dmoe.config.data import DataConfig
from dmoe.disk import replaced
from dmoe.errors import DataError
from dmoe.prepare import restart
from dmoe.prepare.prepare import prepare
from dmoe.prepare.update import update
from dmoe.schema import Schema, vocabulary_path
from dmoe.tokens.encoder import RawEncoder
from tests.prepare.logs import SPLITS, config, random_rows, read_split, write_csv
from tests.prepare.test_prepare import data_files


def vocabulary(folder: Path, field: str) -> dict[str, tuple[int, int]]:
    table = pq.read_table(vocabulary_path(folder, field))
    return {str(row["value"]): (int(row["id"]), int(row["count"])) for row in table.to_pylist()}


def test_old_ids_and_shards_stay_and_new_ones_follow(tmp_path: Path) -> None:
    old_rows, new_rows = random_rows(120, 1), random_rows(150, 2)
    for index, row in enumerate(new_rows):
        row[2] = f"new{index % 4}" if index % 3 else row[2]
    old_log, new_log = write_csv(tmp_path / "old.csv", old_rows), write_csv(tmp_path / "new.csv", new_rows)
    prepare(config(), [str(old_log)], tmp_path / "old", shard_rows=17)
    before = data_files(tmp_path / "old")
    summary = update(tmp_path / "old", [str(new_log)], tmp_path / "grown", shard_rows=17)
    assert data_files(tmp_path / "old") == before
    # 150 rows in the shares 0.6, 0.2, 0.2: the first 90 are training rows.
    for field, index, least in (("site", 2, 2), ("user", 3, 1)):
        old, grown = vocabulary(tmp_path / "old", field), vocabulary(tmp_path / "grown", field)
        missing = ("", "?", "NA") if field == "user" else ("", "?")
        counts = Counter(row[index] for row in new_rows[:90] if row[index] not in missing)
        fresh = sorted(
            (value for value, count in counts.items() if value not in old and count >= least),
            key=lambda value: (-counts[value], value.encode()),
        )
        want = {value: (identity, count + counts[value]) for value, (identity, count) in old.items()}
        want |= {value: (len(old) + 2 + rank, counts[value]) for rank, value in enumerate(fresh)}
        assert grown == want
    assert any(value.startswith("new") for value in vocabulary(tmp_path / "grown", "site"))
    encoder, columns = RawEncoder(tmp_path / "grown"), [field.name for field in Schema.read(tmp_path / "grown").fields]
    (batch,) = encoder.encode_files([new_log], batch_size=1000)
    bounds = {"train": (0, 90), "valid": (90, 120), "test": (120, 150)}
    for split in SPLITS:
        whole, old_table = read_split(tmp_path / "grown", split), read_split(tmp_path / "old", split)
        assert whole.slice(0, old_table.num_rows).equals(old_table)
        start, stop = bounds[split]
        got = whole.slice(old_table.num_rows)
        for place, field in enumerate(encoder.schema.categorical):
            assert got[field.name].to_pylist() == batch.ids_BC[start:stop, place].tolist()
        for place, number in enumerate(encoder.schema.numeric):
            np.testing.assert_array_equal(got[number.name].to_numpy(), batch.numeric_BN[start:stop, place].numpy())
        assert whole.column_names[:-1] == columns
        rows = summary["splits"][split]
        assert (rows["rows"], rows["positives"]) == (whole.num_rows, sum(whole["y"].to_pylist()))
        ids = whole["site"].to_pylist()
        assert summary["fields"]["site"]["unseen"][split] == pytest.approx(ids.count(1) / (len(ids) - ids.count(0)))
        assert summary["fields"]["site"]["missing"][split] == pytest.approx(ids.count(0) / len(ids))
    assert summary["rows"] == {"read": 270, "encoded": 270, "rejected": 0}
    assert [update["rows"]["encoded"] for update in summary["updates"]] == [150]
    old_schema, schema = Schema.read(tmp_path / "old"), Schema.read(tmp_path / "grown")
    assert schema.numeric == old_schema.numeric
    assert schema.source == old_schema.source


def test_updates_in_place_pile_up_and_may_name_their_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(config(), [str(write_csv(tmp_path / "a.csv", random_rows(120, 1)))], tmp_path / "data")
    old = read_split(tmp_path / "data", "test")
    for name, seed in (("b", 2), ("c", 3)):
        log = write_csv(tmp_path / f"{name}.csv", random_rows(40, seed))
        log.write_text(log.read_text() + "broken\n")
        with pytest.raises(SystemExit) as done:
            main(
                ["prepare", "--update", str(tmp_path / "data"), "--split", "given", "-i", f"train={log}", "--json"],
            )
        assert done.value.code == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["rows"] == {"read": 202, "encoded": 200, "rejected": 2}
    assert [update["first_parts"] for update in summary["updates"]] == [{"train": 1}, {"train": 2}]
    assert read_split(tmp_path / "data", "train").num_rows == 72 + 80
    assert read_split(tmp_path / "data", "test").equals(old)
    assert pq.read_table(tmp_path / "data" / "rejects.parquet")["line"].to_pylist() == [42, 42]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv", "c.csv", "data"]


@settings(max_examples=25)
@given(days=st.lists(st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=12), min_size=2, max_size=4))
def test_no_id_ever_moves(days: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("days")
    plan = DataConfig.model_validate(
        {
            "label": "y",
            "split": {"train": 1, "valid": 0, "test": 0},
            "fields": {"categorical": {"v": {"min_count": 2, "max_tokens": 4}}},
        }
    )
    ids: dict[str, int] = {}
    total: Counter[str] = Counter()
    for number, values in enumerate(days):
        log = folder / f"{number}.csv"
        log.write_text("".join(["y,v\n", *(f"{index % 2},{value}\n" for index, value in enumerate(values))]))
        if number:
            update(folder / "data", [str(log)])
        else:
            prepare(plan, [str(log)], folder / "data")
        day = Counter(values)
        for value in sorted((one for one in day if day[one] >= 2), key=lambda one: (-day[one], one)):
            if value not in ids and len(ids) < 4:
                ids[value] = len(ids) + 2
                total[value] = 0
        for value in ids:
            total[value] += day[value]
        assert vocabulary(folder / "data", "v") == {value: (ids[value], total[value]) for value in ids}
        got = read_split(folder / "data", "train")["v"].to_pylist()[-len(values) :]
        assert got == [ids.get(value, 1) for value in values]


def test_an_interrupted_update_leaves_the_old_data_and_is_continued(tmp_path: Path) -> None:
    logs = [write_csv(tmp_path / f"{seed}.csv", random_rows(200, seed)) for seed in (1, 2)]
    prepare(config(), [str(logs[0])], tmp_path / "data", shard_rows=30)
    prepare(config(), [str(logs[0])], tmp_path / "whole", shard_rows=30)
    update(tmp_path / "whole", [str(logs[1])], shard_rows=30)
    before = data_files(tmp_path / "data")
    for step in ("read", "count", "write"):

        def interrupt(at: str, _done: int, _share: float, step: str = step) -> None:
            if at == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            update(tmp_path / "data", [str(logs[1])], shard_rows=30, progress=interrupt)
        assert data_files(tmp_path / "data") == before
    update(tmp_path / "data", [str(logs[1])], shard_rows=30)
    assert data_files(tmp_path / "data") == data_files(tmp_path / "whole")


def test_a_kill_while_the_old_data_is_replaced_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = [write_csv(tmp_path / f"{seed}.csv", random_rows(200, seed)) for seed in (1, 2)]
    for name in ("data", "whole"):
        prepare(config(), [str(logs[0])], tmp_path / name)
    update(tmp_path / "whole", [str(logs[1])])

    def killed(_one: Path, _other: Path) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(replaced, "exchange", killed)
    with pytest.raises(KeyboardInterrupt):
        update(tmp_path / "data", [str(logs[1])])
    monkeypatch.undo()
    assert (tmp_path / "data" / "schema.json").exists()
    # As a kill between the two renames leaves it.
    (tmp_path / "data").rename(tmp_path / ".data.replaced")
    update(tmp_path / "data", [str(logs[1])])
    assert data_files(tmp_path / "data") == data_files(tmp_path / "whole")
    assert not (tmp_path / ".data.work").exists()
    assert not (tmp_path / ".data.replaced").exists()


@pytest.mark.parametrize("updating", [True, False])
def test_work_killed_after_the_exchange_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, updating: bool
) -> None:
    logs = [write_csv(tmp_path / f"{seed}.csv", random_rows(200, seed)) for seed in (1, 2)]
    data = tmp_path / "data"
    prepare(config(), [str(logs[0])], data)

    def work() -> dict[str, Any]:
        if updating:
            return update(data, [str(logs[1])])
        return prepare(config(), [str(logs[1])], data, force=True)

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(restart, "_remove_home", killed)
    with pytest.raises(KeyboardInterrupt):
        work()
    monkeypatch.undo()
    want = data_files(data)
    assert work()["rows"]["read"] == (400 if updating else 200)
    assert data_files(data) == want
    assert not (tmp_path / ".data.work").exists()
    if updating:  # asked for once more it is another update
        assert work()["rows"]["read"] == 600


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", random_rows(50, 3))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"has no schema\.json, so it is not a data set"):
        update(tmp_path / "folder", [str(log)])
    prepare(config(), [str(log)], tmp_path / "data")
    (tmp_path / "data" / "summary.json").unlink()
    with pytest.raises(DataError, match=r"summary\.json: no such file"):
        update(tmp_path / "data", [str(log)])
