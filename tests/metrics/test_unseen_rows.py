"""Scores of rows with and without unseen values, against the rows picked out one by one."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from dmoe.metrics.unseen_rows import SCORED_FIELDS, UnseenRows
from dmoe.schema import CategoricalField, Coverage, MultiValuedField, NumericField, Schema
from dmoe.shards.batch import Batch

FIELDS = 12


def test_rows_with_and_without_unseen_values_are_scored_apart() -> None:
    draw = np.random.default_rng(1)
    names = [f"f{index}" for index in range(FIELDS - 1)]
    fields = [CategoricalField(name=name, vocabulary_size=50) for name in names]
    tags = MultiValuedField(name="tags", vocabulary_size=50, max_length=2)
    coverage = {name: Coverage(unseen={"train": 0.0}, missing={"train": 0.0}) for name in names}
    schema = Schema(label="y", fields=(*fields, tags, NumericField(name="n")), coverage=coverage)
    rates = np.linspace(0, 0.3, schema.num_ids)
    ids = np.where(draw.random((900, schema.num_ids)) < rates, 1, draw.integers(2, 50, (900, schema.num_ids)))
    ids = ids.astype(np.int32)
    ids[:5, -2:] = 0  # rows without tags
    labels, logits = (draw.random(900) < 0.3).astype(np.float32), draw.normal(size=900)
    rows = UnseenRows(schema)
    for part in np.array_split(np.arange(900), 4):
        of = Batch(torch.from_numpy(ids[part]), torch.zeros(len(part), 1), torch.from_numpy(labels[part])[:, None])
        rows.update(of)
    found = rows.result(labels, logits)
    assert found is not None
    by_field = {name: ids[:, index : index + 1] for index, name in enumerate(names)} | {"tags": ids[:, -2:]}
    shares = {name: (values == 1).sum() / (values != 0).sum() for name, values in by_field.items()}
    scored = sorted(shares, key=lambda name: -shares[name])[:SCORED_FIELDS]
    for one in found["fields"]:
        values = by_field[one["field"]]
        assert (one["values"], one["unseen"]) == ((values != 0).sum(), (values == 1).sum())
        assert (one["scores"] is not None) == (one["field"] in scored)
        if one["scores"]:
            check(one["scores"], (values == 1).any(1), labels, logits)
    check(found["any"], (ids == 1).any(1), labels, logits)
    far = [one["field"] for one in found["far_above"]]
    assert far == [name for name in names if shares[name] > 0.16]


def check(apart: dict[str, dict[str, float]], unseen: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
    probabilities = 1 / (1 + np.exp(-logits))
    for name, of in (("with", unseen), ("without", ~unseen)):
        one = apart[name]
        assert one["rows"] == of.sum()
        assert one["auc"] == pytest.approx(roc_auc_score(labels[of], logits[of]))
        assert one["logloss"] == pytest.approx(log_loss(labels[of], probabilities[of]))
        assert one["predicted"] == pytest.approx(probabilities[of].mean())
        assert one["observed"] == pytest.approx(labels[of].mean())
        assert one["predicted_to_observed"] == pytest.approx(probabilities[of].sum() / labels[of].sum())


def test_few_rows_of_one_class_have_no_auc() -> None:
    schema = Schema(label="y", fields=(CategoricalField(name="a", vocabulary_size=4),))
    rows = UnseenRows(schema)
    rows.update(
        Batch(torch.tensor([[1], [2], [2]], dtype=torch.int32), torch.zeros(3, 0), torch.tensor([[0.0], [1], [0]]))
    )
    found = rows.result(np.array([0.0, 1, 0]), np.zeros(3))
    assert found is not None
    assert found["any"]["with"] == {
        "rows": 1, "auc": None, "logloss": pytest.approx(np.log(2)), "predicted": 0.5, "observed": 0.0,
        "predicted_to_observed": None,
    }  # fmt: skip
    assert found["any"]["without"]["auc"] == 0.5
    none = UnseenRows(Schema(label="y", fields=(NumericField(name="n"),)))
    none.update(Batch(torch.zeros(1, 0, dtype=torch.int32), torch.zeros(1, 1), torch.zeros(1, 1)))
    assert none.result(np.zeros(1), np.zeros(1)) is None
