"""The label column as 0 and 1: by value, however it is spelled.

N rows.
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dmoe.config.raw_format import Label
from dmoe.errors import DataError
from dmoe.sources.rejects import BAD_LABEL, NO_CLASS, NO_LABEL
from dmoe.tokens.scalars import Fault, parse_number
from dmoe.values.coded_columns import Column, as_text, codes_of

_PLAIN: dict[float | str, Literal[0, 1]] = {0.0: 0, 1.0: 1, "false": 0, "true": 1}
# What people write for a click and for none, in lower case.
_PAIRS = [("1", "-1"), ("yes", "no"), ("y", "n"), ("t", "f"), ("true", "false"), ("on", "off")]
_PAIRS += [("click", "no click"), ("click", "noclick"), ("clicked", "not clicked")]
_PAIRS += [("positive", "negative"), ("pos", "neg")]


def value_of(text: str) -> float | str:
    """What two spellings of one label have in common: the number, true and false in small letters, or the text."""
    text = text.strip()
    number = parse_number(text)
    if not isinstance(number, Fault):
        return number
    return text.lower() if text in ("True", "TRUE", "False", "FALSE") else text


def label_parser(label: Label, missing: Collection[str]) -> Callable[[str | None], Literal[0, 1] | Fault]:
    """The function from a text, None for null, to its class."""
    plain = label.positive is None
    positive = {value_of(text) for text in label.positive or ()}
    negative = {value_of(text) for text in label.negative or ()}

    def parse(text: str | None) -> Literal[0, 1] | Fault:
        value = None if text is None else value_of(text)
        if plain and value in _PLAIN:
            return _PLAIN[value]
        if value in positive:
            return 1
        if value in negative:
            return 0
        if text is None or text.strip() == "" or text in missing:
            return 0 if label.missing == "negative" else Fault(NO_LABEL)
        if plain:
            return Fault(BAD_LABEL)
        return Fault(NO_CLASS) if negative else 0

    return parse


@dataclass(frozen=True, slots=True)
class Labels:
    """`reasons`: a reason and its rows, of which `text` gives the value."""

    labels_N: npt.NDArray[np.uint8]
    reasons: dict[str, npt.NDArray[np.intp]]
    text: Callable[[int], str]


def read_labels(column: Column, label: Label, missing: Collection[str], where: str) -> Labels:
    """Raises: DataError if without `positive` the column holds two other values than 0 and 1, or mostly such."""
    encoded = as_text(column, label.column).dictionary_encode()
    codes_N = codes_of(encoded)
    texts: list[str | None] = [*encoded.dictionary.to_pylist(), None]  # the last for null, whose code is -1
    parse = label_parser(label, missing)
    parsed = [parse(text) for text in texts]
    by_code = np.array([0 if isinstance(one, Fault) else one for one in parsed], dtype=np.uint8)
    reasons: dict[str, npt.NDArray[np.intp]] = {}
    for reason in dict.fromkeys(one.reason for one in parsed if isinstance(one, Fault)):
        codes = [code for code, one in enumerate(parsed) if isinstance(one, Fault) and one.reason == reason]
        rows = np.flatnonzero(np.isin(np.where(codes_N < 0, len(texts) - 1, codes_N), codes))
        if len(rows):
            reasons[reason] = rows
    if BAD_LABEL in reasons:
        counts = np.bincount(codes_N[codes_N >= 0], minlength=len(texts))
        present = Counter(
            {
                str(texts[code]): int(counts[code])
                for code, one in enumerate(parsed[:-1])
                if counts[code] and not (isinstance(one, Fault) and one.reason == NO_LABEL)
            }
        )
        _refuse_other_encodings(present, len(reasons[BAD_LABEL]), label, where)
    return Labels(by_code[codes_N], reasons, lambda row: texts[codes_N[row]] or "")


_FEW = 20
_SHARE_OF_TYPOS = 0.01


def _refuse_other_encodings(present: Counter[str], bad: int, label: Label, where: str) -> None:
    """Two values that are not 0 and 1 are an encoding, not mistakes; and so are values that are mostly others."""
    values: dict[float | str, str] = {}
    for text in present:
        values.setdefault(value_of(text), text)
    total = sum(present.values())
    two = len(values) == 2 and bad > _SHARE_OF_TYPOS * total
    if total < _FEW or not (two or 2 * bad > total):
        return
    texts = sorted(values.values())
    shown = " and ".join(texts) if len(texts) <= 2 else f"{', '.join(texts[:5])}{', …' if len(texts) > 5 else ''}"
    positive = guess_positive(texts) or min(texts, key=lambda text: (present[text], text))
    key = f"label: {{column: {quoted(label.column)}, positive: [{quoted(positive)}]}}"
    raise DataError(f"{where}: label '{label.column}' holds {shown}, not 0 and 1; say what a click is, as in `{key}`")


def guess_positive(texts: Collection[str]) -> str | None:
    """Which of two values means a click, None if it is not plain."""
    by_word = {str(value_of(text)).removesuffix(".0").lower(): text for text in texts}
    return next((by_word[yes] for yes, no in _PAIRS if {yes, no} == set(by_word)), None)


def quoted(text: str) -> str:
    """A text as it stands in a list of data.yaml."""
    safe = text.isprintable() and text == text.strip() and not set(text) & set("[]{},:#&*!|>'\"%@`?\\")
    return text if safe and text and text not in ("-", "~") else "'" + text.replace("'", "''") + "'"


def suggest_label(name: str, texts: Collection[str]) -> str | dict[str, object] | None:
    """What data.yaml says for a column of these values, None if it cannot be a label."""
    values = {value_of(text) for text in texts}
    if len(values) != 2:
        return None
    if values in ({0.0, 1.0}, {"true", "false"}):
        return name
    positive = guess_positive(texts)
    return None if positive is None else {"column": name, "positive": [positive]}
