"""Which columns of a raw log are its labels, and what data.yaml says of them.

N rows that were read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.config.labels import Label
from dmoe.errors import DataError
from dmoe.inspection.columns import LogRows, TextColumn
from dmoe.inspection.kinds import MISSING_WORDS
from dmoe.inspection.label_contents import LabelPair
from dmoe.schema import UNKNOWN
from dmoe.sources.rejects import BAD_LABEL
from dmoe.tokens.labels import is_other_encoding, label_parser, suggest_label, value_of
from dmoe.tokens.scalars import Fault

# Of the main label.
LABEL_NAMES = (
    "label", "click", "clicked", "is_click", "is_clicked", "isclick", "has_click", "clk", "y", "target", "conversion",
)  # fmt: skip
# Of what else a log may say of a row, with `is_` before them or not.
FURTHER_NAMES = (
    "click", "clicked", "clk", "conversion", "converted", "sale", "purchase", "purchased", "buy", "install",
    "add_to_cart", "like", "liked", "share", "shared", "follow", "comment", "forward", "favorite", "long_view",
    "finish", "hate", "profile_enter",
)  # fmt: skip
# So rarely is a label 1 without the one that it is given, where that holds but for mistakes.
_NESTED = 0.99


@dataclass(frozen=True, slots=True)
class LogLabel:
    """`said`: what data.yaml says of it; `labels_N` of 0, 1 and `UNKNOWN`; `main` of the first one."""

    name: str
    column: str
    said: str | dict[str, Any]
    labels_N: npt.NDArray[np.int64]
    main: bool

    def kept(self, keep_N: npt.NDArray[np.bool_]) -> "LogLabel":
        """In some of the rows."""
        return replace(self, labels_N=self.labels_N[keep_N])

    def facts(self) -> dict[str, Any]:
        """Rows where it is known, and those of 1."""
        known, positives = int((self.labels_N != UNKNOWN).sum()), int((self.labels_N == 1).sum())
        return {"name": self.name, "column": self.column, "known": known, "positives": positives}


def find_labels(
    found: LogRows, asked: Sequence[str], where: str, positive: Sequence[str] = ()
) -> tuple[list[LogLabel], list[str]]:
    """The labels, the main one first, and the other columns that it might be where it was chosen for its place only.

    Those that are `asked` for; else the first of a usual name, or the first of two values, and others of 0 and 1 that
    bear the name of an action. `positive`: the values of the main one that are a click.

    Raises: DataError if there is none, or one cannot be a label.
    """
    others: list[str] = []
    for name in asked:
        if name in found.left_out:
            raise DataError(f"{where}: column '{name}' cannot be the label: {found.left_out[name]}")
    chosen = list(dict.fromkeys(asked))
    if positive and not chosen:
        raise DataError(f"{where}: say by --label COLUMN which column --positive is about")
    if not chosen:
        fits = [name for name, column in found.columns.items() if _is_label(column)]
        if not fits:
            raise DataError(
                f"{where}: no column holds 0 and 1 only; name the label by --label, and by --positive which values are "
                "a click"
            )
        named = [name for name in fits if name.lower() in LABEL_NAMES]
        main = (named or fits)[0]
        others = [] if named else fits[1:]
        further = [name for name in fits if _is_action(name) and name != main]
        chosen = [main, *(further if named else [])]
    first, *further = chosen
    labels = [_read(found.columns[first], first, where, positive, main=True)]
    return labels + [_read(found.columns[name], name, where, (), main=False) for name in further], others


def also_labels(found: LogRows, labels: Sequence[LogLabel]) -> list[str]:
    """Further columns of 0 and 1 that bear the name of an action: known after the row was shown, they are no fields."""
    taken = {one.column for one in labels}
    return [name for name, one in found.columns.items() if name not in taken and _is_action(name) and _is_label(one)]


def _is_action(name: str) -> bool:
    return name.lower().removeprefix("is_") in FURTHER_NAMES


def _is_label(column: TextColumn) -> bool:
    return len(column.texts) <= 4 and suggest_label(column.name, _present(column)) is not None


def _present(column: TextColumn) -> list[str]:
    return [text for text in column.texts.to_pylist() if text not in MISSING_WORDS]


def _read(column: TextColumn, name: str, where: str, positive: Sequence[str], *, main: bool) -> LogLabel:
    """Raises: DataError if its values do not say what is 1 and what is 0."""
    present = _present(column)
    said = {"column": name, "positive": list(positive)} if positive else suggest_label(name, present) or name
    label = Label.model_validate({"column": said} if isinstance(said, str) else said)
    parsed = list(map(label_parser(label, MISSING_WORDS), column.texts.to_pylist()))
    if positive and 1 not in parsed:
        raise DataError(f"{where}: label '{name}' never holds {_listed(positive)}; it holds {_shown(column)}")
    unread = sum(int(count) for one, count in zip(parsed, column.counts_V, strict=True) if one == Fault(BAD_LABEL))
    if is_other_encoding(len({*map(value_of, present)}), unread, int(column.counts_V.sum())):
        how = (
            "say which are a click by --positive VALUE"
            if main
            else "leave it out, and name its 'positive' in data.yaml"
        )
        raise DataError(f"{where}: label '{name}' holds {_shown(column)}, not 0 and 1; {how}")
    by_code = np.array([UNKNOWN if isinstance(one, Fault) else one for one in parsed] + [UNKNOWN], dtype=np.int64)
    labels_N: npt.NDArray[np.int64] = by_code[column.codes_N]
    if not (labels_N != UNKNOWN).any():
        raise DataError(f"{where}: label '{name}' holds neither 0 nor 1; name another by --label")
    # No label's name holds what joins the names of outputs; that of a single one is its column.
    return LogLabel(name.replace(".", "_").replace("+", "_"), name, said, labels_N, main)


def _shown(column: TextColumn) -> str:
    """Its most frequent values."""
    order = np.argsort(-column.counts_V, kind="stable").tolist()
    texts = [column.texts[code].as_py() for code in order[:5]]
    return _listed(texts) + (", …" if len(order) > 5 else "")


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(repr(text) for text in texts)


def said_of(labels: Sequence[LogLabel]) -> dict[str, Any]:
    """`label` or `labels` of a data.yaml."""
    if len(labels) == 1:
        return {"label": labels[0].said}
    return {"labels": {one.name: one.said for one in labels}}  # in this order: the main one first


def nested(labels: Sequence[LogLabel], pairs: Sequence[LabelPair]) -> Mapping[str, str]:
    """By label a note on the one without which it is hardly ever 1: it may be given that."""
    rates = {one.name: float((one.labels_N == 1).mean()) for one in labels}
    notes: dict[str, str] = {}
    for pair in pairs:
        parent, child = pair.label, pair.given
        if pair.share is not None and pair.share >= _NESTED and rates[child] < rates[parent] and child not in notes:
            rows = f"{pair.share:.2%} of its {pair.rows:,} rows of 1"
            notes[child] = f"{parent} is 1 in {rows}; where it follows on that, say given: {parent}"
    return notes
