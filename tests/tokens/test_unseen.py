"""When unseen or missing values are said to be far too many, and what is counted."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from dmoe.schema import CategoricalField, Coverage, MultiValuedField, NumericField, Schema
from dmoe.tokens.unseen import CHANCE, LEAST_VALUES, Finding, ValueCounts, is_far_above, limit


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0, 1))
def test_far_above_is_beyond_chance_and_beyond_the_limit(of: int, share: float, expected: float) -> None:
    count = round(share * of)
    if is_far_above(count, of, expected):
        assert of >= LEAST_VALUES
        assert count / of > limit(expected) > expected
        # The bound is never below the tail itself.
        assert binom.sf(count - 1, of, limit(expected)) <= CHANCE * (1 + 1e-9)


@pytest.mark.parametrize(
    ("count", "of", "expected", "far"),
    [
        (812, 1000, 0.031, True),
        (29, 29, 0.0, False),  # too few to say
        (30, 30, 0.0, True),
        (9, 30, 0.0, False),  # chance
        (99, 1000, 0.0, False),  # within ten points
        (180, 1000, 0.0, True),
        (390, 1000, 0.2, False),  # twice is drift
        (500, 1000, 0.2, True),
        (1000, 1000, 0.9, True),
        (950, 1000, 0.9, False),
        (1000, 1000, 1.0, False),  # nothing was ever known
        (0, 1000, 0.0, False),
        (0, 0, 0.0, False),
    ],
)
def test_what_is_far_above(count: int, of: int, expected: float, far: bool) -> None:
    assert is_far_above(count, of, expected) is far


@given(st.floats(0, 1))
def test_the_limit_leaves_room_for_all_values_unseen(expected: float) -> None:
    assert expected <= limit(expected) <= 1
    assert limit(expected) < 1 or expected > 1 - 1e-15  # half of the way rounds to all of it


def schema(**coverage: Coverage) -> Schema:
    fields = (
        CategoricalField(name="user", vocabulary_size=9),
        NumericField(name="price"),
        MultiValuedField(name="tags", vocabulary_size=5, max_length=3),
        CategoricalField(name="site", vocabulary_size=4),
    )
    return Schema(label="y", fields=fields, coverage=coverage)


def test_values_are_counted_as_one_by_one() -> None:
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 4, size=(50, 5))
    tags = [sorted(row, reverse=True) for row in ids[:, 1:4].tolist()]  # values stand first
    ids[:, 1:4] = tags
    price = np.where(draw.random(50) < 0.3, math.nan, 1.0)
    counts = ValueCounts(schema())
    for part in np.array_split(np.arange(50), 3):
        counts.add(counts.tallied(ids[part], [int(np.isnan(price[part]).sum())]))
    assert counts.fields == ["user", "tags", "site", "price"]
    found = {one["field"]: one for one in counts.values()}
    for name, column in (("user", ids[:, 0]), ("site", ids[:, 4])):
        assert found[name]["missing"] == (column == 0).sum()
        assert found[name]["unseen"] == (column == 1).sum()
        assert found[name]["values"] == (column != 0).sum()
    values = [value for row in tags for value in row if value]
    assert (found["tags"]["values"], found["tags"]["unseen"]) == (len(values), values.count(1))
    assert found["tags"]["missing"] == sum(not any(row) for row in tags)
    assert found["price"]["missing"] == np.isnan(price).sum()
    assert "unseen" not in found["price"]
    assert counts.findings() == []  # what training showed is not known
    assert found["user"]["expected_unseen"] is None


def test_findings_name_the_fields_that_are_far_above() -> None:
    known = Coverage(unseen={"train": 0.031, "valid": 0.02, "test": 0.9}, missing={"train": 0.0, "valid": 0.0})
    counts = ValueCounts(schema(user=known, site=known, price=Coverage(missing={"train": 0.5})))
    ids = np.zeros((1000, 5), np.int64)
    ids[:, 0] = 2
    ids[:812, 0] = 1
    counts.add(counts.tallied(ids, [1000]))
    user, site, price = counts.findings()
    assert user == Finding("user", "user", "unseen", 812, 1000, 0.031)
    assert user.text().startswith(
        "column 'user': 812 of 1,000 values were never seen in training (training's held-out rows: 3.1 %); the scores "
        "of these rows rest on the other fields. Were the ids read or written differently?"
    )
    assert (site.kind, site.count, price.kind, price.expected) == ("missing", 1000, "missing", 0.5)
    assert "column 'site': 1,000 of 1,000 rows have no value (training's held-out rows: 0 %)" in site.text()
    assert counts.values()[0]["far_above"] == ["unseen"]
    counts.clear()
    assert counts.findings() == []


def test_a_derived_field_is_named_with_its_column() -> None:
    assert "field 'hour' of column 'time':" in Finding("hour", "time", "unseen", 30, 30, 0.0).text()
