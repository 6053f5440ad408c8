"""Whether rejected rows are few and by chance: rows that are lost for a reason make another log of the rest.

R rejected rows, T rows in all.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import hypergeom, kstest

from dmoe.errors import DataError
from dmoe.sources.delimited import RawRows
from dmoe.sources.rejects import NO_LABEL, REPEATED_HEADER, Reject, RejectLog, kind_of, shorten
from dmoe.tokens.fields import FieldRows

# Fewer rejects say nothing, and up to one row in so many is few.
HANDFUL = 5
FEW = 1000
# Chance alone shows a difference as large in less than this share of preparations.
SIGNIFICANCE = 1e-3
# So many are never few.
MOST = 1000
# Rows beside the rejected ones that tell what the others are like.
WITNESSES = 200


@dataclass
class Evidence:
    """The values of rejected rows, of some of the others, and where the rejected ones stood.

    `rejected`: the rejects whose other columns could be read, with their texts by column. `others`: texts of encoded
    rows. `places`: positions among all lines that were read.
    """

    rejected: list[tuple[Reject, Mapping[str, str]]] = field(default_factory=list)
    others: list[Mapping[str, str]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    num_lines: int = 0
    num_rows: int = 0

    def add(self, entry: Mapping[str, Any], judged: Callable[[Reject], bool]) -> None:
        """Takes what the journal says of a piece; only rejects that are judged count."""
        rejects = [Reject(*values) for values in entry["rejects"]]
        lines = entry["rows"] + len(rejects) + entry["blank_lines"]
        self.rejected += [(rejects[index], values) for index, values in entry["faulty"] if judged(rejects[index])]
        self.others += entry["others"]
        places = [min(one.line - entry["first_line"], lines - 1) for one in rejects if judged(one)]
        self.places += [self.num_lines + place for place in places]
        self.num_lines += lines
        self.num_rows += entry["rows"] + len(rejects)

    def telling(self) -> str | None:
        """What sets the rejected rows apart from the others beyond chance: the most telling difference, or None.

        For each column, each frequent value by Fisher's exact test, and the range of numbers, which R draws from the
        same rows would cover so narrowly with probability R s^(R-1) - (R-1) s^R, s the share of the others in it; for
        the place, Kolmogorov-Smirnov against a uniform one. Bonferroni over all of them.
        """
        found: list[tuple[float, str]] = []
        tests = 1
        if len(self.places) >= HANDFUL:
            low, high = min(self.places) + 1, max(self.places) + 1
            p = float(kstest([(place + 0.5) / self.num_lines for place in self.places], "uniform").pvalue)
            found.append((p, f"they stand at rows {low:,} to {high:,} of the {self.num_lines:,} that were read"))
        for name in dict.fromkeys(name for row in self.others for name in row):
            mine = [row[name] for reject, row in self.rejected if reject.column != name and name in row]
            rest = [row[name] for row in self.others]
            if len(mine) < HANDFUL or not rest:
                continue
            ranges = _range(name, mine, rest)
            values = [(value, count) for value, count in Counter(mine).most_common(20) if count > 1]
            tests += len(values) + len(ranges)
            found += ranges
            seen = Counter(rest)
            for value, count in values:
                p = float(hypergeom.sf(count - 1, len(mine) + len(rest), count + seen[value], len(mine)))
                share = seen[value] / len(rest)
                found.append((p, f"{name} is {value!r} in {count:,} of {len(mine):,}, but in {share:.1%} of the rest"))
        if not found:
            return None
        p, text = min(found, key=lambda one: one[0])
        return text if p * tests < SIGNIFICANCE else None


def _range(name: str, mine: Sequence[str], rest: Sequence[str]) -> list[tuple[float, str]]:
    try:
        numbers, others = [float(text) for text in mine], [float(text) for text in rest if text]
    except ValueError:
        return []
    low, high = min(numbers), max(numbers)
    share = sum(low <= number <= high for number in others) / max(len(others), 1)
    count = len(numbers)
    p = count * share ** (count - 1) - (count - 1) * share**count
    return [(p, f"{name} is from {low:g} to {high:g}, as in {share:.1%} of the rest")]


def witnesses(raw: RawRows, rows: FieldRows) -> dict[str, Any]:
    """What the journal keeps of a piece with rejects: texts of its rejected rows, as far as their lines could be read,
    and of some others, evenly spaced."""
    first = min([*raw.lines_N[:1].tolist(), *(one.line for one in rows.rejects[:1])], default=1)
    found: dict[str, Any] = {"first_line": first, "faulty": [], "others": []}
    if not rows.rejects:
        return found
    faulty = [index for index, one in enumerate(rows.rejects) if one.column is not None][:1000]
    places = np.searchsorted(raw.lines_N, [rows.rejects[index].line for index in faulty])
    found["faulty"] = [(index, _texts(raw, place)) for index, place in zip(faulty, places.tolist(), strict=True)]
    step = max(len(rows) // WITNESSES, 1)
    others = np.searchsorted(raw.lines_N, rows.lines_N[::step][:WITNESSES])
    found["others"] = [_texts(raw, place) for place in others.tolist()]
    return found


def _texts(raw: RawRows, place: int) -> dict[str, str]:
    values = {name: column[place].as_py() for name, column in raw.columns.items()}
    return {name: "" if value is None else shorten(str(value)) for name, value in values.items()}


def form_of(rejects: Sequence[Reject]) -> str | None:
    """What the texts at fault look like, if nine in ten look alike: digits as 9, letters as a."""
    texts = [reject.text for reject in rejects if reject.column is not None]
    if not texts:
        return None
    forms = Counter(re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", text)) for text in texts)
    form, count = forms.most_common(1)[0]
    if count < 0.9 * len(rejects):
        return None
    return f"{count:,} of {len(rejects):,} are of the form '{form}' (9: digits, a: letters)"


@dataclass
class RejectLimits:
    """Stops on rejected rows that are more than allowed, not few, or not by chance.

    `most`: how many are allowed whatever they are; None for the rule of few and by chance. Reasons that are `allowed`
    are not judged, nor is a repeated header, with which nothing is lost.
    """

    most: int | None
    allowed: tuple[str, ...]
    log: RejectLog = field(default_factory=RejectLog)
    evidence: Evidence = field(default_factory=Evidence)

    @property
    def limit(self) -> int:
        return MOST if self.most is None else self.most

    def counts(self, reject: Reject) -> bool:
        """Whether a reject is judged."""
        kind = kind_of(reject.reason)
        return kind != REPEATED_HEADER and kind not in self.allowed

    def add(self, entry: Mapping[str, Any]) -> None:
        """Takes a piece. Raises: DataError when rejects are more than allowed, or the first `MOST` rows are all."""
        self.log.rejects += [Reject(*values) for values in entry["rejects"]]
        self.evidence.add(entry, self.counts)
        encoded = self.evidence.num_rows - len(self.log.rejects)
        if not encoded and len(self.log.rejects) >= MOST:
            raise DataError(f"the first {len(self.log.rejects):,} rows were all rejected, the first:\n{self._text()}")
        judged = self._judged()
        if len(judged) > self.limit:
            more = f"more than {self.limit} rows were rejected" if self.limit else "a row was rejected"
            raise DataError(f"{more}, the first:\n{self._text()}")

    def finish(self) -> None:
        """Raises: DataError if every row was rejected, or those that were are not few or not by chance."""
        judged, rows = self._judged(), self.evidence.num_rows
        if self.log.rejects and rows == len(self.log.rejects):
            raise DataError(f"every row was rejected, the first:\n{self._text()}")
        if self.most is not None or len(judged) < HANDFUL:
            return
        some = f"{len(judged):,} of {rows:,} rows ({len(judged) / rows:.2%}) were rejected"
        if len(judged) * FEW > rows:
            raise DataError(f"{some}, which is more than one in {FEW:,}, the first:\n{self._text()}")
        if self.evidence.telling() is not None:
            raise DataError(f"{some}, and not by chance, the first:\n{self._text()}")

    def _judged(self) -> list[Reject]:
        return [one for one in self.log.rejects if self.counts(one)]

    def _text(self) -> str:
        judged = self._judged() or self.log.rejects
        lines = [RejectLog(judged).describe()]
        where = Counter(
            kind_of(one.reason) + ("" if one.column is None else f" in column '{one.column}'") for one in judged
        )
        lines += [f"  {count:,} {what}" for what, count in where.most_common(5)]
        form, telling = form_of(judged), self.evidence.telling()
        lines += [f"  {form}"] if form is not None and len(judged) > 1 else []
        lines += [f"  What sets them apart: {telling}"] if telling is not None else []
        kinds = " ".join(f"--allow-rejects '{kind}'" for kind in dict.fromkeys(kind_of(one.reason) for one in judged))
        if any(one.reason == NO_LABEL for one in judged):
            lines.append(
                "  Rows without a label can count as rows without a click: label: {column: …, missing: negative}"
            )
        lines.append(f"Fix the input, or allow these by {kinds}, or so many of any kind by --max-rejects N")
        return "\n".join(lines)
