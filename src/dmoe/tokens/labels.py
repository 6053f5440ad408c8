"""Label columns as 0, 1 and unknown: by value, however it is spelled.

N rows, T labels.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from dmoe.config.data import DataConfig
from dmoe.config.labels import Contradictions, Label, TaskLabel
from dmoe.errors import DataError
from dmoe.schema import UNKNOWN
from dmoe.sources.rejects import BAD_LABEL, CONTRADICTION, NO_CLASS, NO_LABEL, NONE_KNOWN
from dmoe.tokens.scalars import Fault, parse_number
from dmoe.values.coded_columns import Codes, Column, as_text, codes_of

_PLAIN: dict[float | str, Literal[0, 1]] = {0.0: 0, 1.0: 1, "false": 0, "true": 1}
# What people write for a click and for none, in lower case.
_PAIRS = [("1", "-1"), ("yes", "no"), ("y", "n"), ("t", "f"), ("true", "false"), ("on", "off")]
_PAIRS += [("click", "no click"), ("click", "noclick"), ("clicked", "not clicked")]
_PAIRS += [("positive", "negative"), ("pos", "neg")]
_PAIRS += [("ja", "nein"), ("ja", "nee"), ("ja", "nej"), ("oui", "non"), ("si", "no"), ("sí", "no"), ("sì", "no")]
_PAIRS += [("sim", "não"), ("sim", "nao"), ("tak", "nie"), ("evet", "hayır"), ("да", "нет"), ("是", "否")]


def value_of(text: str) -> float | str:
    """What two spellings of one label have in common: the number, true and false in small letters, or the text."""
    text = text.strip()
    number = parse_number(text)
    if not isinstance(number, Fault):
        return number
    return text.lower() if text in ("True", "TRUE", "False", "FALSE") else text


def label_parser(label: Label, missing: Collection[str]) -> Callable[[str | None], Literal[0, 1, 2] | Fault]:
    """The function from a text, None for null, to its class, or `UNKNOWN`."""
    plain = label.positive is None
    positive = {value_of(text) for text in label.positive or ()}
    negative = {value_of(text) for text in label.negative or ()}

    lacking: dict[str, Literal[0, 2] | Fault] = {"reject": Fault(NO_LABEL), "negative": 0, "unknown": UNKNOWN}

    def parse(text: str | None) -> Literal[0, 1, 2] | Fault:
        value = None if text is None else value_of(text)
        if plain and value in _PLAIN:
            return _PLAIN[value]
        if value in positive:
            return 1
        if value in negative:
            return 0
        if text is None or text.strip() == "" or text in missing:
            return lacking[label.missing]
        if plain:
            return Fault(BAD_LABEL)
        return Fault(NO_CLASS) if negative else 0

    return parse


# A column, a reason, its rows, and the text of each.
Faulty: TypeAlias = tuple[str, str, npt.NDArray[np.intp], Callable[[int], str]]


@dataclass(frozen=True, slots=True)
class LabelColumn:
    """A label column, read: row n has text `codes_N[n]` of `texts`, null the last, and its class or fault in `parsed`.
    `where` is its file, `name` the label's among several."""

    codes_N: Codes
    texts: list[str | None]
    parsed: list[Literal[0, 1, 2] | Fault]
    label: Label
    where: str
    name: str = ""

    @property
    def said_N(self) -> npt.NDArray[np.uint8]:
        """0, 1 and `UNKNOWN`, which a fault is too."""
        by_code = [UNKNOWN if isinstance(one, Fault) else one for one in self.parsed]
        return np.array(by_code, dtype=np.uint8)[self.codes_N]

    def faults(self, meant_N: npt.NDArray[np.bool_] | None = None) -> list[Faulty]:
        """What is wrong in the rows where the label means something, by default all.

        Raises: DataError if without `positive` these hold two other values than 0 and 1, or mostly such.
        """
        codes_N = self.codes_N if meant_N is None else self.codes_N[meant_N]
        counts = np.bincount(codes_N % len(self.texts), minlength=len(self.texts))  # -1, null, is the last
        used = [(code, one) for code, one in enumerate(self.parsed) if counts[code]]
        found: list[Faulty] = []
        for reason in dict.fromkeys(one.reason for _, one in used if isinstance(one, Fault)):
            codes = [code for code, one in used if isinstance(one, Fault) and one.reason == reason]
            if reason == BAD_LABEL:
                said = [code for code, one in used if one != UNKNOWN and one != Fault(NO_LABEL)]
                present = Counter({str(self.texts[code]): int(counts[code]) for code in said})
                _refuse_other_encodings(present, int(counts[codes].sum()), self.label, self.where, self.name)
            at_fault_N = np.isin(self.codes_N % len(self.texts), codes)
            rows = np.flatnonzero(at_fault_N if meant_N is None else at_fault_N & meant_N)
            found.append((self.label.column, reason, rows, self._text))
        return found

    def _text(self, row: int) -> str:
        return self.texts[self.codes_N[row]] or ""


def read_label(column: Column, label: Label, missing: Collection[str], where: str, name: str = "") -> LabelColumn:
    """`missing`: texts that mean a missing value; else as `LabelColumn`."""
    encoded = as_text(column, label.column).dictionary_encode()
    texts: list[str | None] = [*encoded.dictionary.to_pylist(), None]
    parse = label_parser(label, missing)
    return LabelColumn(codes_of(encoded), texts, [parse(text) for text in texts], label, where, name)


