"""The one text of a value, whoever carries it: how the values of a field are written, which type that makes of the
field, and the text by which the field knows a value.

What a column holds is first a text: its own where it is text, else the canonical one of its type (`coded.as_text`).
`forms_of` says how such texts are written, as a set that merges piece by piece; the type of a field is a function of
that set alone (`ValueForm.of`); `ValueForm.token` is the canonical text of a value under a type.
V distinct values.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from pydantic import BaseModel, ConfigDict

from dmoe.errors import DataError
from dmoe.values.spelling import (
    BOOLEANS,
    CLOCK,
    CLOCK_TEXT,
    DATE,
    INFINITY,
    INFINITY_TEXT,
    NUMBER_LIKE,
    NUMBER_TEXT,
    PLAIN,
    RULES,
    UUID,
    UUID_TEXT,
    Kind,
    clock_text,
    float_text,
    is_clock,
    number_text,
    parsed_time,
)

pc: Any = pyarrow.compute
Column: TypeAlias = Any
# How values are written, each form with the least text that shows it; of a carrier, "from …", with its type's name.
Forms: TypeAlias = dict[str, str]
Carriers: TypeAlias = Mapping[str, str]  # what types a column came in, beside text: "number" -> "int64"

# What table readers take for "no value" unless told otherwise.
READER_WORDS = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
)
_WORDS = frozenset(READER_WORDS)
_TEXT: pa.DataType = pa.string()

# What may be more than text; the rest of a column costs one look.
_CANDIDATE = rf"^(?:{NUMBER_LIKE}|(?i:{INFINITY})|{DATE}(?:[T ].*)?|{CLOCK}|{UUID}|(?i:true|false))$"
_DIGITS = r"^(?:0|-?[1-9][0-9]*)$"

_ODDITIES = {
    "leading zeros": "leading zeros",
    "exponent": "exponents",
    "plus sign": "plus signs",
    "bare point": "points without a digit beside them",
    "spaces": "spaces around numbers",
    "infinity": "infinities",
    "precise": "more digits than a float holds",
}
_WRITTEN_OTHERWISE = {
    "whole": "whole numbers written otherwise",
    "trailing": "trailing zeros",
    "Boolean": "truth values written otherwise than true and false",
    "Time": "times written otherwise than YYYY-MM-DD HH:MM:SS",
    "Moment": "times of a zone",
    "Clock": "times of day written otherwise",
    "Uuid": "UUIDs in capitals",
}
# By what a value comes in: the forms that such a value has lost.
_LOST = {
    "number": (*_ODDITIES, "whole", "trailing"),
    "boolean": ("Boolean",),
    "time": ("date", "Time", "Moment"),
    "date": ("midnight", "Time"),
    "clock": ("Clock",),
    "uuid": ("Uuid",),
}
_CONTENT = frozenset(
    ("text", "bit", "integer", "fraction", "boolean", "date", "midnight", "time", "moment", "clock", "uuid")
) | frozenset(_ODDITIES)


class MissingWordsWarning(UserWarning):
    """A column has missing values where training had words, as `NA`, that table readers take for missing."""


class LostFormError(DataError):
    """A column comes in a type that cannot hold what told the values in training; `bare` shows none of them."""

    def __init__(self, name: str, kind: str, form: str, text: str) -> None:
        start = f"column '{name}' was text with {form}"
        end = (
            f" in training and comes as {kind} here, which has lost them; "
            f"read it as text, as by pandas.read_csv(..., dtype={{'{name}': str}})"
        )
        super().__init__(f"{start} (such as '{text}'){end}")
        self.bare = start + end


class ValueForm(BaseModel):
    """What training made of the values of a field: their type, and what only their texts have.

    `lost` has, by what values may come in (number, boolean, time, date, clock, uuid), what such values of a text field
    have lost, each with an example. `bits`: an integer field of 0 and 1 only. `words`: tokens that table readers take
    for missing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Kind = "text"
    bits: bool = False
    lost: dict[str, dict[str, str]] = {}
    words: tuple[str, ...] = ()

    @staticmethod
    def of(forms: Forms) -> "ValueForm":
        """The type of a field whose values are written in these forms."""
        kind = _kind(forms)
        return ValueForm(
            kind=kind,
            bits=kind == "integer" and "integer" not in forms,
            lost=_lost(forms) if kind == "text" else {},
            words=_words(forms),
        )

    def grown(self, forms: Forms) -> "ValueForm":
        """The same type, with what further values add to it."""
        lost = dict(self.lost)
        if self.kind == "text":
            for carrier, more in _lost(forms).items():
                lost[carrier] = more | lost.get(carrier, {})
        return self.model_copy(update={"lost": lost, "words": tuple(sorted({*self.words, *_words(forms)}))})

    def token(self, text: str) -> str:
        """The canonical text of a value; a text that is none of the type's stays as it is written."""
        return RULES[self.kind](text, self.bits)

    def keeps(self, forms: Forms) -> bool:
        """Whether `token` leaves all values of these forms as they are."""
        others = {
            "text": (),
            "boolean": ("bit", "whole"),
            "date": ("midnight",),
            "time": ("date",),
            "integer": ("boolean",) if self.bits else (),
        }.get(self.kind, ())
        return self.kind == "text" or not forms.keys() & {*_WRITTEN_OTHERWISE, *others}

    def lost_form(self, carriers: Carriers) -> tuple[str, str, str] | None:
        """What values that come in these types have lost: the type, the form in words, and an example; None if
        nothing that tells them."""
        for carrier, kind in sorted(carriers.items()):
            for form, text in sorted(self.lost.get(carrier, {}).items()):
                return kind, {**_ODDITIES, **_WRITTEN_OTHERWISE}.get(form, f"{form}s"), text
        return None

    def check(self, name: str, carriers: Carriers) -> None:
        """Raises: LostFormError if values of a column cannot be told any more, coming in these types."""
        lost = self.lost_form(carriers)
        if lost is not None:
            raise LostFormError(name, *lost)


