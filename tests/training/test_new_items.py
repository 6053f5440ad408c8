"""A planted log whose rows to come all hold new items: what a model can know of them is known."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from dmoe.config.data import DataConfig
from dmoe.config.run import load_config
from dmoe.prepare.prepare import prepare
from dmoe.shards.reader import SplitReader
from dmoe.training.loop import train

ROWS = 30_000
ITEM_ROWS = 60
TINY = [
    "model.embedding_dim=4",
    "model.experts=[{kind: cin, units: [8]}, {kind: crossnet, layers: 2}]",
    "model.expert_units=16",
    "model.tower_units=[16]",
    "training.batch_size=128",
    "training.epochs=3",
    "optimiser.lr=0.005",
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """An item is read for 60 rows and never again; items read once, 3 % of the rows, are never clicked.

    A click depends on the item, of which nothing is known when it is new, and on the place. Gives the data set and
    the logloss on the test rows of the click rate of each place over all items, which is the best there is.
    """
    folder = tmp_path_factory.mktemp("planted")
    draw = np.random.default_rng(5)
    items = np.arange(ROWS) // ITEM_ROWS
    item_effect, place_effect = 2 * draw.normal(size=items[-1] + 1), np.linspace(-2, 2, 8)
    place = draw.integers(0, 8, ROWS)
    click_R = draw.random(ROWS) < 1 / (1 + np.exp(-(item_effect[items] + place_effect[place])))
    once_R = (draw.random(ROWS) < 0.03) & (np.arange(ROWS) < 0.8 * ROWS)
    click_R &= ~once_R
    # From the last fifth on, items are new each time, so none of valid is seen in test either.
    named = np.where(once_R, 1_000_000 + np.arange(ROWS), items)
    log = {"click": click_R.astype(np.int64), "item": named, "place": place}
    parquet.write_table(pa.table(log), folder / "log.parquet")
    config = DataConfig.model_validate(
        {
            "label": "click",
            "split": {"kind": "ordered", "train": 0.8, "valid": 0.1, "test": 0.1},
            "fields": {"categorical": ["item", "place"], "min_count": 2},
            "format": {"kind": "parquet"},
        }
    )
    prepare(config, [str(folder / "log.parquet")], folder / "data")
    many = 2 * draw.normal(size=200_000)
    rate_P = np.array([(1 / (1 + np.exp(-(many + effect)))).mean() for effect in place_effect])
    test = slice(round(0.9 * ROWS), ROWS)
    best = logloss(click_R[test], rate_P[place[test]])
    mean = logloss(click_R[test], np.full(ROWS - test.start, click_R[: round(0.8 * ROWS)].mean()))
    return folder / "data", best, mean


def logloss(clicks, rates):
    return -np.log(np.where(clicks, rates, 1 - rates)).mean()


def logloss_of(run, data):
    model, total, rows = run.load_model(), 0.0, 0
    with torch.no_grad():
        for batch in SplitReader(data, "test", batch_size=5000).batches():
            logit_B = model(batch.ids_BC, batch.numeric_BN).logit
            total += torch.nn.functional.binary_cross_entropy_with_logits(
                logit_B, batch.labels_B, reduction="sum"
            ).item()
            rows += len(batch)
    return total / rows


@pytest.mark.slow
def test_new_items_are_predicted_as_well_as_can_be_known(planted, tmp_path):
    data, best, mean = planted
    with_measures = train(load_config("d-moe", TINY), data, tmp_path / "with")
    assert logloss_of(with_measures, data) < 1.02 * best
    fixed = ["training.recipe=fixed", *TINY, "decorrelation.0.alpha=0.32"]
    without = train(load_config("d-moe", fixed), data, tmp_path / "without")
    assert logloss_of(without, data) > mean > 1.02 * best