_FEW = 20
_SHARE_OF_TYPOS = 0.01


def is_other_encoding(values: int, bad: int, rows: int) -> bool:
    """Two values that are not 0 and 1 are an encoding, not mistakes; and so are values that are mostly others.

    `values`: different ones, in so many `rows`, of which `bad` are neither 0 nor 1.
    """
    return (values == 2 and bad > _SHARE_OF_TYPOS * rows) or 2 * bad > rows


def _refuse_other_encodings(present: Counter[str], bad: int, label: Label, where: str, name: str) -> None:
    values: dict[float | str, str] = {}
    for text in present:
        values.setdefault(value_of(text), text)
    total = sum(present.values())
    if total < _FEW or not is_other_encoding(len(values), bad, total):
        return
    texts = sorted(values.values())
    shown = " and ".join(texts) if len(texts) <= 2 else f"{', '.join(texts[:5])}{', …' if len(texts) > 5 else ''}"
    positive = guess_positive(texts) or min(texts, key=lambda text: (present[text], text))
    says = f"{{column: {quoted(label.column)}, positive: [{quoted(positive)}]}}"
    key = f"labels: {{{quoted(name)}: {says}}}" if name else f"label: {says}"
    raise DataError(f"{where}: label '{label.column}' holds {shown}, not 0 and 1; say what a click is, as in `{key}`")


@dataclass(frozen=True, slots=True)
class TaskLabels:
    """Labels (N, T) of 0, 1 and `UNKNOWN`; where a column says 1 and that of the label that it is given 0."""

    labels_NT: npt.NDArray[np.uint8]
    contradicts_NT: npt.NDArray[np.bool_]
    faults: list[Faulty]

    def kept(self, keep_N: npt.NDArray[np.bool_]) -> "TaskLabels":
        """Those of some rows."""
        return TaskLabels(self.labels_NT[keep_N], self.contradicts_NT[keep_N], [])


def read_tasks(
    columns: Mapping[str, Column], config: DataConfig, where: str, *, scoring: bool = False
) -> TaskLabels | None:
    """All labels of these rows. For `scoring`, a label without its column is unknown, None is given where no label has
    one, and no row is at fault for what its labels say together.

    Raises: DataError as `LabelColumn.faults`.
    """
    tasks = config.tasks
    read = {
        task: read_label(columns[label.column], label, config.format.missing, where, name if len(tasks) > 1 else "")
        for task, (name, label) in enumerate(tasks.items())
        if not scoring or label.column in columns
    }
    if not read:
        return None
    said_TN = {task: one.said_N for task, one in read.items()}
    said_NT = np.full((len(next(iter(said_TN.values()))), len(tasks)), UNKNOWN, dtype=np.uint8)
    for task, said_N in said_TN.items():
        said_NT[:, task] = said_N
    given = given_of(tasks)
    labels_NT, contradicts_NT = masked(said_NT, given, config.contradictions)
    faults: list[Faulty] = []
    for task, one in read.items():
        parent = given[task]
        # Where a label has no meaning it does not matter what its column says.
        faults += one.faults(None if parent is None else labels_NT[:, parent] == 1)
    if not scoring:
        if config.contradictions == "reject":
            for label, contradicts_N in zip(tasks.values(), contradicts_NT.T, strict=True):
                faults.append((label.column, CONTRADICTION, np.flatnonzero(contradicts_N), lambda _: "1"))
        unknown = np.flatnonzero((labels_NT == UNKNOWN).all(1))
        faults.append((next(iter(tasks.values())).column, NONE_KNOWN, unknown, lambda _: ""))
    return TaskLabels(labels_NT, contradicts_NT, faults)


def given_of(tasks: Mapping[str, TaskLabel]) -> tuple[int | None, ...]:
    """For each label the number of the one that it is given."""
    numbers = {name: number for number, name in enumerate(tasks)}
    return tuple(None if label.given is None else numbers[label.given] for label in tasks.values())


def masked(
    said_NT: npt.NDArray[np.uint8], given: Sequence[int | None], contradictions: Contradictions
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """What the label columns say, as labels: a label is unknown where the one that it is given is not 1.

    With `raise-parent` a label of 1 makes the ones that it is given 1 where they are 0, up to the root.

    Returns: labels (N, T) of 0, 1 and `UNKNOWN`, and where a column says 1 and that of the label that it is given 0.
    """
    labels_NT = said_NT.copy()
    contradicts_NT = np.zeros(said_NT.shape, dtype=bool)
    order = _roots_first(given)
    for task in reversed(order):
        parent = given[task]
        if parent is not None:
            contradicts_NT[:, task] = (said_NT[:, task] == 1) & (said_NT[:, parent] == 0)
            if contradictions == "raise-parent":
                labels_NT[(labels_NT[:, task] == 1) & (labels_NT[:, parent] == 0), parent] = 1
    for task in order:
        parent = given[task]
        if parent is not None:
            labels_NT[labels_NT[:, parent] != 1, task] = UNKNOWN
    return labels_NT, contradicts_NT


def _roots_first(given: Sequence[int | None]) -> list[int]:
    """The labels, each after the one that it is given."""

    def depth(task: int) -> int:
        parent = given[task]
        return 0 if parent is None else 1 + depth(parent)

    return sorted(range(len(given)), key=depth)


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