def _kind(forms: Forms) -> Kind:
    content = forms.keys() & _CONTENT
    if not content or "text" in content:
        return "text"
    if content <= {"bit", "integer"}:
        return "integer"
    if content <= {"bit", "integer", "fraction"}:
        scales = sum(form.startswith("scale ") for form in forms)
        fixed = "trailing" not in forms or (scales == 1 and "plain" not in forms)
        return "number" if fixed else "text"
    if content <= {"boolean", "bit"}:
        return "boolean"
    if content <= {"date", "midnight"}:
        return "date"
    if content <= {"date", "midnight", "time", "moment"}:
        return "time"
    if content == {"clock"}:
        return "clock"
    return "uuid" if content == {"uuid"} else "text"


def _lost(forms: Forms) -> dict[str, dict[str, str]]:
    found = {carrier: {form: forms[form] for form in lost if form in forms} for carrier, lost in _LOST.items()}
    return {carrier: lost for carrier, lost in found.items() if lost}


def _words(forms: Forms) -> tuple[str, ...]:
    return tuple(sorted(form.removeprefix("word ") for form in forms if form.startswith("word ")))


def merged(several: Iterable[Forms]) -> Forms:
    """The forms of all values together; the order does not matter."""
    whole: Forms = {}
    for forms in several:
        for form, text in forms.items():
            whole[form] = min(text, whole.get(form, text))
    return whole


def carriers_in(forms: Forms) -> dict[str, str]:
    """The types, beside text, that values of these forms came in."""
    return {form.removeprefix("from "): text for form, text in forms.items() if form.startswith("from ")}


def forms_of(values: Column, carriers: Carriers) -> Forms:
    """How the distinct texts of a string column without nulls are written, and what they came in."""
    forms: Forms = {f"from {carrier}": kind for carrier, kind in carriers.items()}
    typed_numbers = carriers.keys() == {"number"}
    words = pc.is_in(values, value_set=pa.array(READER_WORDS, _TEXT))
    if pc.any(words).as_py():
        forms |= {f"word {word}": "" for word in pc.unique(values.filter(words)).to_pylist()}
        values = values.filter(pc.invert(words))
    likely = pa.array(_may_be_more(values))
    rest = values.filter(likely)
    if len(rest) < len(values):
        forms["text"] = ""
    digits = pc.match_substring_regex(rest, _DIGITS)
    whole = rest.filter(digits)
    if len(whole):
        bits = pc.is_in(whole, value_set=pa.array(["0", "1"], _TEXT))
        forms |= {"plain": ""} | {("bit" if bit else "integer"): "" for bit in pc.unique(bits).to_pylist()}
        rest = rest.filter(pc.invert(digits))
    if typed_numbers and len(rest):
        finite = pc.invert(pc.match_substring(rest, "inf"))
        if pc.any(finite).as_py():
            forms["fraction"] = ""
        rest = rest.filter(pc.invert(finite))
    candidates = pc.match_substring_regex(rest, _CANDIDATE)
    if not pc.all(candidates, min_count=0).as_py():
        forms["text"] = ""
    for text in rest.filter(candidates).to_pylist():
        for form in _classified(text):
            if form not in forms or text < forms[form]:
                forms[form] = text
    if typed_numbers:
        forms.pop("plain", None)
    return {
        form: "" if form in _CONTENT - _ODDITIES.keys() - {"date", "midnight"} else text for form, text in forms.items()
    }


