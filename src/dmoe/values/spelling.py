"""The canonical text of one value under each type, and the patterns of what may be of it."""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import numpy as np

Kind = Literal["text", "integer", "number", "boolean", "date", "time", "clock", "uuid"]

PLAIN = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.([0-9]+))?", re.ASCII)
NUMBER_LIKE = r"[ \t]*[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?[ \t]*"
INFINITY = r"[ \t]*[-+]?(?:inf|infinity)[ \t]*"
DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
CLOCK = r"[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?"
_ZONE = r" ?(?:Z|UTC|[-+][0-9]{2}(?::?[0-9]{2})?)"
UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
NUMBER_TEXT = re.compile(NUMBER_LIKE, re.ASCII)
INFINITY_TEXT = re.compile(INFINITY, re.IGNORECASE)
_TIME_TEXT = re.compile(
    rf"({DATE})(?:[T ]([0-9]{{2}}:[0-9]{{2}})(?:(:[0-9]{{2}})(?:\.([0-9]+))?)?({_ZONE})?)?", re.ASCII
)
CLOCK_TEXT = re.compile(r"([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?", re.ASCII)
UUID_TEXT = re.compile(UUID, re.ASCII)
BOOLEANS = {"true": "true", "True": "true", "TRUE": "true", "false": "false", "False": "false", "FALSE": "false"}


def float_text(number: float | np.floating[Any]) -> str:
    """The shortest decimal digits that read as this number of its width, whole numbers without a point."""
    return "0" if number == 0 else np.format_float_positional(number, trim="-")


def number_text(text: str, bits: bool) -> str:
    plain = PLAIN.fullmatch(text)
    if plain is None:
        return _bit(text) if bits else text
    whole, fraction = plain.groups()
    fraction = (fraction or "").rstrip("0")
    if fraction:
        return f"{whole}.{fraction}"
    return "0" if whole == "-0" else whole


def _bit(text: str) -> str:
    return {"true": "1", "false": "0"}.get(BOOLEANS.get(text, ""), text)


def _boolean(text: str, bits: bool) -> str:
    number = number_text(text, bits)
    return BOOLEANS.get(text) or {"1": "true", "0": "false"}.get(number, text)


def parsed_time(text: str) -> str | None:
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


def time_text(text: str, _bits: bool) -> str:
    time = parsed_time(text)
    if time is None:
        return text
    return time if " " in time else f"{time} 00:00:00"


def day_text(text: str, _bits: bool) -> str:
    time = parsed_time(text)
    return text if time is None else time.removesuffix(" 00:00:00")


def is_clock(text: str) -> bool:
    found = CLOCK_TEXT.fullmatch(text)
    return found is not None and int(found[1]) < 24 and int(found[2]) < 60 and int(found[3]) < 60


def clock_text(text: str, _bits: bool) -> str:
    return re.sub(r"(\.[0-9]*?)0+$", r"\1", text).removesuffix(".") if "." in text and is_clock(text) else text


def _uuid(text: str, _bits: bool) -> str:
    return text.lower() if UUID_TEXT.fullmatch(text) else text


RULES: dict[Kind, Callable[[str, bool], str]] = {
    "text": lambda text, _: text,
    "integer": number_text,
    "number": number_text,
    "boolean": _boolean,
    "date": day_text,
    "time": time_text,
    "clock": clock_text,
    "uuid": _uuid,
}
