"""What is measured of a log before training, against logs in which it is known."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dmoe.config.data import DataConfig
from dmoe.prepare.prepare import prepare
from dmoe.schema import OOV_ID, Schema
from dmoe.training.log_facts import measure_log


def prepared(tmp_path, columns, fields, kind="ordered"):
    click = (np.arange(len(next(iter(columns.values())))) % 3 == 0).astype(np.int64)
    parquet.write_table(pa.table({"click": click, **columns}), tmp_path / "log.parquet")
    config = DataConfig.model_validate(
        {
            "label": "click",
            "split": {"kind": kind, "train": 0.8, "valid": 0.1, "test": 0.1},
            "fields": fields,
            "format": {"kind": "parquet"},
        }
    )
    prepare(config, [str(tmp_path / "log.parquet")], tmp_path / "data")
    return tmp_path / "data"


def share_unseen(data, split, name):
    ids = parquet.read_table(data / split / "part-00000.parquet")[name].to_numpy()
    return (ids[ids > 0] == OOV_ID).mean()


def test_counts_and_click_rate_are_those_of_the_rows(tmp_path):
    draw = np.random.default_rng(0)
    data = prepared(
        tmp_path,
        {"user": draw.zipf(1.5, 5000) % 700, "place": draw.integers(0, 9, 5000)},
        {
            "categorical": ["user", "place"],
            "min_count": 2,
        },
    )
    facts = measure_log(data, Schema.read(data))
    train = parquet.read_table(data / "train" / "part-00000.parquet")
    for name, counts in zip(("user", "place"), facts.counts, strict=True):
        assert counts.tolist() == np.bincount(train[name].to_numpy(), minlength=len(counts)).tolist()
    assert facts.rows == 4000
    assert facts.rates[0] == train["click"].to_numpy().mean()


@pytest.mark.parametrize("kind", ["random", "ordered"])
@pytest.mark.parametrize("min_count", [1, 2, 5])
def test_where_rows_have_no_order_the_estimate_is_what_the_test_rows_have(tmp_path, min_count, kind):
    draw = np.random.default_rng(min_count)
    columns = {"user": draw.zipf(1.3, 40_000) % 20_000, "place": draw.integers(0, 9, 40_000)}
    data = prepared(tmp_path, columns, {"categorical": ["user", "place"], "min_count": min_count}, kind)
    facts = measure_log(data, Schema.read(data))
    held_out = np.mean([share_unseen(data, split, "user") for split in ("valid", "test")])
    # Of a log in order the last quarter of train has a part in it, and what its rows are by chance.
    rows = 8000 if kind == "random" else 4000
    spread = np.sqrt(held_out * (1 - held_out) * (1 / 8000 + 1 / 32_000 + (kind == "ordered") / rows))
    assert facts.unseen["user"] == pytest.approx(held_out, abs=4 * spread)
    assert facts.unseen["place"] == 0
    # Replaced at this rate, train has as many unseen values as the rows to come.
    already = share_unseen(data, "train", "user")
    assert already + facts.replacement_rates()["user"] * (1 - already) == pytest.approx(facts.unseen["user"])
    assert "place" not in facts.replacement_rates()


def test_users_that_come_once_in_a_while_and_articles_of_a_day(tmp_path):
    """The compared quarter has fewer rows before it than the test has: of users that counts, of articles not."""
    draw = np.random.default_rng(0)
    rows = np.arange(60_000)
    columns = {"user": draw.integers(0, 15_000, 60_000), "article": rows // 20 + draw.integers(0, 5, 60_000)}
    data = prepared(tmp_path, columns, {"categorical": ["user", "article"], "min_count": 2})
    facts = measure_log(data, Schema.read(data))
    found = {name: share_unseen(data, "test", name) for name in ("user", "article")}
    ids = parquet.read_table(data / "train" / "part-00000.parquet")["user"].to_numpy()
    counts = np.bincount(ids[:36_000], minlength=15_002)
    counts[OOV_ID] = 0
    by_the_quarter_alone = (counts[ids[36_000:]] < 2).mean()
    assert by_the_quarter_alone > 1.4 * found["user"]
    assert facts.unseen["user"] == pytest.approx(found["user"], rel=0.1)
    assert facts.unseen["article"] == pytest.approx(1.0, abs=0.01)


def test_of_a_log_in_order_the_last_quarter_of_train_is_compared_with_what_came_before(tmp_path):
    # Every article is read for 1,000 rows and never again; a user comes back always.
    rows = np.arange(40_000)
    columns = {"article": rows // 1000, "user": rows % 50}
    data = prepared(tmp_path, columns, {"categorical": ["article", "user"]})
    facts = measure_log(data, Schema.read(data))
    assert facts.unseen == {"article": 1.0, "user": 0.0}
    assert facts.replacement_rates() == {"article": 0.95}


def test_values_of_a_list_and_of_the_field_that_it_shares_with(tmp_path):
    # In the last quarter of train all of `seen` is new as an item; half of it was in `history` before.
    rows = 4000
    item = np.where(np.arange(rows) < 2400, np.arange(rows) % 10, 100 + np.arange(rows) % 10)
    history = [["1", str(100 + row % 5)] if row % 2 else [] for row in range(rows)]
    data = prepared(
        tmp_path,
        {"item": [str(value) for value in item], "history": history},
        {
            "categorical": {"item": {}},
            "multi_valued": {"history": {"max_length": 3, "shares": "item"}},
        },
    )
    schema = Schema.read(data)
    facts = measure_log(data, schema)
    assert facts.unseen["item"] == pytest.approx(0.5)
    assert facts.unseen["history"] == 0
    item_counts, history_counts = facts.counts
    assert facts.vocabulary_counts(0).tolist() == (item_counts + history_counts).tolist()


def test_quantile_buckets_are_never_replaced(tmp_path):
    draw = np.random.default_rng(0)
    columns = {"user": draw.integers(0, 3000, 4000), "price": np.sort(draw.normal(size=4000))}
    fields = {
        "categorical": ["user"],
        "numeric": {"price": {"transform": "quantile", "buckets": 10}},
    }
    data = prepared(tmp_path, columns, fields)
    assert set(measure_log(data, Schema.read(data)).replacement_rates()) == {"user"}
