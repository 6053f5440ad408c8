"""What a model should not be trained on unseen: fields that give the label away, and splits that mislead.

Whatever is judged by the label is fitted on some rows and judged on others, so that values of one row each deceive
nobody. The figures name what was found; nothing is refused for it.

N rows of a sample, V codes of a column, E values of all rows of a multi-valued one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from dmoe.inspection.information import Floats, Integers
from dmoe.inspection.trial import ReadingTrial
from dmoe.tokens.unseen import is_far_above

TELLING_AUC = 0.95
# Of the label's entropy: what one value must tell to be named.
_VALUE_SHARE = 0.02
_MISSING_SHARE = 0.05
_PURE = 0.05
_LEAST_ROWS = 20
_RENAMED = 0.999
_UNSEEN = 0.5
_DISTINCT = 0.9
_RISING = 0.999
_RATE_CHANGE = 0.1
_BLOCK_CHANGE = 0.15
_BLOCKS = 20
_CHANCE = 1e-6
_COPIES = 0.01
_FINE_BUCKETS = 256
_NEW = "give it hash_buckets, or train against unseen tokens"
_OF_LATER = "split by time to see what later days bring, "
_RARE = "they are rare rather than new: a lower min_count or hash_buckets gives them one"


@dataclass(frozen=True, slots=True)
class Suspicion:
    """`figure` is what `kind` measures; `text` says it whole. `field` is None for what concerns rows or the label."""

    kind: str
    field: str | None
    figure: float
    text: str

    def values(self) -> dict[str, Any]:
        return asdict(self)

    def of_label(self, name: str | None) -> "Suspicion":
        """The same about one of several labels."""
        return self if name is None else replace(self, text=f"label '{name}': {self.text}")


@dataclass(frozen=True, slots=True)
class SampleColumn:
    """`codes_N` from 0 to `size` - 1; of a multi-valued field its values instead, `row_of_E` the row of each.

    `missing`: the code of a missing value; `words`: codes -> what to call a value; `numbers_N`: the values, if they are
    numbers; `counted`: whether other than in its order a number means nothing (an id).
    """

    name: str
    codes_N: Integers
    size: int
    missing: int | None = None
    words: Any = str
    numbers_N: Floats | None = None
    row_of_E: Integers | None = None
    is_number: bool = False


def field_suspicions(column: SampleColumn, judge: ReadingTrial, train_N: npt.NDArray[np.bool_]) -> list[Suspicion]:
    """What one field gives away; `train_N` are the rows whose order and values are looked at."""
    return [*order_suspicions(column, train_N), *telling_suspicions(column, judge)]


def telling_suspicions(column: SampleColumn, judge: ReadingTrial) -> list[Suspicion]:
    """What one field tells of the label that `judge` knows."""
    if not judge.able:
        return []
    if column.row_of_E is not None:
        score = judge.auc(judge.bag(column.codes_N, column.row_of_E, column.size))
        return [_telling(column, judge, score)] if score > TELLING_AUC else []
    told = _renamed(column, judge) or _tells(column, judge) or _value(column, judge)
    return [told] if told is not None else []


def _telling(column: SampleColumn, judge: ReadingTrial, score: float) -> Suspicion:
    return Suspicion(
        "tells the label",
        column.name,
        round(score, 4),
        f"'{column.name}' alone reaches AUC {score:.4f} on {len(judge.labels_J):,} rows that it was not fitted on: "
        "is it known before the label is?",
    )


def _tells(column: SampleColumn, judge: ReadingTrial) -> Suspicion | None:
    trials = [judge.tokens(column.codes_N, column.size)]
    if column.numbers_N is not None and column.is_number:
        trials.append(judge.numbers(column.numbers_N, _FINE_BUCKETS))
    score = max((judge.auc(trial) for trial in trials if judge.gain(trial) > 0), default=0.0)
    return _telling(column, judge, score) if score > TELLING_AUC else None


def _renamed(column: SampleColumn, judge: ReadingTrial) -> Suspicion | None:
    """A field of few values of which each goes with one label, in fitted and in judged rows."""
    counts_V, positives_V = _by_value(column, judge, judge.fit_N)
    if np.count_nonzero(counts_V) > 10:
        return None
    label_V = 2 * positives_V > counts_V
    agreeing = float((label_V[column.codes_N] == judge.labels_N).mean())
    if agreeing < _RENAMED or min(judge.labels_N.mean(), 1 - judge.labels_N.mean()) < 2 * (1 - agreeing):
        return None
    return Suspicion(
        "is the label",
        column.name,
        round(agreeing, 6),
        f"'{column.name}' is the label under another name: it agrees with it in {agreeing:.2%} of "
        f"{len(judge.labels_N):,} rows",
    )


def _by_value(column: SampleColumn, judge: ReadingTrial, rows_N: npt.NDArray[np.bool_]) -> tuple[Integers, Integers]:
    codes, clicked = column.codes_N[rows_N], judge.labels_N[rows_N] == 1
    return np.bincount(codes, minlength=column.size), np.bincount(codes[clicked], minlength=column.size)


def _value(column: SampleColumn, judge: ReadingTrial) -> Suspicion | None:
    """The value that says most about the label, if it has one class only or is all that the field says."""
    counts_V, positives_V = _by_value(column, judge, judge.fit_N)
    rows, positives = int(counts_V.sum()), int(positives_V.sum())
    entropy = float(_entropy(np.array([positives / rows]))[0])
    told_V = entropy - _split_entropy(counts_V, positives_V, rows, positives)
    best = int(told_V.argmax())
    share = float(told_V[best]) / entropy
    later, clicked = (int(one[best]) for one in _by_value(column, judge, ~judge.fit_N))
    rate, at_value = positives / rows, float(positives_V[best] / max(counts_V[best], 1))
    if share < _VALUE_SHARE or later < _LEAST_ROWS:
        return None
    judged = clicked / later
    none = max(at_value, judged) <= _PURE * rate
    every = min(at_value, judged) >= 1 - _PURE * (1 - rate)
    missing = best == column.missing
    whole = float(np.nansum(_told_by_all(counts_V, positives_V, entropy, rows)))
    alone = np.count_nonzero(counts_V >= _LEAST_ROWS) >= 10 and told_V[best] > 0.9 * whole
    held = (judged - judge.labels_J.mean()) * (at_value - rate) > 0.25 * (at_value - rate) ** 2
    if not (none or every or ((missing or alone) and share >= _MISSING_SHARE and held)):
        return None
    if missing:
        return Suspicion(
            "missing tells the label",
            column.name,
            round(share, 4),
            f"'{column.name}' is missing in rows of label rate {judged:.4f} ({later:,} rows that were not fitted on; "
            f"{judge.labels_J.mean():.4f} of all): that it is missing tells {share:.1%} of what there is to tell",
        )
    return Suspicion(
        "one value tells the label",
        column.name,
        round(share, 4),
        f"'{column.name}' tells the label by one value, {column.words(best)}: rate {judged:.4f} in {later:,} rows that "
        f"were not fitted on ({judge.labels_J.mean():.4f} of all), {share:.1%} of what there is to tell",
    )


def _entropy(rates: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.nan_to_num(rates * np.log2(rates)) - np.nan_to_num((1 - rates) * np.log2(1 - rates))


def _split_entropy(counts_V: Integers, positives_V: Integers, rows: int, positives: int) -> Floats:
    """Mean entropy of the label when the rows of one value are told from all others."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.nan_to_num(positives_V / counts_V)
        outside = np.nan_to_num((positives - positives_V) / (rows - counts_V))
    found: Floats = (counts_V * _entropy(inside) + (rows - counts_V) * _entropy(outside)) / rows
    return found