_DIGIT_STARTS = np.zeros(256, dtype=bool)
_DIGIT_STARTS[list(b"0123456789+-. \t")] = True
_HEX_STARTS = np.zeros(256, dtype=bool)
_HEX_STARTS[list(b"abcdefABCDEF")] = True
_WORD_STARTS = np.zeros(256, dtype=bool)
_WORD_STARTS[list(b"tTfFiI")] = True


def _may_be_more(values: Column) -> npt.NDArray[np.bool_]:
    """Where a text may be a number, truth value, time or UUID, by its first byte and its length."""
    if not len(values):
        return np.zeros(0, dtype=bool)
    _, offsets, data = values.buffers()
    ends_V = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    lengths_V = np.diff(ends_V)
    if data is None or not len(data):
        return np.zeros(len(values), dtype=bool)
    first_V = np.frombuffer(data, np.uint8)[np.minimum(ends_V[:-1], len(data) - 1)]
    found: npt.NDArray[np.bool_] = _DIGIT_STARTS[first_V] & (lengths_V > 0)
    found |= _HEX_STARTS[first_V] & (lengths_V == 36)
    found |= _WORD_STARTS[first_V] & (lengths_V < 16) & (lengths_V > 2)
    return found


def _classified(text: str) -> Iterable[str]:
    """The forms of one text."""
    plain = PLAIN.fullmatch(text)
    if plain:
        return _number_forms(text, *plain.groups())
    if text in BOOLEANS:
        return ("boolean",) if text == BOOLEANS[text] else ("boolean", "Boolean")
    if NUMBER_TEXT.fullmatch(text):
        return _odd_number_forms(text)
    if INFINITY_TEXT.fullmatch(text):
        return ("infinity",)
    if UUID_TEXT.fullmatch(text):
        return ("uuid",) if text == text.lower() else ("uuid", "Uuid")
    clock = clock_text(text, False)
    if CLOCK_TEXT.fullmatch(text) and is_clock(text):
        return ("clock",) if clock == text else ("clock", "Clock")
    time = parsed_time(text)
    if time is None:
        return ("text",)
    if " " not in time:
        return ("date",)
    if time.endswith("Z"):
        return ("moment",) if time == text else ("moment", "Moment")
    content = "midnight" if time.endswith(" 00:00:00") else "time"
    return (content,) if time == text else (content, "Time")


def _number_forms(text: str, whole: str, fraction: str | None) -> list[str]:
    value = number_text(text, False)
    forms = ["bit" if value in ("0", "1") else "integer"]
    if fraction is None:
        return [*forms, "plain", *(["whole"] if value != text else [])]
    forms.append(f"scale {len(fraction)}")
    if not fraction.strip("0"):
        return [*forms, "whole", *(["trailing"] if len(fraction) > 1 else [])]
    forms[0] = "fraction"
    if fraction.endswith("0"):
        forms.append("trailing")
    if len(whole) + len(fraction) > 15 and float_text(float(text)) != value:
        forms[0] = "precise"
    return forms


def _odd_number_forms(text: str) -> list[str]:
    bare = text.strip(" \t")
    mantissa = re.split("[eE]", bare.lstrip("+-"))[0]
    forms = {
        "spaces": bare != text,
        "plus sign": bare.startswith("+"),
        "exponent": "e" in bare.lower(),
        "bare point": mantissa.startswith(".") or mantissa.endswith("."),
        "leading zeros": len(mantissa) > 1 and mantissa[0] == "0" and mantissa[1] != ".",
    }
    return [form for form, there in forms.items() if there]
