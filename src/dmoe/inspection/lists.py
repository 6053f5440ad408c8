"""Texts that hold several values: what stands between them.

E values of all rows, V distinct texts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.inspection.columns import TextColumn
from dmoe.inspection.information import Integers
from dmoe.values.coded_columns import Column, pc

SEPARATORS = ("|", "^", ";", "\x01", "\t", ", ", ",", ":", " ")
_LEAST_TEXTS = 20
_WRITTEN_LIST = re.compile(r"\s*(\[.*\]|\(.*\)|\{.*\})\s*", re.DOTALL)
_GROUPED_NUMBER = r"^[^0-9a-zA-Z]{0,2}[0-9]{1,3}(,[0-9]{3})*([.,][0-9]+)?[^0-9a-zA-Z]{0,2}$"


@dataclass(frozen=True, slots=True)
class Parts:
    """The distinct texts taken apart at `separator`: `values` with codes, as offsets into them by text.

    `lists`: whether the texts are lists by their form, of several lengths.
    """

    separator: str
    codes_E: Integers
    text_of_E: Integers
    size: int
    length: int
    lists: bool

    def by_row(self, codes_N: npt.NDArray[np.integer]) -> tuple[Integers, Integers]:
        """The values of all rows, and the row of each."""
        texts = int(codes_N.max(initial=-1)) + 1
        counts_V = np.bincount(self.text_of_E, minlength=texts + 1)
        starts_V = np.cumsum(counts_V) - counts_V
        rows = np.flatnonzero(codes_N >= 0)
        counts_N = counts_V[codes_N[rows]]
        row_of_E = np.repeat(rows, counts_N)
        place_E = np.arange(len(row_of_E)) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
        return self.codes_E[np.repeat(starts_V[codes_N[rows]], counts_N) + place_E], row_of_E


def written_lists(texts: list[str]) -> bool:
    """Whether these are lists as Python, JSON or numpy write them."""
    return sum(_WRITTEN_LIST.fullmatch(text) is not None for text in texts) > len(texts) / 2


def split_at(texts: Column, separator: str) -> Parts:
    lists = pc.split_pattern(texts, separator)
    values = pc.list_flatten(lists).dictionary_encode()
    codes = values.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    text_of = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    given = pc.not_equal(values.dictionary, "").to_numpy(zero_copy_only=False)[codes]
    lengths = np.bincount(text_of, minlength=len(texts))
    several = lengths[lengths > 1]
    return Parts(
        separator,
        codes[given],
        text_of[given],
        len(values.dictionary),
        int(lengths.max(initial=1)),
        len(np.unique(several)) > 1 or bool((lengths == 1).any()),
    )


def candidates(column: TextColumn) -> Iterator[Parts]:
    """Separators that many texts hold and whose parts come again in other texts."""
    texts = column.texts
    numbers = pc.all(pc.match_substring_regex(texts, _GROUPED_NUMBER)).as_py()
    for separator in SEPARATORS:
        holds = pc.match_substring(texts, separator)
        number = pc.sum(holds).as_py() or 0
        if number < max(0.2 * len(texts), _LEAST_TEXTS):
            continue
        if separator == "," and (pc.sum(pc.match_substring(texts, ", ")).as_py() or 0) > 0.9 * number:
            continue  # the space belongs to it
        found = split_at(texts, separator)
        if numbers:
            found = replace(found, lists=False)  # 12,5 may be a number too
        if 2 * found.size <= number and (found.lists or numbers or _one_pool(texts.filter(holds), separator)):
            yield found


def _one_pool(texts: Column, separator: str) -> bool:
    """Whether the first parts of texts of one length are mostly second parts of others: else it is a key of parts."""
    lists = pc.split_pattern(texts, separator)
    first, second = (set(pc.list_element(lists, index).to_pylist()) for index in (0, 1))
    return 2 * len(first & second) > min(len(first), len(second))


def joined_parts(column: TextColumn, joint: str) -> Parts:
    """Those of a column of lists."""
    texts = column.texts if len(column.texts) else pa.array([""], pa.large_string())
    return split_at(texts, joint)
