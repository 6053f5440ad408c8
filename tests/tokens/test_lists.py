"""Multi-valued and pretrained fields: from raw texts, lists and vectors to shards, batches and scored rows."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import dmoe
from dmoe.config.data import DataConfig, read_data_config
from dmoe.config.fields import MultiValuedOptions
from dmoe.config.run import load_config
from dmoe.errors import ConfigError, DataError, Interrupted
from dmoe.inspection import inspect_log
from dmoe.inspection.contents import groups_of, read_contents
from dmoe.prepare.engines.base import EngineName
from dmoe.prepare.prepare import prepare
from dmoe.prepare.update import update
from dmoe.schema import Schema
from dmoe.shards.folder import DataFolder
from dmoe.shards.reader import SplitReader
from dmoe.tokens.encoder import RawEncoder
from dmoe.tokens.lists import as_ids, as_lists, padded, split_values
from dmoe.training.loop import train
from dmoe.validation import validate
from tests.prepare.test_engines import spark
from tests.prepare.test_restart import Stop, small_chunks  # noqa: F401 (a fixture)
from tests.training.test_loop import StopAt

FIELDS: dict[str, Any] = {
    "categorical": {"item": {"embedding_dim": 3}, "day": {"table_group": "time"}},
    "multi_valued": {
        "tags": {"separator": "|", "max_length": 3, "min_count": 2, "missing_values": ["NA"], "table_group": "content"},
        "history": {"separator": " ", "max_length": 2, "keep": "last", "shares": "item", "pooling": "target"},
    },
    "pretrained": {"image": {"column": "item", "file": "vectors.parquet"}},
}


def config(folder: Path, **changes: Any) -> DataConfig:
    values = {
        "label": "y",
        "split": {"train": 0.6, "valid": 0.2, "test": 0.2},
        "fields": FIELDS | changes,
    }
    (folder / "data.yaml").write_text(json.dumps(values))
    return read_data_config(folder / "data.yaml")


def drawn(count: int, seed: int = 1) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        tags = [
            str(tag) for tag in draw.choice(["a", "b", "é", "c d", "NA", "", f"r{draw.integers(99)}"], draw.integers(6))
        ]
        history = [f"i{draw.integers(12)}" for _ in range(draw.integers(5))]
        item = f"i{draw.integers(9)}"
        clicked = ("a" in tags) ^ (item in history)
        rows.append({"y": int(clicked), "item": item, "day": str(draw.integers(3)), "tags": tags, "history": history})
    return rows


def write_log(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = ["y,item,day,tags,history"]
    lines += [f"{r['y']},{r['item']},{r['day']},{'|'.join(r['tags'])},{' '.join(r['history'])}" for r in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_vectors(folder: Path, keys: list[str]) -> np.ndarray[Any, Any]:
    vectors = np.random.default_rng(7).normal(size=(len(keys), 4)).astype(np.float32)
    pq.write_table(pa.table({"key": keys, "vector": vectors.tolist()}), folder / "vectors.parquet")
    return vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    write_vectors(folder, ["i3", "i0", "i77"])
    write_log(folder / "log.csv", drawn(600))
    prepare(config(folder), [str(folder / "log.csv")], folder / "data")
    return folder


def read(folder: Path, name: str, split: str) -> list[Any]:
    parts = sorted((folder / "data" / split).glob("*.parquet"))
    return [value for part in parts for value in pq.read_table(part, columns=[name]).column(0).to_pylist()]


def ids_of(tokens: Counter[str], min_count: int) -> dict[str, int]:
    kept = [token for token, count in tokens.items() if count >= min_count]
    return {token: 2 + place for place, token in enumerate(sorted(kept, key=lambda t: (-tokens[t], t.encode())))}


def test_shards_hold_what_the_rules_say(folder: Path) -> None:
    rows = drawn(600)
    train_rows = rows[:360]
    kept_tags = [[tag for tag in row["tags"] if tag not in ("", "NA")][:3] for row in rows]
    kept_history = [row["history"][-2:] for row in rows]
    tags = ids_of(Counter(tag for one in kept_tags[:360] for tag in one), 2)
    # One vocabulary of the items shown and those of the histories.
    items = ids_of(
        Counter(row["item"] for row in train_rows) + Counter(i for one in kept_history[:360] for i in one), 1
    )
    for split, part in (("train", slice(0, 360)), ("valid", slice(360, 480)), ("test", slice(480, 600))):
        assert read(folder, "tags", split) == [[tags.get(tag, 1) for tag in one] for one in kept_tags[part]]
        assert read(folder, "history", split) == [[items.get(i, 1) for i in one] for one in kept_history[part]]
        assert read(folder, "item", split) == [items.get(row["item"], 1) for row in rows[part]]
        given = {"i3": 2, "i0": 3, "i77": 4}
        assert read(folder, "image", split) == [given.get(row["item"], 1) for row in rows[part]]
    schema = Schema.read(folder / "data")
    assert [field.name for field in schema.categorical] == ["item", "day", "tags", "history", "image"]
    assert schema.num_ids == 1 + 1 + 3 + 2 + 1
    assert {field.name: field.vocabulary_size for field in schema.categorical} == {
        "item": len(items) + 2, "day": 5, "tags": len(tags) + 2, "history": len(items) + 2, "image": 5,
    }  # fmt: skip


def test_given_vectors_stand_at_their_ids(folder: Path) -> None:
    vectors = write_vectors(folder, ["i3", "i0", "i77"])
    kept = load_file(folder / "data" / "pretrained" / "image.safetensors")["vectors"]
    assert not kept[:2].any()
    assert np.array_equal(kept[2:], vectors)


def test_batches_are_padded_and_equal_encoding_raw_rows(folder: Path) -> None:
    reader = SplitReader(folder / "data", "test", batch_size=50)
    ids = torch.cat([batch.ids_BC for batch in reader.batches()])
    raw = RawEncoder(folder / "data").encode_files([folder / "log.csv"], batch_size=1000)
    encoded = torch.cat([batch.ids_BC for batch in raw])
    assert torch.equal(ids, encoded[480:])
    first = read(folder, "tags", "test")[0]
    assert ids[0, 2:5].tolist() == [*first, 0, 0, 0][:3]


def test_lists_in_parquet_are_the_texts(folder: Path, tmp_path: Path) -> None:
    rows = drawn(600)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    shutil.copy(folder / "vectors.parquet", tmp_path)
    prepare(config(tmp_path), [str(tmp_path / "log.parquet")], tmp_path / "data")
    for name in ("item", "tags", "history"):
        assert read(tmp_path, name, "valid") == read(folder, name, "valid")
    batch = RawEncoder(folder / "data").encode_table(pa.Table.from_pylist(rows[:5]))
    (texts,) = RawEncoder(folder / "data").encode_files([folder / "log.csv"], batch_size=1000)
    assert torch.equal(batch.ids_BC, texts.ids_BC[:5])


@pytest.mark.parametrize("engine", ["polars", spark, "duckdb"])
def test_engines_and_threads_give_the_same_bytes(folder: Path, tmp_path: Path, engine: EngineName) -> None:
    shutil.copy(folder / "vectors.parquet", tmp_path)
    prepare(config(tmp_path), [str(folder / "log.csv")], tmp_path / "data", engine=engine, threads=1)
    for path in sorted((folder / "data").rglob("*.*")):
        if path.suffix in (".parquet", ".safetensors"):
            assert path.read_bytes() == (tmp_path / "data" / path.relative_to(folder / "data")).read_bytes(), path


@pytest.mark.usefixtures("small_chunks")
def test_every_interruption_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    write_vectors(tmp_path, ["i3", "i0", "i77"])
    write_log(tmp_path / "log.csv", drawn(600))
    plan, log = config(tmp_path), [str(tmp_path / "log.csv")]
    counting = Stop(-1)
    prepare(plan, log, tmp_path / "whole", progress=counting, shard_rows=100)
    assert counting.seen >= 10
    for at in range(1, counting.seen + 1):
        with pytest.raises(KeyboardInterrupt):
            prepare(plan, log, tmp_path / "data", progress=Stop(at), shard_rows=100)
        prepare(plan, log, tmp_path / "data", shard_rows=100)
        for path in sorted((tmp_path / "whole").rglob("*.*")):
            if path.name != "summary.json":
                assert path.read_bytes() == (tmp_path / "data" / path.relative_to(tmp_path / "whole")).read_bytes(), at
        shutil.rmtree(tmp_path / "data")


def test_other_vectors_are_other_work(tmp_path: Path) -> None:
    write_vectors(tmp_path, ["i3"])
    write_log(tmp_path / "log.csv", drawn(200))
    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path), [str(tmp_path / "log.csv")], tmp_path / "data", progress=Stop(3))
    write_vectors(tmp_path, ["i4", "i5"])
    prepare(config(tmp_path), [str(tmp_path / "log.csv")], tmp_path / "data")
    assert pq.read_table(tmp_path / "data" / "vocabulary" / "image.parquet")["value"].to_pylist() == ["i4", "i5"]


def test_an_update_keeps_ids_and_vectors(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "data", tmp_path / "data")
    later = drawn(200, seed=2)
    for row in later:
        row["tags"] = [*row["tags"], "new", "new"][-3:]
    write_log(tmp_path / "later.csv", later)
    before = {name: read(folder, name, "train") for name in ("tags", "history", "image")}
    update(tmp_path / "data", [str(tmp_path / "later.csv")])
    for name, values in before.items():
        after = read(tmp_path, name, "train")
        assert after[: len(values)] == values
        assert len(after) > len(values)
    fresh = {field.name: field.vocabulary_size for field in Schema.read(tmp_path / "data").categorical}
    old = {field.name: field.vocabulary_size for field in Schema.read(folder / "data").categorical}
    vocabulary = pq.read_table(tmp_path / "data" / "vocabulary" / "tags.parquet").to_pylist()
    grown = [entry["value"] for entry in vocabulary[old["tags"] - 2 :]]
    kept = Counter(tag for row in later[:120] for tag in [tag for tag in row["tags"] if tag not in ("", "NA")][:3])
    known = {entry["value"] for entry in vocabulary[: old["tags"] - 2]}
    assert grown == list(ids_of(Counter({tag: n for tag, n in kept.items() if tag not in known}), 2))
    assert "new" in grown
    assert fresh["image"] == old["image"]


def test_contents_count_every_value_and_empty_rows_as_missing(folder: Path) -> None:
    data = DataFolder.read(folder / "data")
    contents = read_contents(data, groups_of(data))[0]
    lists = read(folder, "tags", "train")
    assert contents.counts["tags"][0] == sum(not one for one in lists)
    assert contents.counts["tags"][2] == sum(one.count(2) for one in lists)
    summary = json.loads((folder / "data" / "summary.json").read_text())["fields"]["tags"]
    assert summary["missing"]["train"] == pytest.approx(sum(not one for one in lists) / 360)
    assert summary["values"]["train"] == sum(map(len, lists))
    assert summary["unseen"]["train"] == pytest.approx(sum(one.count(1) for one in lists) / sum(map(len, lists)))


RUN = [
    "model.embedding_dim=[4, 2]",
    "model.experts=[{kind: crossnet, layers: 2}, {kind: fm, fields: [content, item, image]}]",
    "model.expert_units=16",
    "model.tower_units=[16]",
    "training.batch_size=60",
    "training.epochs=8",
    "optimiser.lr=0.03",
]


def test_a_model_learns_from_lists_and_vectors_and_scores_raw_rows(folder: Path, tmp_path: Path) -> None:
    run = train(load_config(None, RUN), folder / "data", tmp_path / "run")
    metrics = json.loads((run.path / "metrics.json").read_text())
    # y is a tag of the row XOR its item in the history: nothing that a single field says.
    assert metrics["valid"]["auc"] > 0.8
    weights = run.load_weights()
    frozen = [value for value in weights.values() if value.shape == (5, 4)]
    kept = load_file(folder / "data" / "pretrained" / "image.safetensors")["vectors"]
    assert any(np.array_equal(value.numpy(), kept) for value in frozen)
    model = run.load_model()
    (batch,) = SplitReader(folder / "data", "test", batch_size=1000).batches()
    with torch.inference_mode():
        expected = torch.sigmoid(model(batch.ids_BC, batch.numeric_BN).logit).numpy()
    scored = dmoe.load(run.path).predict_proba(folder / "log.csv")
    np.testing.assert_allclose(scored[480:], expected, atol=1e-6)
    again = train(load_config(None, RUN), folder / "data", tmp_path / "again")
    for name, value in again.load_weights().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("embedding", ["deferred", "lazy"])
def test_an_interrupted_run_resumes_to_the_same_bits(folder: Path, tmp_path: Path, embedding: str) -> None:
    config_ = load_config(None, [*RUN, "training.epochs=2", f"optimiser.embedding={embedding}"])
    whole = train(config_, folder / "data", tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config_, folder / "data", tmp_path / "cut", watcher=StopAt(5))
    cut = train(config_, folder / "data", tmp_path / "cut", resume=True)
    weights = whole.load_weights()
    for name, value in cut.load_weights().items():
        assert torch.equal(value, weights[name]), name


def test_a_run_continues_on_an_updated_data_set(folder: Path, tmp_path: Path) -> None:
    run = train(load_config(None, [*RUN, "training.epochs=1"]), folder / "data", tmp_path / "run")
    shutil.copytree(folder / "data", tmp_path / "data")
    write_log(tmp_path / "later.csv", drawn(200, seed=2))
    update(tmp_path / "data", [str(tmp_path / "later.csv")])
    config_ = load_config(None, [*RUN, "training.epochs=1"])
    later = train(config_, tmp_path / "data", tmp_path / "later", start=run)
    assert later.environment["started_from"]["kept"] > 0


@given(st.lists(st.lists(st.integers(-1, 5), max_size=7), max_size=6), st.integers(1, 4), st.booleans())
@settings(max_examples=200)
def test_padded_equals_slices(texts: list[list[int]], length: int, last: bool) -> None:
    flat = [code for text in texts for code in text]
    of = [index for index, text in enumerate(texts) for _ in text]
    got = padded(np.array(of, np.int64), np.array(flat, np.int32), len(texts), length, last)
    for row, text in zip(got.tolist(), texts, strict=True):
        present = [code for code in text if code != -1]
        kept = present[-length:] if last else present[:length]
        assert row == kept + [-1] * (length - len(kept))


@given(st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=5))
@settings(max_examples=100)
def test_lists_and_padded_ids_are_inverse(rows: list[list[int]]) -> None:
    ids = np.array([row + [0] * (4 - len(row)) for row in rows], np.int32).reshape(-1, 4)
    lists = as_lists(ids)
    assert lists.to_pylist() == rows
    back = as_ids(lists, 4)
    assert back is not None
    assert np.array_equal(back, ids)
    if any(len(row) > 2 for row in rows):
        assert as_ids(lists, 2) is None


@given(st.lists(st.one_of(st.none(), st.text("ab|é ", max_size=8)), min_size=1, max_size=8))
@settings(max_examples=200)
def test_split_values_equals_python(texts: list[str | None]) -> None:
    options = MultiValuedOptions(max_length=3)
    coded = split_values(pa.array(texts, pa.string()), options, ["", " "], "tags")
    values = [*coded.values.to_pylist(), None]
    for codes, text in zip(coded.codes_N.tolist(), texts, strict=True):
        wanted = [value for value in (text or "").split("|") if value not in ("", " ")][:3]
        assert [values[code] for code in codes if code >= 0] == wanted


def test_inspecting_finds_lists_and_suggests_what_works(tmp_path: Path) -> None:
    rows = drawn(2000)
    write_log(tmp_path / "log.csv", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        found = inspect_log([str(tmp_path / name)], label=None, max_rows=10_000)
        kinds = {column.name: column.kind for column in found.columns}
        assert kinds == {"item": "categorical", "day": "categorical", "tags": "multi-valued", "history": "multi-valued"}
        separator = {"separator": "|"} if name == "log.csv" else {}
        assert found.config["fields"]["multi_valued"]["tags"] == {**separator, "max_length": 5}
        (tmp_path / "data.yaml").write_text(found.yaml())
        prepare(read_data_config(tmp_path / "data.yaml"), [str(tmp_path / name)], tmp_path / "data", force=True)
        schema = Schema.read(tmp_path / "data")
        assert [field.length for field in schema.categorical] == [1, 1, 5, 4]


def bad(**fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(DataConfig, {"label": "y", "fields": fields}, "data.yaml")
    return str(caught.value)


def test_configurations_that_do_not_fit_name_the_key() -> None:
    item = {"item": {}}
    assert "needs 'shares'" in bad(categorical=item, multi_valued={"h": {"pooling": "target"}})
    assert "did you mean 'item'" in bad(categorical=item, multi_valued={"h": {"shares": "itm"}})
    assert "'min_count' is that of 'item'" in bad(
        categorical=item, multi_valued={"h": {"shares": "item", "min_count": 2}}
    )
    assert "max_length" in bad(categorical=item, multi_valued={"h": {"max_lenght": 2}})
    assert "appear twice: item" in bad(categorical=item, multi_valued={"item": {}})
    assert "'embedding_dim' goes with" in bad(numeric={"price": {"embedding_dim": 4}})


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (None, "vectors.parquet: No such file"),
        (b"rubbish", "not readable as Parquet"),
        (
            {"id": ["a"], "vector": [[1.0]]},
            "has no column 'key'; it has: id, vector",
        ),
        ({"key": ["a"], "vector": [1.0]}, "expected lists of numbers"),
        ({"key": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]}, "same length"),
        (
            {"key": ["a", "a"], "vector": [[1.0], [2.0]]},
            "'a' appears more than once",
        ),
        ({"key": ["a", None], "vector": [[1.0], [2.0]]}, "key 1 .* is missing"),
        ({"key": ["a"], "vector": [[float("nan")]]}, "key 'a' holds a NaN"),
    ],
)
def test_files_of_vectors_that_cannot_be_used_are_named(tmp_path: Path, made: Any, text: str) -> None:
    path = tmp_path / "vectors.parquet"
    if isinstance(made, dict):
        pq.write_table(pa.table(made), path)
    elif made is not None:
        path.write_bytes(made)
    write_log(tmp_path / "log.csv", drawn(60))
    with pytest.raises(DataError, match=text):
        prepare(config(tmp_path), [str(tmp_path / "log.csv")], tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_vectors_of_integer_keys_come_from_safetensors_and_may_be_trained(tmp_path: Path) -> None:
    rows = drawn(300)
    for row in rows:
        row["item"] = row["item"][1:]
        row["history"] = [item[1:] for item in row["history"]]
    write_log(tmp_path / "log.csv", rows)
    vectors = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    save_file({"key": np.array([4, 2, 8]), "vector": vectors}, tmp_path / "v.safetensors")
    image = {"image": {"column": "item", "file": "v.safetensors", "trainable": True}}
    prepare(config(tmp_path, pretrained=image), [str(tmp_path / "log.csv")], tmp_path / "data")
    given = {"4": 2, "2": 3, "8": 4}
    assert read(tmp_path, "image", "train") == [given.get(row["item"], 1) for row in rows[:180]]
    small = [*RUN, "model.experts=[{kind: fm}, {kind: fm, fields: [image, item]}]", "training.epochs=1"]
    run = train(load_config(None, small), tmp_path / "data", tmp_path / "run")
    # Both tables and the gate's start from the vectors, and each goes its own way.
    (trained,) = [value for value in run.load_weights().values() if value.shape == (5, 3 * 2)]
    for table in range(3):
        part = trained[2:, 2 * table : 2 * table + 2].numpy()
        assert not np.array_equal(part, vectors)
        np.testing.assert_allclose(part, vectors, atol=0.5)
