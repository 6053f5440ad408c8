"""Numbers as logs write them, with decimal commas, grouped thousands and signs, as numbers in the plain form."""

import re
from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmoe.config.raw_format import NumberFormat
from dmoe.sources.rejects import NOT_A_NUMBER
from dmoe.tokens.scalars import Fault, missing_numbers, parse_number
from dmoe.values.coded_columns import Column, pc

PLAIN = NumberFormat()
_SPACES = " \u00a0\u202f\u2009"
_SIGNS = re.compile(r"[$€£¥₹%]")


def plain_maker(form: NumberFormat) -> Callable[[str], str | Fault] | None:
    """The function from a text of this format to the plain form of its number; None where they are the same."""
    if form == PLAIN:
        return None
    pattern = _pattern(form)

    def plain(text: str) -> str | Fault:
        body = text
        # Signs may stand at either end, with spaces between: "-5 €", "€ 5".
        for sign in form.strip:
            body = body.strip(_SPACES).removeprefix(sign).removesuffix(sign)
        body = body.strip(_SPACES) if form.strip else body.strip(" \t")
        if not pattern.fullmatch(body):
            return _fault(body, form)
        return _without_grouping(body, form).replace(form.decimal, ".")

    return plain


def number_reader(form: NumberFormat) -> Callable[[str], float | Fault]:
    """The function from a text of this format to its number, whose faults say which key reads it."""
    plain = plain_maker(form)

    def read(text: str) -> float | Fault:
        body = text if plain is None else plain(text)
        number = body if isinstance(body, Fault) else parse_number(body)
        if plain is None and isinstance(number, Fault) and number.reason == NOT_A_NUMBER:
            return Fault(explained(text))
        return number

    return read


def _pattern(form: NumberFormat) -> re.Pattern[str]:
    decimal = re.escape(form.decimal)
    whole = "[0-9]+"
    if form.thousands:
        group = f"[{_SPACES}]" if form.thousands == " " else re.escape(form.thousands)
        # One kind of space throughout.
        whole = rf"(?:[0-9]{{1,3}}({group})[0-9]{{3}}(?:\1[0-9]{{3}})*|[0-9]+)"
    return re.compile(rf"[+-]?(?:{whole}(?:{decimal}[0-9]*)?|{decimal}[0-9]+)(?:[eE][+-]?[0-9]+)?")


def _without_grouping(text: str, form: NumberFormat) -> str:
    if not form.thousands:
        return text
    for one in _SPACES if form.thousands == " " else form.thousands:
        text = text.replace(one, "")
    return text


def _fault(text: str, form: NumberFormat) -> Fault:
    grouped = form.thousands != "" and set(text) <= set(f"0123456789+-{form.decimal}{form.thousands}")
    reason = f"{NOT_A_NUMBER}: digits between '{form.thousands}' are not in threes" if grouped else NOT_A_NUMBER
    return Fault(reason)


_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?P<thousands>[,.' \u00a0\u202f])[0-9]{3}((?P=thousands)[0-9]{3})*(?P<rest>.*)")


def explained(text: str) -> str:
    """Why a text is no number of the plain form, and the key that would make it one."""
    bare, text = text.strip(_SPACES), text.strip(" \t")
    sign = _SIGNS.search(bare)
    if sign is not None and (bare.startswith(sign[0]) or bare.endswith(sign[0])):
        return f'{NOT_A_NUMBER}: a sign at one end; format: {{strip: ["{sign[0]}"]}} reads it'
    for form in (
        NumberFormat(decimal=","),
        NumberFormat(thousands=","),
        NumberFormat(decimal=",", thousands="."),
        NumberFormat(thousands=" "),
        NumberFormat(decimal=",", thousands=" "),
    ):
        if _pattern(form).fullmatch(text) and not (
            form.decimal == "," and _GROUPED.fullmatch(text) and not form.thousands
        ):
            said = f'decimal: "{form.decimal}"' if form.decimal != "." else ""
            if form.thousands:
                said += f'{", " if said else ""}thousands: "{form.thousands}"'
            return f"{NOT_A_NUMBER}: format: {{{said}}} reads it"
    return NOT_A_NUMBER


def without_numbers(numbers_N: npt.NDArray[np.float64], texts: Collection[str]) -> npt.NDArray[np.float64]:
    """NaN where the number is one of those that mean a missing value."""
    values = missing_numbers(texts)
    return np.where(np.isin(numbers_N, list(values)), np.nan, numbers_N) if values else numbers_N


def plain_at_once(text: Column, form: NumberFormat) -> Column | None:
    """A whole column in the plain form, None if a value of it is no such number; null stays null."""
    if form.strip or form.thousands == " ":
        return None
    pattern = _pattern(form).pattern
    if form.thousands:
        group = re.escape(form.thousands)
        pattern = pattern.replace(f"({group})", group).replace(r"\1", group)  # RE2 knows no references
    if not pc.all(pc.match_substring_regex(text, f"^(?:{pattern})$"), min_count=0).as_py():
        return None
    if form.thousands:
        text = pc.replace_substring(text, form.thousands, "")
    return pc.replace_substring(text, form.decimal, ".")


def is_text(column: Column) -> bool:
    """Whether the values of a column are texts as they are written; numbers of typed columns are themselves."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
