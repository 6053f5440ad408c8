"""What kind of field a column makes: each reading is tried on later rows before it is chosen.

N rows, V distinct texts.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dmoe.inspection.columns import JOINT, TextColumn
from dmoe.inspection.information import Floats, mutual_information
from dmoe.inspection.lists import Parts, candidates, joined_parts, written_lists
from dmoe.inspection.times import Times, looks_like_times, named_like_a_time, read_times
from dmoe.inspection.trial import ReadingTrial, Trial, better
from dmoe.values.coded_columns import pc

MISSING_WORDS = ("NA", "N/A", "null", "NULL", "None", "nan", "NaN", "\\N")
MIN_COUNTS = (1, 2, 5, 10)
# Of a session's or request's id: values that come in few rows, nearly none of them in later ones.
_FRESH_DISTINCT, _FRESH = 0.4, 0.95
_FEW_VALUES = 20
_FEW_DECIMALS = 100
_NUMBER_GROUPS = 50
_MOST_LENGTH = 50
_SURE = 3.0  # standard errors
_MUCH = 1.05  # times the bits
_NUMBER = r"^[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*$"
# Names of things, which are no counts though they be small numbers.
_ID = re.compile(r"(^|[_ .-])(id|ids|uid|uuid|gid|segid|code)($|[_ .-])|[a-z](Id|ID|Code)$")
_FRACTION = r"\.[0-9]*[1-9]|[eE]-"


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """`kind`: categorical, multi-valued, numeric, time, row id, constant or left out. `information`: bits about the
    label.

    `format` is that of a time, or the separator of a multi-valued column, of which `length` is the most values of a
    row; `top` holds the most frequent texts with their rows. `note`: what else the column may be, or why it is left
    out. `missing_words`: texts that mean a missing number. `also_categorical`: a time whose values themselves tell more
    than its hours. `unseen`: least count of a token -> the share of later rows without one.
    """

    name: str
    kind: str
    distinct: int
    missing: float
    information: float
    top: list[tuple[str, int]]
    format: str | None = None
    length: int = 1
    note: str | None = None
    missing_words: tuple[str, ...] = ()
    also_categorical: bool = False
    unseen: dict[int, float] = field(default_factory=dict)
    gains: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """The facts of a column, its times if it holds some, the numbers of its texts if it holds those."""

    facts: ColumnFacts
    times: Times | None = None
    numbers_V: Floats | None = None


def left_out(name: str, why: str) -> Found:
    return Found(ColumnFacts(name, "left out", 0, 0.0, 0.0, [], note=why))


class Reader:
    """Finds the kinds of the columns of one log; `judge` has its first rows."""

    def __init__(self, labels_N: npt.NDArray[np.integer], judge: ReadingTrial) -> None:
        self.labels_N, self.judge = labels_N, judge

    def read(self, column: TextColumn) -> Found:
        counts_V = column.counts_V
        rows = int(counts_V.sum())
        order = np.argsort(-counts_V, kind="stable")[: 5 + len(MISSING_WORDS)].tolist()
        frequent = [(column.texts[code].as_py().replace(JOINT, ", "), int(counts_V[code])) for code in order]
        choice = self._choose(column, frequent, rows)
        top = [one for one in frequent if one[0] not in choice.missing_words][:5]
        groups = len(column.texts)
        groups_V: npt.NDArray[np.int64] = np.arange(groups + 1)
        if choice.numbers_V is not None:
            groups = _NUMBER_GROUPS
            groups_V = np.append(_number_groups(choice.numbers_V, counts_V), groups)
            rows -= int(counts_V[np.isnan(choice.numbers_V)].sum())
        codes_N = groups_V[np.where(column.codes_N < 0, len(column.texts), column.codes_N)]
        clicked = self.labels_N == 1
        information = mutual_information(
            np.bincount(codes_N, minlength=groups + 1), np.bincount(codes_N[clicked], minlength=groups + 1)
        )
        unseen: dict[int, float] = {}
        gains: dict[int, float] = {}
        if choice.kind == "categorical" or choice.also_categorical:
            unseen, gains = self._unseen(column)
        fresh = len(column.texts) > _FRESH_DISTINCT * rows and unseen.get(1, 0) > _FRESH
        if choice.kind == "categorical" and choice.note is None and fresh:
            choice = _Choice("row id", note=f"{unseen[1]:.0%} of later rows have a value that no earlier row has")
            unseen, gains = {}, {}
        facts = ColumnFacts(
            column.name,
            choice.kind,
            len(column.texts) - len(choice.missing_words),
            1 - rows / len(column.codes_N),
            information,
            top,
            choice.format,
            choice.length,
            choice.note,
            choice.missing_words,
            choice.also_categorical,
            unseen,
            gains,
        )
        return Found(facts, choice.times, choice.numbers_V)

    def _choose(self, column: TextColumn, top: list[tuple[str, int]], rows: int) -> "_Choice":
        distinct = len(column.texts)
        if not distinct:
            return _Choice("constant", note="has no value")
        if distinct == 1 and rows == len(column.codes_N):
            return _Choice("constant")
        if column.listed:
            parts = joined_parts(column, JOINT)
            return _Choice("multi-valued", length=min(parts.length, _MOST_LENGTH))
        some = column.texts.slice(0, 1000).to_pylist()
        if written_lists(some):
            return _Choice(
                "categorical",
                note="holds lists as Python or JSON write them; write 5|6 for [5, 6] to have it multi-valued",
            )
        tokens = self._tokens(column)
        note = looks_like_times(some)
        note = None if note is None else f"may be {note}"
        times = read_times(column.texts.to_pylist()) if read_times(some) is not None else None
        if times is not None:
            choice = self._time(column, times, tokens)
            if choice is not None:
                return choice
            note = f"may be times ({times.format}); as a category it tells as much"
        if note is None:
            choice = self._lists(column, tokens)
            if choice is not None and choice.kind == "multi-valued":
                return choice
            note = choice.note if choice is not None else None
        return self._number_or_category(column, top, rows, tokens, note)

    def _row_codes(self, column: TextColumn) -> npt.NDArray[np.int64]:
        """Of the judged log's rows; missing ones have the code behind the last."""
        codes_N = column.codes_N[: len(self.judge.labels_N)].astype(np.int64)
        return np.where(codes_N < 0, len(column.texts), codes_N)

    def _tokens(self, column: TextColumn) -> Trial | None:
        return self.judge.tokens(self._row_codes(column), len(column.texts) + 1) if self.judge.able else None

    def _unseen(self, column: TextColumn) -> tuple[dict[int, float], dict[int, float]]:
        """By least count: the share of later rows whose value has no token, and the bits that the field tells them."""
        if not self.judge.able:
            return {}, {}
        codes_N, size = self._row_codes(column), len(column.texts) + 1
        counts_V = np.bincount(codes_N[self.judge.fit_N], minlength=size)
        judged = codes_N[~self.judge.fit_N]
        unseen, gains = {}, {}
        for least in MIN_COUNTS:
            rare_V = counts_V < least
            rare_V[-1] = False
            unseen[least] = float(rare_V[judged].mean())
            together = self.judge.tokens(np.where(rare_V[codes_N], size, codes_N), size + 1)
            gains[least] = self.judge.gain(together)
        return unseen, gains

    def _time(self, column: TextColumn, times: Times, tokens: Trial | None) -> "_Choice | None":
        """A time if it is written as one, or if digits that might be one are ordered, named or telling as such."""
        loses, tells = False, False
        if tokens is not None:
            codes_N, gone = self._row_codes(column), 7 * 24
            hours = self.judge.tokens(np.append(times.hours_V, 24)[codes_N], 25)
            weeks = self.judge.tokens(np.append(times.weekdays_V * 24 + times.hours_V, gone)[codes_N], gone + 1)
            derived = max(hours, weeks, key=self.judge.gain)
            loses = self._much_better(tokens, derived)
            tells = self._much_better(derived, tokens)
        if times.digits and (loses or not (named_like_a_time(column.name) or times.rising(column) > 0.98 or tells)):
            return None
        note = None
        if loses:
            note = "a time whose values themselves tell more than their hours: also a category"
        return _Choice("time", times.format, note=note, times=times, also_categorical=loses)

    def _much_better(self, one: Trial, other: Trial) -> bool:
        gain = self.judge.gain
        return better(one, other) > _SURE and gain(one) > max(_MUCH * gain(other), 1e-4)

    def _lists(self, column: TextColumn, tokens: Trial | None) -> "_Choice | None":
        """Several values if that loses nothing: it tells more, or no less of texts that are mostly new."""
        found: list[tuple[float, Parts, Trial | None]] = []
        for one in candidates(column):
            if tokens is None:
                found.append((0.0, one, None))
                continue
            codes_N = column.codes_N[: len(self.judge.labels_N)]
            tried = self.judge.bag(*one.by_row(codes_N), one.size)
            found.append((self.judge.gain(tried), one, tried))
        if not found:
            return None
        _, parts, trial = max(found, key=lambda one: one[0])
        shown = {"\x01": "\\x01", "\t": "\\t"}.get(parts.separator, parts.separator)
        note = f"may hold several values with '{shown}' between them (multi_valued)"
        if tokens is None or trial is None:
            return _Choice("categorical", note=note)
        known = better(trial, tokens) > -2 and tokens.unseen - trial.unseen > 0.2 and parts.lists
        if self._much_better(trial, tokens) or known:
            return _Choice("multi-valued", parts.separator, min(parts.length, _MOST_LENGTH))
        return _Choice("categorical", note=note)

    def _number_or_category(
        self, column: TextColumn, top: list[tuple[str, int]], rows: int, tokens: Trial | None, note: str | None
    ) -> "_Choice":
        texts = column.texts
        distinct = len(texts)
        fits = pc.match_substring_regex(texts, _NUMBER).to_numpy(zero_copy_only=False)
        words = tuple(texts.filter(~fits).slice(0, len(MISSING_WORDS) + 1).to_pylist())
        unique = distinct >= 0.999 * rows and rows > 100
        if not fits.any() or not set(words) <= set(MISSING_WORDS) or distinct - len(words) < 3:
            if unique and note is None:
                return _Choice("row id", note="another value in each row")
            if (said := [word for word in MISSING_WORDS if word in words]) and set(words) != set(said):
                note = note or f"'{said[0]}' is a value; if it means a missing one, add it to missing_values"
            return _Choice("categorical", note=note)
        numbers_V = np.full(distinct, np.nan)
        numbers_V[fits] = [float(text) for text in texts.filter(fits).to_pylist()]
        numbers_V[np.abs(numbers_V) > 3.4e38] = np.nan
        given = numbers_V[fits]
        fraction = bool(pc.any(pc.match_substring_regex(texts.filter(fits), _FRACTION)).as_py())
        often = [text for text, _ in top if text not in words][:3]
        counts = not fraction and not unique and any(float(text) in (0, 1, 2) for text in often)
        counts = counts and len(given) > _FEW_VALUES and not _ID.search(column.name)
        if unique and not fraction and (np.diff(numbers_V[column.codes_N[column.codes_N >= 0]]) > 0).all():
            return _Choice("row id", note=note or "rises with the row")
        natural = counts or (fraction and len(given) > _FEW_DECIMALS)
        number = _Choice("numeric", missing_words=words, numbers_V=numbers_V, note=note)
        told = ""
        if tokens is not None:
            trial = self.judge.numbers(np.append(numbers_V, np.nan)[self._row_codes(column)])
            told = f": it tells {self.judge.gain(trial):.4f} bits of later rows as a number"
            told += f", {self.judge.gain(tokens):.4f} as a category"
            if self._much_better(tokens, trial):
                return _Choice("categorical", note=note or (f"may be a number{told}" if natural else None))
            if self._much_better(trial, tokens) and (natural or fraction or tokens.unseen > 0.5):
                return number
            if not natural and self._much_better(trial, tokens):
                return _Choice("categorical", note=note or f"may be a number{told}")
        if natural:
            return number
        if unique and not fraction:
            return _Choice("row id", note=note or "another value in each row")
        if fraction:
            note = note or f"may be a number{told}, or a version"
        elif note is None and len(given) > _FEW_VALUES and not self._is_code(texts):
            note = f"may be a number{told}"
        return _Choice("categorical", note=note)

    @staticmethod
    def _is_code(texts: object) -> bool:
        """Digits that are all of one length, with zeros in front, or long: names of things."""
        lengths = pc.utf8_length(texts)
        zeros = pc.any(pc.match_substring_regex(texts, "^0[0-9]")).as_py()
        return bool(zeros) or pc.min(lengths).as_py() >= 3


@dataclass(frozen=True, slots=True)
class _Choice:
    kind: str
    format: str | None = None
    length: int = 1
    note: str | None = None
    missing_words: tuple[str, ...] = ()
    also_categorical: bool = False
    times: Times | None = None
    numbers_V: Floats | None = None


def _number_groups(numbers_V: Floats, counts_V: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers in groups of about equal rows, from 0 to `_NUMBER_GROUPS` - 1; NaN is one more."""
    given = ~np.isnan(numbers_V)
    counts = counts_V * given
    order = np.argsort(numbers_V, kind="stable")
    below = np.cumsum(counts[order]) - counts[order]
    groups = np.empty(len(numbers_V), dtype=np.int64)
    groups[order] = below * _NUMBER_GROUPS // max(int(counts.sum()), 1)
    groups[~given] = _NUMBER_GROUPS
    return groups
