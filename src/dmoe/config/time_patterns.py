"""The formats of times, and whether a strptime pattern says what is asked of it."""

import re
from datetime import UTC, datetime
from typing import Literal

UNITS = {"unix": 1, "unix-ms": 10**3, "unix-us": 10**6, "unix-ns": 10**9}  # a second in each
NAMED_FORMATS = ("iso", "yymmddhh", *UNITS)

_KNOWN = (datetime(2014, 10, 21, 23, 4, 5, tzinfo=UTC), datetime(2024, 2, 29, 9, 58, 31, tzinfo=UTC))
_PARTS = {"hour": ("hour",), "weekday": ("year", "month", "day"), "weekend": ("year", "month", "day")}
Need = Literal["hour", "weekday", "weekend"]
_SAYS_YEAR = re.compile(r"%[YyGcxDs]")


def read_time(text: str, pattern: str) -> datetime:
    """`datetime.strptime`, with the leap year 2000 where the pattern says none: 29 February is a day of any log.

    Raises: ValueError.
    """
    if _SAYS_YEAR.search(pattern.replace("%%", "")):
        return datetime.strptime(text, pattern)
    return datetime.strptime(f"2000 {text}", f"%Y {pattern}")


def checked_format(form: str, *needs: Need) -> str:
    """`form`, a named format or a pattern that reads what it writes.

    Raises: ValueError if it is neither, or does not hold what is needed: the hour, or the day.
    """
    if form in NAMED_FORMATS:
        return form
    if "%" not in form:
        raise ValueError(
            f"format '{form}' is none of {', '.join(NAMED_FORMATS)}, nor a pattern such as '%d.%m.%Y %H:%M'"
        )
    if "%Z" in form.replace("%%", ""):
        raise ValueError(
            f"format '{form}': %Z reads no zone; use %z for offsets, or write the zone's name as it stands"
        )
    for known in _KNOWN:
        try:
            found = read_time(known.strftime(form), form)
        except (ValueError, IndexError) as error:
            why = str(error).partition(" in format")[0]
            raise ValueError(f"format '{form}' does not read the times that it writes: {why}") from None
        for need in needs:
            for part in _PARTS[need]:
                if getattr(found, part) != getattr(known, part):
                    hint = "; %I needs %p" if part == "hour" and "%I" in form else ""
                    raise ValueError(f"format '{form}' does not hold the {part}{hint}")
    return form
