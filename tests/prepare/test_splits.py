"""Splits: exact counts, exact membership against sorting, checks."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.config.data import SplitRule
from dmoe.errors import DataError
from dmoe.prepare import splits

SHARES = {"train": Fraction(8, 10), "valid": Fraction(1, 10), "test": Fraction(1, 10)}
MASK = (1 << 64) - 1


def splitmix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def naive_draw(labels: list[int], seed: int, shares: tuple[float, float], stratified: bool) -> list[int]:
    """Sort the rows of each group by key with Python's integers and cut."""
    key = [splitmix((row * 0x9E3779B97F4A7C15 + splitmix(seed)) & MASK) for row in range(len(labels))]
    codes = [0] * len(labels)
    for group in ([0, 1, 2], [None])[not stratified]:
        rows = sorted((row for row in range(len(labels)) if group in (None, labels[row])), key=lambda row: key[row])
        valid, test = (int(len(rows) * Fraction(str(share)) + Fraction(1, 2)) for share in shares)
        for row in rows[:valid]:
            codes[row] = 1
        for row in rows[valid : valid + test]:
            codes[row] = 2
    return codes


@settings(max_examples=100)
@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=60),
    seed=st.integers(0, 2**63 - 1),
    shares=st.sampled_from([(0.1, 0.1), (0.0, 0.3), (0.3, 0.0), (0.45, 0.45), (0.25, 0.5)]),
    stratified=st.booleans(),
)
def test_drawn_splits_are_the_smallest_keys(
    labels: list[int], seed: int, shares: tuple[float, float], stratified: bool
) -> None:
    valid, test = shares
    train = float(1 - Fraction(str(valid)) - Fraction(str(test)))
    kind = "stratified" if stratified else "random"
    split = SplitRule.model_validate({"kind": kind, "train": train, "valid": valid, "test": test, "seed": seed})
    got = splits.drawn(np.array(labels, dtype=np.uint8), split)
    assert got.tolist() == naive_draw(labels, seed, shares, stratified)


def test_counts_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = (np.arange(50_000) % 7 == 0).astype(np.uint8)
    split = SplitRule(kind="stratified", seed=5)
    whole = splits.drawn(labels, split)
    monkeypatch.setattr(splits, "_BLOCK_ROWS", 999)
    assert (splits.drawn(labels, split) == whole).all()
    for label in (0, 1):
        total = int((labels == label).sum())
        sizes = splits.split_sizes(total, SHARES)
        counts = np.bincount(whole[labels == label])
        assert counts.tolist() == [sizes["train"], sizes["valid"], sizes["test"]]


def test_seeds_draw_different_rows_evenly() -> None:
    labels = np.zeros(20_000, dtype=np.uint8)
    first, second = (splits.drawn(labels, SplitRule(kind="random", seed=seed)) for seed in (0, 1))
    both = int(((first == splits.TEST) & (second == splits.TEST)).sum())
    # Independent draws share 0.1 * 0.1 of the rows: 200, with a standard deviation below 14.
    assert 130 < both < 270
    early = int((first[:10_000] == splits.TEST).sum())
    assert 880 < early < 1120


@pytest.mark.parametrize(
    ("rows", "valid", "train"), [(10, 1, 8), (15, 2, 11), (14, 1, 12), (40_428_967, 4_042_897, 32_343_173)]
)
def test_sizes_are_rounded_half_up(rows: int, valid: int, train: int) -> None:
    assert splits.split_sizes(rows, SHARES) == {"train": train, "valid": valid, "test": valid}


def test_rank_split_follows_the_order_given() -> None:
    order = [np.array([3, 1, 4]), np.array([0, 2])]
    codes = splits.by_rank(order, 5, SplitRule(kind="time", column="t", train=0.6, valid=0.2, test=0.2))
    assert codes.tolist() == [1, 0, 2, 0, 0]


def test_checks_name_the_split_at_fault() -> None:
    labels = {"click": np.array([0, 1, 0, 0], dtype=np.uint8)}
    with pytest.raises(DataError, match="split 'valid' would hold only rows of label 0"):
        splits.check_splits(np.array([0, 0, 1, 1], dtype=np.uint8), labels, ["train", "valid"])
    with pytest.raises(DataError, match="split 'test' would hold no row of 4"):
        splits.check_splits(np.array([0, 0, 0, 0], dtype=np.uint8), labels, ["train", "test"])
    assert splits.check_splits(np.zeros(4, dtype=np.uint8), labels, ["train"]) == {"train": splits.SplitSize(4, 1, 4)}


def test_checks_name_the_label_at_fault() -> None:
    codes = np.array([0, 0, 1, 1], dtype=np.uint8)
    click, buy = np.array([0, 1, 0, 1], dtype=np.uint8), np.array([2, 1, 2, 0], dtype=np.uint8)
    labels = {"click": click, "buy": buy}
    with pytest.raises(DataError, match=r"split 'train' would hold only rows of label 'buy' 1 where it is known"):
        splits.check_splits(codes, labels, ["train", "valid"])
    with pytest.raises(DataError, match="label 'buy' is unknown in every row of split 'train'"):
        splits.check_splits(codes, {**labels, "buy": np.full(4, 2, dtype=np.uint8)}, ["train"])
    found = splits.check_splits(codes, {"buy": buy, "click": click}, ["train", "valid"], required=0)
    assert found == {"train": splits.SplitSize(2, 1, 1), "valid": splits.SplitSize(2, 0, 1)}