def _told_by_all(counts_V: Integers, positives_V: Integers, entropy: float, rows: int) -> Floats:
    often = counts_V >= _LEAST_ROWS
    counts = np.append(counts_V[often], counts_V[~often].sum())
    positives = np.append(positives_V[often], positives_V[~often].sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = counts / rows * (entropy - _entropy(np.nan_to_num(positives / counts)))
    return found


def order_suspicions(column: SampleColumn, train_N: npt.NDArray[np.bool_]) -> list[Suspicion]:
    """Values that differ in every row, or rise with the rows."""
    if column.row_of_E is not None:
        return []
    codes = column.codes_N[train_N]
    given = codes if column.missing is None else codes[codes != column.missing]
    if len(given) < 100:
        return []
    if column.numbers_N is not None:
        numbers = column.numbers_N[train_N]
        steps = np.diff(numbers[~np.isnan(numbers)])
        rising = float((steps > 0).mean()) if len(steps) else 0.0
        if rising >= _RISING:
            return [
                Suspicion(
                    "rises with the row",
                    column.name,
                    round(rising, 6),
                    f"'{column.name}' is larger than in the row before in {rising:.2%} of the rows: the number of the "
                    "row, or a time; later rows lie beyond all that training sees",
                )
            ]
    distinct = len(np.unique(given)) / len(given)
    if column.is_number or distinct < _DISTINCT:
        return []
    return [
        Suspicion(
            "differs in each row",
            column.name,
            round(distinct, 4),
            f"'{column.name}' has {len(np.unique(given)):,} values in {len(given):,} training rows: an id of the row "
            "tells later rows nothing; leave it out",
        )
    ]


def unseen_suspicion(
    name: str, split: str, share: float, values: int, in_train: float, *, in_order: bool
) -> Suspicion | None:
    """A field of whose `values` in rows that were not fitted on at least half have no token: new ones if that is far
    above the share of train's own (`dmoe.tokens.unseen`), else rare ones. `in_order`: these rows are later ones."""
    if share < _UNSEEN or not values:
        return None
    new = is_far_above(round(share * values), values, in_train)
    above = "far above the" if new else "not far above the"
    return Suspicion(
        "mostly unseen",
        name,
        round(share, 4),
        f"'{name}': {share:.1%} of the values of {split} have no token, {above} {in_train:.1%} of train; "
        f"{('' if in_order else _OF_LATER) + _NEW if new else _RARE}",
    )


def label_suspicions(labels: Iterable[tuple[str, npt.NDArray[np.integer]]]) -> Iterator[Suspicion]:
    """Label rates that change more than chance from split to split, or along the rows of the first."""
    (name, first), *others = [(name, one) for name, one in labels if len(one)]
    rate, rows = float(first.mean()), len(first)
    for other, one in others:
        both = (float(first.sum()) + float(one.sum())) / (rows + len(one))
        error = (both * (1 - both) * (1 / rows + 1 / len(one))) ** 0.5
        change = float(one.mean()) / rate - 1 if rate else 0.0
        if error and abs(float(one.mean()) - rate) > 5 * error and abs(change) > _RATE_CHANGE:
            yield Suspicion(
                "label drifts",
                None,
                round(change, 4),
                f"the label rate is {rate:.4f} in {name} ({rows:,} rows) and {one.mean():.4f} in {other} "
                f"({len(one):,} rows), {abs(change):.0%} {'more' if change > 0 else 'less'}",
            )
    blocks = np.array_split(first, min(_BLOCKS, rows))
    sizes, rates = np.array([len(block) for block in blocks]), np.array([block.mean() for block in blocks])
    if not 0 < rate < 1:
        return
    noise = rate * (1 - rate) / sizes
    excess = float(np.maximum(((rates - rate) ** 2 - noise).mean(), 0)) ** 0.5 / rate
    if excess > _BLOCK_CHANGE and chi2.sf(float(((rates - rate) ** 2 / noise).sum()), len(blocks) - 1) < _CHANCE:
        yield Suspicion(
            "label drifts",
            None,
            round(excess, 4),
            f"the label rate along the rows of {name} goes from {rates.min():.4f} to {rates.max():.4f} in "
            f"{len(blocks)} blocks of {sizes[0]:,} rows; beyond chance it varies by {excess:.0%} of its mean",
        )


def copies_suspicion(
    hashes_N: npt.NDArray[np.uint64], labels_N: Integers, held_N: npt.NDArray[np.bool_]
) -> Suspicion | None:
    """Held-out rows whose fields are, value by value, those of a training row, where copying explains them.

    Rows of few combinations are alike by chance. Were the rows drawn one by one, each combination with a rate of its
    own, the numbers F_k of combinations with k rows would be log-convex but for k!: F_k² ≤ (k + 1) / k F_{k-1} F_{k+1}
    (moments of the rates, by Cauchy and Schwarz). More combinations of two or three rows than that are copies.
    """
    _, inverse, groups = np.unique(hashes_N, return_inverse=True, return_counts=True)
    of_size = np.bincount(np.minimum(groups, 7), minlength=8).astype(np.float64)
    excess = [
        of_size[k] - (1 + 1 / k) ** 0.5 * (of_size[k - 1] * of_size[k + 1]) ** 0.5
        > 5 * of_size[k] ** 0.5 + 0.1 * of_size[k]
        for k in (2, 3, 4, 5)
    ]
    trained = np.bincount(inverse[~held_N], minlength=len(groups))[inverse]
    twins = held_N & (trained > 0)
    share = float(twins.sum()) / max(int(held_N.sum()), 1)
    if not any(excess) or share < _COPIES:
        return None
    clicks = np.bincount(inverse[~held_N & (labels_N == 1)], minlength=len(groups))[inverse]
    same = np.where(labels_N == 1, clicks > 0, clicks < trained)
    with_label = float((twins & same).sum()) / max(int(held_N.sum()), 1)
    return Suspicion(
        "copies across splits",
        None,
        round(share, 4),
        f"{share:.2%} of {int(held_N.sum()):,} held-out rows have the fields of a training row, {with_label:.2%} its "
        "label too: more than combinations of their values make likely; were rows written twice?",
    )
