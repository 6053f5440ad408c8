"""The one text of a value, whoever carries it: how the values of a field are written, which type that makes of the
field, and the text by which the field knows a value.

What a column holds is first a text: its own where it is text, else the canonical one of its type (`coded.as_text`).
`forms_of` says how such texts are written, as a set that merges piece by piece; the type of a field is a function of
that set alone (`ValueForm.of`); `ValueForm.token` is the canonical text of a value under a type.
V distinct values.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from pydantic import BaseModel, ConfigDict

from dmoe.errors import DataError

pc: Any = pyarrow.compute
Column: TypeAlias = Any
Kind = Literal["text", "integer", "number", "boolean", "date", "time", "clock", "uuid"]
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

_PLAIN = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.([0-9]+))?", re.ASCII)
_NUMBER_LIKE = r"[ \t]*[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?[ \t]*"
_INFINITY = r"[ \t]*[-+]?(?:inf|infinity)[ \t]*"
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK = r"[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?"
_ZONE = r" ?(?:Z|UTC|[-+][0-9]{2}(?::?[0-9]{2})?)"
_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_NUMBER_TEXT = re.compile(_NUMBER_LIKE, re.ASCII)
_INFINITY_TEXT = re.compile(_INFINITY, re.IGNORECASE)
_TIME_TEXT = re.compile(
    rf"({_DATE})(?:[T ]([0-9]{{2}}:[0-9]{{2}})(?:(:[0-9]{{2}})(?:\.([0-9]+))?)?({_ZONE})?)?", re.ASCII
)
_CLOCK_TEXT = re.compile(r"([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?", re.ASCII)
_UUID_TEXT = re.compile(_UUID, re.ASCII)
_BOOLEANS = {"true": "true", "True": "true", "TRUE": "true", "false": "false", "False": "false", "FALSE": "false"}
# What may be more than text; the rest of a column costs one look.
_CANDIDATE = rf"^(?:{_NUMBER_LIKE}|(?i:{_INFINITY})|{_DATE}(?:[T ].*)?|{_CLOCK}|{_UUID}|(?i:true|false))$"
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
        return _RULES[self.kind](text, self.bits)

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
    plain = _PLAIN.fullmatch(text)
    if plain:
        return _number_forms(text, *plain.groups())
    if text in _BOOLEANS:
        return ("boolean",) if text == _BOOLEANS[text] else ("boolean", "Boolean")
    if _NUMBER_TEXT.fullmatch(text):
        return _odd_number_forms(text)
    if _INFINITY_TEXT.fullmatch(text):
        return ("infinity",)
    if _UUID_TEXT.fullmatch(text):
        return ("uuid",) if text == text.lower() else ("uuid", "Uuid")
    clock = _clock(text, False)
    if _CLOCK_TEXT.fullmatch(text) and _is_clock(text):
        return ("clock",) if clock == text else ("clock", "Clock")
    time = _parsed_time(text)
    if time is None:
        return ("text",)
    if " " not in time:
        return ("date",)
    if time.endswith("Z"):
        return ("moment",) if time == text else ("moment", "Moment")
    content = "midnight" if time.endswith(" 00:00:00") else "time"
    return (content,) if time == text else (content, "Time")


def _number_forms(text: str, whole: str, fraction: str | None) -> list[str]:
    value = _number(text, False)
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


def float_text(number: float | np.floating[Any]) -> str:
    """The shortest decimal digits that read as this number of its width, whole numbers without a point."""
    return "0" if number == 0 else np.format_float_positional(number, trim="-")


def _number(text: str, bits: bool) -> str:
    plain = _PLAIN.fullmatch(text)
    if plain is None:
        return _bit(text) if bits else text
    whole, fraction = plain.groups()
    fraction = (fraction or "").rstrip("0")
    if fraction:
        return f"{whole}.{fraction}"
    return "0" if whole == "-0" else whole


def _bit(text: str) -> str:
    return {"true": "1", "false": "0"}.get(_BOOLEANS.get(text, ""), text)


def _boolean(text: str, bits: bool) -> str:
    number = _number(text, bits)
    return _BOOLEANS.get(text) or {"1": "true", "0": "false"}.get(number, text)


def _parsed_time(text: str) -> str | None:
    """A date or ISO time as `2014-10-21`, `2014-10-21 23:00:00[.5]`, or in UTC `2014-10-21 23:00:00Z`; else None."""
    found = _TIME_TEXT.fullmatch(text)
    if found is None:
        return None
    day, minutes, seconds, fraction, zone = found.groups()
    try:
        if minutes is None:
            date.fromisoformat(day)
            return day
        time = datetime.fromisoformat(f"{day} {minutes}{seconds or ':00'}")
        if zone is not None:
            zone = zone.strip()
            time = time.replace(tzinfo=UTC)
            if zone not in ("Z", "UTC"):
                digits = zone[1:].replace(":", "")
                offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:] or 0))
                time -= offset if zone[0] == "+" else -offset
    except (ValueError, OverflowError):
        return None
    fraction = (fraction or "").rstrip("0")
    return time.strftime("%H:%M:%S").join((f"{time.date().isoformat()} ", f".{fraction}" if fraction else "")) + (
        "Z" if zone else ""
    )


def _time(text: str, _bits: bool) -> str:
    time = _parsed_time(text)
    if time is None:
        return text
    return time if " " in time else f"{time} 00:00:00"


def _day(text: str, _bits: bool) -> str:
    time = _parsed_time(text)
    return text if time is None else time.removesuffix(" 00:00:00")


def _is_clock(text: str) -> bool:
    found = _CLOCK_TEXT.fullmatch(text)
    return found is not None and int(found[1]) < 24 and int(found[2]) < 60 and int(found[3]) < 60


def _clock(text: str, _bits: bool) -> str:
    return re.sub(r"(\.[0-9]*?)0+$", r"\1", text).removesuffix(".") if "." in text and _is_clock(text) else text


def _uuid(text: str, _bits: bool) -> str:
    return text.lower() if _UUID_TEXT.fullmatch(text) else text


_RULES: dict[Kind, Callable[[str, bool], str]] = {
    "text": lambda text, _: text,
    "integer": _number,
    "number": _number,
    "boolean": _boolean,
    "date": _day,
    "time": _time,
    "clock": _clock,
    "uuid": _uuid,
}


class MissingTexts:
    """The texts that mean "no value": a number among them in every plain spelling, truth values and times alike."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = set(texts)
        plain = [text for text in self.texts if _PLAIN.fullmatch(text)]
        self._digits = {_number(text, False) for text in plain}
        self.numbers = {float(text) for text in self.texts if _NUMBER_TEXT.fullmatch(text)}
        for text in list(self.texts):
            if text in _BOOLEANS:
                self.texts |= {word for word, value in _BOOLEANS.items() if value == _BOOLEANS[text]}
            time = _parsed_time(text)
            if time is not None:
                self.texts |= {time, _time(text, False), _day(text, False)}
        self._pattern = "|".join(
            rf"{re.escape(text)}0*" if "." in text else rf"{'-?' if text == '0' else ''}{text}(?:\.0+)?"
            for text in sorted(self._digits)
        )

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __contains__(self, text: str) -> bool:
        if text in self.texts:
            return True
        return bool(self._digits) and _PLAIN.fullmatch(text) is not None and _number(text, False) in self._digits

    def among(self, values: Column) -> npt.NDArray[np.bool_]:
        """Where a column of texts, or nulls, has one of them; null is not among them."""
        found = pc.is_in(values, value_set=pa.array(sorted(self.texts), _TEXT))
        if self._digits:
            found = pc.or_(found, pc.fill_null(pc.match_substring_regex(values, f"^(?:{self._pattern})$"), False))
        there: npt.NDArray[np.bool_] = found.to_numpy(zero_copy_only=False)
        return there
