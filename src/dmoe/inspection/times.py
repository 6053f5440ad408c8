"""Whether a column holds times, in which format, and whether it can order the rows.

N rows, V distinct texts.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dmoe.inspection.columns import TextColumn
from dmoe.inspection.information import Floats
from dmoe.tokens.times import NANOSECONDS, Time, time_parser

# Format -> what its texts look like, narrower than what it reads: times of this century.
_FORMS = {
    "yymmddhh": re.compile(r"[0-9]{8}"),
    "unix": re.compile(r"1[0-9]{9}(\.[0-9]+)?"),
    "unix-ms": re.compile(r"1[0-9]{12}(\.[0-9]+)?"),
    "unix-us": re.compile(r"1[0-9]{15}"),
    "unix-ns": re.compile(r"1[0-9]{18}"),
    "iso": re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*", re.DOTALL),
}
# Dates and times of day as they are written, in strptime's words. Texts that two of them read are not told apart here.
_DATES = (
    *("%Y-%m-%d", "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%Y.%m.%d", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d/%m/%y", "%m/%d/%y", "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%d/%b/%Y", "%b %d %Y", "%b %d, %Y", "%a %b %d %Y"),
)
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", "T%H:%M:%S", ":%H:%M:%S")
_ZONES = ("", " %z")
# Digits alone say a time only in full length.
_DIGITS = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_CENTURY = re.compile(r"20[0-9]{6,12}")
_DATED = re.compile(
    r"([0-9]{1,4}[/. -]([0-9]{1,2}|[A-Za-z]{3})[/. -][0-9]{1,4}|([A-Z][a-z]{2} ){1,2}[0-9]{1,2},? [0-9]{4})(?![0-9])"
)
# What else looks like a time, that no format here reads as one.
_LOOKS = {
    "hours as YYYYMMDDHH": re.compile(r"20[0-9]{2}(0[1-9]|1[0-2])([0-2][0-9]|3[01])([01][0-9]|2[0-3])"),
    "seconds as YYYYMMDDHHMMSS": re.compile(r"20[0-9]{2}(0[1-9]|1[0-2])([0-2][0-9]|3[01])[0-2][0-9][0-5][0-9]{3}"),
    "days as YYYYMMDD": re.compile(r"(19|20)[0-9]{2}(0[1-9]|1[0-2])([0-2][0-9]|3[01])"),
    "clock times": re.compile(r"[0-2]?[0-9]:[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?( ?[AaPp][Mm])?"),
    "times": re.compile(
        r"([0-9]{4}[/.-][0-9]{1,2}[/.-][0-9]{1,2}|[0-9]{1,2}[/. -]([0-9]{1,2}|[A-Z][a-z]{2})[/. -][0-9]{2,4})\b.*"
    ),
}
_NAMES = re.compile(r"time|date|hour|day|stamp|epoch|unix|when|(^|_)ts($|_)|_at$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Times:
    """`moments_V`: seconds since 1970, as written where a text names no zone; NaN where some name one and others do
    not. `hours_V`, `weekdays_V`: as derivations take them."""

    format: str
    texts: list[str]
    moments_V: Floats
    hours_V: npt.NDArray[np.int64]
    weekdays_V: npt.NDArray[np.int64]
    days_V: list[str]

    @property
    def digits(self) -> bool:
        """Whether the texts are digits, which may be something else."""
        return self.texts[0].replace(".", "", 1).isdigit() and self.format not in _SEPARATED

    @property
    def ordered(self) -> bool:
        """Whether the moments have an order."""
        return not np.isnan(self.moments_V).any()

    def rising(self, column: TextColumn) -> float:
        """The share of rows whose moment is not before that of the row above."""
        moments_N = self.moments_V[column.codes_N[column.codes_N >= 0]]
        return float((np.diff(moments_N) >= 0).mean()) if len(moments_N) > 1 else 0.0


_SEPARATED = frozenset(date + clock + zone for date in _DATES for clock in _CLOCKS for zone in _ZONES)


def parts_of(form: str) -> tuple[Literal["hour", "weekday", "weekend"], ...]:
    """What can be taken from times of a format: no hour of days."""
    hour = "%" not in form or "%H" in form or "%I" in form
    return ("hour", "weekday", "weekend") if hour else ("weekday", "weekend")


def patterns(texts: list[str]) -> list[str]:
    """The strptime patterns that read every one of these texts; two of them where days and months look alike."""
    if all(_CENTURY.fullmatch(text) for text in texts):
        lengths = {len(text) for text in texts}
        tried = [_DIGITS[lengths.pop()]] if len(lengths) == 1 and lengths <= set(_DIGITS) else []
    elif all(_DATED.match(text) for text in texts[:100]):
        tried = sorted(_SEPARATED)
    else:
        return []
    return [form for form in tried if all(isinstance(time_parser(form)(text), Time) for text in texts)]


def named_like_a_time(name: str) -> bool:
    return _NAMES.search(name) is not None


def looks_like_times(texts: list[str]) -> str | None:
    """What else these texts may be, in words."""
    words = next((words for words, look in _LOOKS.items() if all(look.fullmatch(text) for text in texts)), None)
    both = patterns(texts) if words is not None else []
    return words if len(both) < 2 else f"{words}; {' and '.join(both)} both read them all, so say which"


def read_times(texts: list[str]) -> Times | None:
    """The texts as times, if all of them are of one format, and of no other."""
    forms = dict(_FORMS)
    if len(by_pattern := patterns(texts[:100])) == 1 or (by_pattern and len(by_pattern := patterns(texts)) == 1):
        forms[by_pattern[0]] = re.compile(r".*", re.DOTALL)
    for form, look in forms.items():
        if not all(look.fullmatch(text) for text in texts[:100]):
            continue
        parse = time_parser(form)
        parsed = [parse(text) if look.fullmatch(text) else None for text in texts]
        found = [time for time in parsed if isinstance(time, Time)]
        if len(found) < len(texts) or (
            form == "yymmddhh" and all(_LOOKS["days as YYYYMMDD"].fullmatch(one) for one in texts)
        ):
            continue
        zoned = {time.zoned for time in found}
        moments = [time.nanoseconds / NANOSECONDS if len(zoned) == 1 else np.nan for time in found]
        return Times(
            form,
            texts,
            np.array(moments),
            np.array([time.local.hour for time in found]),
            np.array([time.local.isoweekday() % 7 for time in found]),
            [f"{time.local:%Y-%m-%d}" for time in found],
        )
    return None
