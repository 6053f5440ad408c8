"""The texts that mean "no value"."""

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from dmoe.values.spelling import BOOLEANS, NUMBER_TEXT, PLAIN, day_text, number_text, parsed_time, time_text

pc: Any = pyarrow.compute
Column: TypeAlias = Any
_TEXT: pa.DataType = pa.string()


class MissingTexts:
    """The texts that mean "no value": a number among them in every plain spelling, truth values and times alike."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = set(texts)
        plain = [text for text in self.texts if PLAIN.fullmatch(text)]
        self._digits = {number_text(text, False) for text in plain}
        self.numbers = {float(text) for text in self.texts if NUMBER_TEXT.fullmatch(text)}
        for text in list(self.texts):
            if text in BOOLEANS:
                self.texts |= {word for word, value in BOOLEANS.items() if value == BOOLEANS[text]}
            time = parsed_time(text)
            if time is not None:
                self.texts |= {time, time_text(text, False), day_text(text, False)}
        self._pattern = "|".join(
            rf"{re.escape(text)}0*" if "." in text else rf"{'-?' if text == '0' else ''}{text}(?:\.0+)?"
            for text in sorted(self._digits)
        )

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __contains__(self, text: str) -> bool:
        if text in self.texts:
            return True
        return bool(self._digits) and PLAIN.fullmatch(text) is not None and number_text(text, False) in self._digits

    def among(self, values: Column) -> npt.NDArray[np.bool_]:
        """Where a column of texts, or nulls, has one of them; null is not among them."""
        found = pc.is_in(values, value_set=pa.array(sorted(self.texts), _TEXT))
        if self._digits:
            found = pc.or_(found, pc.fill_null(pc.match_substring_regex(values, f"^(?:{self._pattern})$"), False))
        there: npt.NDArray[np.bool_] = found.to_numpy(zero_copy_only=False)
        return there
